"""How is one cell read, ordered and keyed?

The numba functions that every tokenizer kernel is made of. A *slot* is a place that collects counts:
normally one per vocabulary gene, so that slots in ascending order are genes in ascending order.
None of them allocates; scratch arrays belong to the caller, so that every thread has its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

_DIGIT = 10
N_COUNTERS = 1 << _DIGIT
_PLACE = 32 - _DIGIT
_SHORT = 48
_SIGN = np.uint64(1 << 63)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_FRACTION = 2.0**52


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Position of the lowest set bit of a non-zero uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), generate


@njit(nogil=True, cache=True)
def row_sum(data, begin, end):  # type: ignore[no-untyped-def]
    """Sum of non-negative ``data[begin:end]``, the same in any order."""
    a = b = c = d = 0.0
    fractional = False
    k = begin
    while k + 4 <= end:
        p, q, r, s = np.float64(data[k]), np.float64(data[k + 1]), np.float64(data[k + 2]), np.float64(data[k + 3])
        a += p
        b += q
        c += r
        d += s
        fractional |= (p != np.floor(p)) | (q != np.floor(q)) | (r != np.floor(r)) | (s != np.floor(s))
        k += 4
    while k < end:
        p = np.float64(data[k])
        a += p
        fractional |= p != np.floor(p)
        k += 1
    return _fixed_point_sum(data, begin, end) if fractional else (a + b) + (c + d)


@njit(nogil=True, cache=True)
def _fixed_point_sum(data, begin, end):  # type: ignore[no-untyped-def]
    """Sum with 52 fractional bits: exact for whole numbers, and no rounding depends on the order."""
    whole = 0.0
    part = 0.0
    for k in range(begin, end):
        x = np.float64(data[k])
        floor = np.floor(x)
        whole += floor
        part += np.rint((x - floor) * _FRACTION)
        if part >= _FRACTION:
            part -= _FRACTION
            whole += 1.0
    return whole + part / _FRACTION


@njit(nogil=True, cache=True)
def gather_cell(indices, data, begin, end, slot_of, n_averaged, acc, bits, slots, counts):  # type: ignore[no-untyped-def]
    """Collect one row by slot: ascending slots and their summed counts, without zeros.

    Parameters
    ----------
    indices, data, begin, end
        The stored entries of the row.
    slot_of
        (n_columns,) int32 slot of each column, -1 for none.
    n_averaged
        (n_slots,) int32 columns per slot if several are averaged (half to even), empty if they are summed.
    acc, bits
        Scratch, (n_slots,) float64 and (ceil(n_slots / 64),) uint64; zero before and after.
    slots, counts
        Output, at least as long as the row or the slots.

    Returns
    -------
    Number of slots filled, total over all columns, total over the slots.
    """
    total = row_sum(data, begin, end)
    for k in range(begin, end):
        s = slot_of[np.uint32(indices[k])]
        if s >= 0:
            u = np.uint32(s)
            acc[u] += np.float64(data[k])
            bits[u >> np.uint32(6)] |= _ONE << np.uint64(u & np.uint32(63))
    average = len(n_averaged) > 0
    n = 0
    matched = 0.0
    for w in range(len(bits)):
        word = bits[w]
        if word == _ZERO:
            continue
        bits[w] = _ZERO
        base = np.uint64(w) << np.uint64(6)
        while word != _ZERO:
            s64 = base + _trailing_zeros(word)
            word &= word - _ONE
            x = acc[s64]
            acc[s64] = 0.0
            if average and n_averaged[s64] > 1:
                x = np.rint(x / n_averaged[s64])
            slots[n] = np.int32(s64)
            counts[n] = x
            n += x != 0.0
            matched += x
    return n, total, matched


@njit(nogil=True, cache=True)
def sort_descending(values, n, order, spare, keys, low, high):  # type: ignore[no-untyped-def]
    """Indices that put ``values[:n]`` (float64, no NaN) in descending order, equal ones as they came.

    Two stable counting passes over 20 bits of the values' range, then one insertion pass on the exact
    values, which only moves neighbours that share a key.

    Parameters
    ----------
    order, spare, keys
        Output and scratch of at least n entries (int32, uint32, uint32); n is below 4 million.
    low, high
        Scratch, (N_COUNTERS,) int32.
    """
    for i in range(min(n, _SHORT)):
        order[i] = i
    if n > _SHORT:
        raw = values.view(np.uint64)
        largest = _ZERO
        smallest = ~_ZERO
        for i in range(n):
            k = _sortable(raw[i])
            if k > largest:
                largest = k
            if k < smallest:
                smallest = k
        span = largest - smallest
        if span == _ZERO:
            for i in range(_SHORT, n):
                order[i] = i
            return
        shift = _ZERO
        while (span >> shift) >= np.uint64(N_COUNTERS * N_COUNTERS):
            shift += _ONE
        _radix(raw, n, largest, shift, order, spare, keys, low, high)
    _insertion(values, n, order)


@njit(nogil=True, cache=True)
def _insertion(values, n, order):  # type: ignore[no-untyped-def]
    previous = np.inf
    for i in range(n):
        mine = order[i]
        v = values[np.uint32(mine)]
        if v <= previous:
            previous = v
            continue
        j = i
        while j > 0 and values[np.uint32(order[j - 1])] < v:
            order[j] = order[j - 1]
            j -= 1
        order[j] = mine


@njit(nogil=True, cache=True)
def _sortable(raw):  # type: ignore[no-untyped-def]
    """Bits of a float64 as an unsigned integer of the same order."""
    return ~raw if raw >= _SIGN else raw | _SIGN


@njit(nogil=True, cache=True)
def _radix(raw, n, largest, shift, order, spare, keys, low, high):  # type: ignore[no-untyped-def]
    low[:] = 0
    high[:] = 0
    digit = np.uint32(_DIGIT)
    place = np.uint32(_PLACE)
    mask = np.uint32(N_COUNTERS - 1)
    for i in range(n):
        key = np.uint32((largest - _sortable(raw[i])) >> shift)
        keys[i] = key
        low[key & mask] += 1
        high[key >> digit] += 1
    at_low = 0
    at_high = 0
    for d in range(N_COUNTERS):
        count = low[d]
        low[d] = at_low
        at_low += count
        count = high[d]
        high[d] = at_high
        at_high += count
    for i in range(n):
        key = keys[i]
        at = low[key & mask]
        spare[np.uint32(at)] = ((key >> digit) << place) | np.uint32(i)
        low[key & mask] = at + 1
    index = (np.uint32(1) << place) - np.uint32(1)
    for i in range(n):
        packed = spare[i]
        at = high[packed >> place]
        order[np.uint32(at)] = np.int32(packed & index)
        high[packed >> place] = at + 1


@njit(nogil=True, cache=True)
def mix(x):  # type: ignore[no-untyped-def]
    """Scramble 64 bits (finaliser of splitmix64, Steele et al. 2014)."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def uniform(key, i):  # type: ignore[no-untyped-def]
    """Draw number i in [0, 1) of the stream ``key``."""
    step = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
    return np.float64(mix(key + step) >> np.uint64(11)) * 2.0**-53


@njit(nogil=True, cache=True)
def cell_key(genes, counts, n, seed):  # type: ignore[no-untyped-def]
    """One number from the seed and a cell's (vocabulary id, count) pairs, whatever their order."""
    raw = counts.view(np.uint64)
    key = _ZERO
    for i in range(n):
        key += mix(mix(np.uint64(genes[i]) + np.uint64(0x9E3779B97F4A7C15)) ^ raw[i])
    return mix(key ^ mix(np.uint64(seed)))
