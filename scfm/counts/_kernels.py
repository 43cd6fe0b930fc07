"""Loops over stored entries that numpy has no words for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

LARGEST_SMALLEST_COUNT = 100
"""A cell's smallest count is looked for among 1 ... this."""

HARMLESS = 1e-5
"""Counts nearer to each other than this, relatively, need not be told apart: float32 could hardly."""

_SLACK = 1e-12


@njit(cache=True, nogil=True)
def place_rows(
    place: NDArray[np.int64],
    fill: NDArray[np.int64],
    rows: NDArray[Any],
    columns: NDArray[np.int32],
    data: NDArray[Any],
    out_columns: NDArray[np.int32],
    out_data: NDArray[Any],
) -> None:
    """Put entries of some columns where their rows are in CSR order.

    Parameters
    ----------
    place
        (n_rows,) position of each row of the matrix among the wanted ones, -1: not wanted.
    fill
        (n_wanted,) next free entry of each wanted row; moved on.
    rows, columns, data
        (m,) entries of the matrix.
    out_columns, out_data
        Entries in CSR order.
    """
    for i in range(len(rows)):
        row = place[rows[i]]
        if row >= 0:
            out_columns[fill[row]] = columns[i]
            out_data[fill[row]] = data[i]
            fill[row] += 1


@njit(cache=True, nogil=True)
def _narrow(
    low: NDArray[np.float64], high: NDArray[np.float64], scale_low: float, scale_high: float
) -> tuple[bool, float, float, float]:
    """All scales of which every interval ``[low, high]`` holds a whole multiple.

    Parameters
    ----------
    low, high
        (m,) bounds of the distinct values of a cell, ascending.
    scale_low, scale_high
        The scales that come into question.

    Returns
    -------
    Whether there are any, their bounds, and the decimal digits by which chance alone would miss.
    """
    digits = 0.0
    for sweep in range(2):
        last = -1.0
        for j in range(len(low)):
            first = low[j] / scale_high * (1.0 - _SLACK)
            final = high[j] / scale_low * (1.0 + _SLACK)
            count = np.ceil(first)
            if count > final or final < 1.0:
                return False, scale_low, scale_high, 0.0
            if count < 1.0 or count + 1.0 <= final:
                continue
            if sweep == 0 and j > 0 and count != last:
                digits -= np.log10(min(1.0, final - first))
            last = count
            scale_low = max(scale_low, low[j] / count * (1.0 - _SLACK))
            scale_high = min(scale_high, high[j] / count * (1.0 + _SLACK))
    return True, scale_low, scale_high, digits


@njit(cache=True, nogil=True)
def recover_counts(
    indptr: NDArray[np.int64],
    values: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    known_scale: float,
    counts: NDArray[np.float64],
    scales: NDArray[np.float64],
    scale_bounds: NDArray[np.float64],
    digits: NDArray[np.float64],
    unsure: NDArray[np.int64],
    fits: NDArray[np.bool_],
) -> None:
    """Whole numbers behind values that are counts times one scale per cell, each cell by itself.

    Every value is known to lie in ``[low, high]``. A cell fits if one scale exists of which all its values are
    whole multiples; the multiples are taken without a common factor. The smallest value is tried as one count, two
    counts, and so on.

    Parameters
    ----------
    indptr
        (n + 1,) cells.
    values, low, high
        (nnz,) normalised values and their bounds, positive.
    known_scale
        Scale of all cells, or 0: to be found.
    counts
        (nnz,) out.
    scales
        (n,) out, smallest value divided by its count.
    scale_bounds
        (n, 2) out, scales that agree with all values.
    digits
        (n,) out, ``-log10`` of the probability that arbitrary values would fit as well.
    unsure
        (n,) out, values for which several counts are possible that differ by more than `HARMLESS`.
    fits
        (n,) out, whether a scale exists; counts and scales are meaningless where none does.
    """
    for i in range(len(indptr) - 1):
        begin, end = indptr[i], indptr[i + 1]
        if begin == end:
            fits[i] = True
            continue
        order = np.argsort(low[begin:end])
        lows = low[begin:end][order]
        highs = high[begin:end][order]
        distinct = np.ones(len(lows), dtype=np.bool_)
        for j in range(1, len(lows)):
            distinct[j] = lows[j] != lows[j - 1] or highs[j] != highs[j - 1]
        lows, highs = lows[distinct], highs[distinct]
        smallest = values[begin:end].min()
        tries = 1 if known_scale > 0 else LARGEST_SMALLEST_COUNT
        for k in range(1, tries + 1):
            if known_scale > 0:
                found, least, most, evidence = _narrow(lows, highs, known_scale, known_scale)
            else:
                found, least, most, evidence = _narrow(lows, highs, lows[0] / k, highs[0] / k)
                evidence -= np.log10(float(k))
            if not found:
                continue
            fits[i] = True
            scales[i] = known_scale if known_scale > 0 else smallest / k
            scale_bounds[i, 0], scale_bounds[i, 1] = least, most
            digits[i] = evidence
            middle = 0.5 * (least + most)
            for e in range(begin, end):
                first = np.ceil(low[e] / most * (1.0 - _SLACK))
                final = np.floor(high[e] / least * (1.0 + _SLACK))
                first = max(first, 1.0)
                if final - first > HARMLESS * first:
                    unsure[i] += 1
                counts[e] = min(max(np.rint(values[e] / middle), first), max(final, first))
            break
