"""What number does a model see for a count? One rule per family, each an object with constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.errors import TokenizerError
from scfm.tokenizers._base import register_part
from scfm.tokenizers._cells import Cells, distinct, keys, recorded
from scfm.tokenizers._kernels import N_COUNTERS, sort_descending, uniform

_HISTOGRAM_LIMIT = 1 << 14


class ValueRule(Protocol):
    """Turns the counts of cells into token values."""

    def values(
        self, cells: Cells, genes: NDArray[np.int32], *, seed: int, draws: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.float32]:
        """(E,) value of each entry of ``cells``; ``genes`` (E,) are their vocabulary ids."""


def log_normalised(cells: Cells, target_sum: float = 10_000.0, base: float | None = None) -> NDArray[np.float32]:
    """(E,) logarithm of 1 + counts per ``target_sum`` as float32.

    Counts are normalised in float32 as scanpy does it, x / (total / target). The natural logarithm is the
    float32 nearest to the true one: unlike float32 library functions it does not depend on the machine.
    Another base divides it in float64 and rounds back.
    """
    which, counts, rows = distinct(cells)
    size = cells.depth.astype(np.float32) / np.float32(target_sum)
    normalised = counts.astype(np.float32) / size[rows]
    logs = np.log1p(normalised.astype(np.float64)).astype(np.float32)
    if base is not None:
        logs = (logs / np.log(np.float64(base))).astype(np.float32)
    return logs[which]


@register_part
@dataclass(frozen=True)
class QuantileBins:
    """Equally filled bins of the cell's own non-zero counts (scGPT; Cui et al. 2024).

    The ``n_bins - 1`` edges are the quantiles 0 ... 1 of the counts; a count lies in bin number "edges
    not above it", 1 ... n_bins - 1. A count that equals several edges lies in all of their bins.

    Parameters
    ----------
    n_bins
        Bins, the one of the zeros included.
    ties
        A count in several bins takes the ``"highest"``, or a ``"random"`` one per gene.
    """

    n_bins: int = 51
    ties: Literal["highest", "random"] = "highest"

    def __post_init__(self) -> None:
        if self.n_bins < 3:
            raise TokenizerError(f"n_bins is {self.n_bins}, at least 3 are needed (one is for zeros)")
        if self.ties not in ("highest", "random"):
            raise TokenizerError(f"ties is {self.ties!r}, expected 'highest' or 'random'")

    def values(
        self, cells: Cells, genes: NDArray[np.int32], *, seed: int, draws: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.float32]:
        """(E,) bins; recorded draws ``"ties"`` (n, longest cell) in [0, 1) go to the entries in order."""
        n_cells = len(cells.total)
        given = recorded(draws, "ties", n_cells) if self.ties == "random" else None
        if given is not None and given.shape[1] < cells.lengths.max(initial=0):
            raise TokenizerError(
                f"draws['ties'] holds {given.shape[1]} draws per cell, the longest cell needs {cells.lengths.max()}"
            )
        random = self.ties == "random"
        bins, _ = _quantile_bins(
            cells.offsets,
            cells.counts,
            genes,
            np.linspace(0, 1, self.n_bins - 1),
            keys(cells, genes, seed) if random and given is None else np.empty(0, np.uint64),
            np.empty((n_cells, 0)) if given is None else given.astype(np.float64),
            _HISTOGRAM_LIMIT,
        )
        out: NDArray[np.float32] = bins
        return out


@register_part
@dataclass(frozen=True)
class Log2Bins:
    """Whole binary logarithms of 1 + counts per 10,000, capped (scBERT; Yang et al. 2022)."""

    cap: int = 5
    target_sum: float = 10_000.0

    def values(
        self, cells: Cells, genes: NDArray[np.int32], *, seed: int, draws: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.float32]:
        """(E,) levels 0 ... cap."""
        return np.floor(np.minimum(log_normalised(cells, self.target_sum, base=2.0), np.float32(self.cap)))


@register_part
@dataclass(frozen=True)
class EqualWidthBins:
    """Equally wide bins of log1p counts per 10,000, from zero to the cell's maximum (scMulan; Bian et al. 2024)."""

    n_bins: int = 10
    target_sum: float = 10_000.0

    def values(
        self, cells: Cells, genes: NDArray[np.int32], *, seed: int, draws: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.float32]:
        """(E,) bins 1 ... n_bins; the cell's maximum lies in the last."""
        out: NDArray[np.float32] = _equal_width(cells.offsets, log_normalised(cells, self.target_sum), self.n_bins)
        return out


@register_part
@dataclass(frozen=True)
class LogValues:
    """No bins: the logarithm (natural, or of another ``base``) of 1 + counts per 10,000 as it is."""

    target_sum: float = 10_000.0
    base: float | None = None

    def values(
        self, cells: Cells, genes: NDArray[np.int32], *, seed: int, draws: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.float32]:
        """(E,) values above 0."""
        return log_normalised(cells, self.target_sum, self.base)


def quantile_bins(
    values: NDArray[np.floating[Any]], n_bins: int = 51, draws: NDArray[np.floating[Any]] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Quantile bins of one row, and their edges.

    Parameters
    ----------
    values
        (n,) non-negative values; zeros stay in bin 0 and take no part.
    n_bins
        Bins, the one of the zeros included.
    draws
        (number of non-zero values,) in [0, 1): a value in several bins takes a random one; None: the highest.

    Returns
    -------
    (n,) bins, and the (n_bins - 1,) edges (zeros where no value is positive).
    """
    positive = np.flatnonzero(values)
    bins, edges = _quantile_bins(
        np.array([0, len(positive)]),
        np.asarray(values, dtype=np.float64)[positive],
        np.empty(0, np.int32),
        np.linspace(0, 1, n_bins - 1),
        np.empty(0, np.uint64),
        np.empty((1, 0)) if draws is None else np.asarray(draws, dtype=np.float64)[None],
        _HISTOGRAM_LIMIT,
    )
    out = np.zeros(len(values), dtype=np.float32)
    out[positive] = bins
    return out, edges[0]


@njit(nogil=True, cache=True)
def _quantile_bins(offsets, counts, genes, quantiles, stream, draws, histogram_limit):  # type: ignore[no-untyped-def]
    """Bins (E,) and edges (n, n_edges): recorded ``draws``, else the cells' random ``stream``, else the highest bin."""
    n_cells = len(offsets) - 1
    n_edges = len(quantiles)
    longest = 0
    for i in range(n_cells):
        longest = max(longest, offsets[i + 1] - offsets[i])
    values = np.empty(longest, np.float64)
    distinct = np.empty(longest, np.float64)
    upto = np.empty(longest, np.int64)
    which = np.empty(longest, np.int32)
    table = np.zeros(histogram_limit + 1, np.int32)
    order = np.empty(longest, np.int32)
    spare = np.empty(longest, np.uint32)
    sort_keys = np.empty(longest, np.uint32)
    low = np.empty(N_COUNTERS, np.int32)
    high = np.empty(N_COUNTERS, np.int32)
    left = np.empty(longest, np.int64)
    right = np.empty(longest, np.int64)
    out = np.empty(offsets[-1], np.float32)
    edges = np.zeros((n_cells, n_edges), np.float64)
    for i in range(n_cells):
        start = offsets[i]
        n = offsets[i + 1] - start
        if n == 0:
            continue
        top = 0.0
        whole = True
        for j in range(n):
            x = np.float64(np.float32(counts[start + j]))
            values[j] = x
            top = max(top, x)
            whole &= x == np.floor(x)
        if whole and top <= histogram_limit:
            m = _distinct_by_histogram(values, n, np.int64(top), table, distinct, upto, which)
        else:
            sort_descending(values, n, order, spare, sort_keys, low, high)
            m = _distinct_by_sort(values, n, order, distinct, upto, which)
        _edges(distinct, upto, n, quantiles, edges[i])
        _sides(distinct, m, edges[i], left, right)
        for j in range(n):
            a = left[which[j]]
            b = right[which[j]]
            bin_ = np.float64(a)
            if draws.shape[1] > 0:
                bin_ = np.ceil(draws[i, j] * (b - a) + a)
            elif len(stream) > 0:
                bin_ = np.ceil(uniform(stream[i], genes[start + j]) * (b - a) + a)
            out[start + j] = bin_
    return out, edges


@njit(nogil=True, cache=True)
def _distinct_by_histogram(values, n, top, table, distinct, upto, which):  # type: ignore[no-untyped-def]
    """Ascending distinct values, how many values are not above each, and the one of each value; returns their number."""
    for j in range(n):
        table[np.int64(values[j])] += 1
    m = 0
    seen = 0
    for c in range(top + 1):
        if table[c] > 0:
            seen += table[c]
            distinct[m] = c
            upto[m] = seen
            table[c] = m
            m += 1
    for j in range(n):
        which[j] = table[np.int64(values[j])]
    for c in range(top + 1):
        table[c] = 0
    return m


@njit(nogil=True, cache=True)
def _distinct_by_sort(values, n, order, distinct, upto, which):  # type: ignore[no-untyped-def]
    """The same from the descending order of the values."""
    m = -1
    for j in range(n - 1, -1, -1):
        x = values[order[j]]
        if m < 0 or x != distinct[m]:
            m += 1
            distinct[m] = x
        upto[m] = n - j
        which[order[j]] = m
    return m + 1


@njit(nogil=True, cache=True)
def _edges(distinct, upto, n, quantiles, edges):  # type: ignore[no-untyped-def]
    """Numpy's linear quantiles of float32 values, with float64 weights."""
    m = 0
    for e in range(len(quantiles)):
        at = quantiles[e] * (n - 1)
        lower = np.int64(np.floor(at))
        t = at - lower
        while upto[m] <= lower:
            m += 1
        a = np.float32(distinct[m])
        b = a if lower + 1 < upto[m] or lower + 1 >= n else np.float32(distinct[m + 1])
        gap = np.float64(np.float32(b - a))
        edges[e] = np.float64(a) + gap * t if t < 0.5 else np.float64(b) - gap * (1.0 - t)


@njit(nogil=True, cache=True)
def _sides(distinct, m, edges, left, right):  # type: ignore[no-untyped-def]
    """Number of edges not above, and below, each distinct value."""
    not_above = 0
    below = 0
    for d in range(m):
        while not_above < len(edges) and edges[not_above] <= distinct[d]:
            not_above += 1
        while below < len(edges) and edges[below] < distinct[d]:
            below += 1
        left[d] = not_above
        right[d] = below


@njit(nogil=True, cache=True)
def _equal_width(offsets, values, n_bins):  # type: ignore[no-untyped-def]
    out = np.empty(len(values), np.float32)
    edges = np.empty(n_bins + 1, np.float64)
    for i in range(len(offsets) - 1):
        top = 0.0
        for j in range(offsets[i], offsets[i + 1]):
            top = max(top, np.float64(values[j]))
        for k in range(n_bins):
            edges[k] = k * (top / n_bins)
        edges[n_bins] = top
        for j in range(offsets[i], offsets[i + 1]):
            k = 0
            while k < n_bins and edges[k] < values[j]:
                k += 1
            out[j] = k
    return out
