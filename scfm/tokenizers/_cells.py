"""Which vocabulary genes does each cell of a block hold, and how much of them?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._kernels import cell_key, gather_cell

_NONE = np.empty(0, dtype=np.int32)
_SMALL = 4096


@dataclass(frozen=True)
class Slots:
    """Where the columns of a matrix collect.

    Parameters
    ----------
    of_column
        (n_columns,) int32 slot of each column, -1 for none.
    genes
        (n_slots,) int32 vocabulary id of each slot.
    n_averaged
        (n_slots,) int32 columns that share the slot if they are averaged; empty if they are summed.
    filled
        (n_slots,) True where at least one column collects.
    """

    of_column: NDArray[np.int32]
    genes: NDArray[np.int32]
    n_averaged: NDArray[np.int32]
    filled: NDArray[np.bool_]

    @classmethod
    def of(cls, match: GeneMatch, vocabulary: GeneVocabulary) -> Slots:
        """One slot per vocabulary id, or one per matched column where duplicates are kept apart."""
        columns = np.ascontiguousarray(match.columns, dtype=np.int32)
        if len(columns) and columns.max(initial=-1) >= len(vocabulary):
            raise TokenizerError(
                f"the gene match points at id {columns.max()}, but the vocabulary holds {len(vocabulary)} names; "
                "match the data against this tokenizer's own vocabulary"
            )
        matched = np.flatnonzero(columns >= 0)
        of_column = np.where(columns >= 0, columns, -1).astype(np.int32)
        genes = np.arange(len(vocabulary), dtype=np.int32)
        if match.duplicates == "keep":
            of_column[matched] = np.arange(len(matched), dtype=np.int32)
            genes = columns[matched]
        elif match.duplicates == "first":
            _, first = np.unique(columns[matched], return_index=True)
            of_column = np.full_like(columns, -1)
            of_column[matched[first]] = columns[matched[first]]
        per_slot = np.bincount(of_column[of_column >= 0], minlength=len(genes)).astype(np.int32)
        average = match.duplicates == "mean" and bool((per_slot > 1).any())
        return cls(of_column, genes, per_slot if average else _NONE, per_slot > 0)


@dataclass(frozen=True)
class Cells:
    """The counts of some cells by slot, ascending, zeros gone, duplicates joined.

    Parameters
    ----------
    offsets
        (n + 1,) int64 borders of the cells in ``slots`` and ``counts``.
    slots, counts
        (E,) int32 and float64.
    total, total_matched
        (n,) float64 counts over all columns (the source's own totals where it knows them) and over the slots.
    depth
        (n,) float64 total that normalises a cell over its vocabulary genes: ``total_matched``, and the counts
        that the matrix lacks where the source knows a total above the sum of its row.
    """

    offsets: NDArray[np.int64]
    slots: NDArray[np.int32]
    counts: NDArray[np.float64]
    total: NDArray[np.float64]
    total_matched: NDArray[np.float64]
    depth: NDArray[np.float64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) genes per cell."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(E,) cell of each entry."""
        return np.repeat(np.arange(len(self.total)), self.lengths)


def checked(block: CountBlock, slots: Slots) -> CountBlock:
    """The block with the dtypes that kernels are compiled for.

    Raises
    ------
    TokenizerError
        If the block does not have the columns of the gene match, or holds negative or non-finite values.
    """
    if block.n_columns != len(slots.of_column):
        raise TokenizerError(
            f"the block has {block.n_columns} columns, the gene match was made for {len(slots.of_column)}; "
            "match the genes of the very matrix that is tokenized"
        )
    data = np.ascontiguousarray(block.data)
    if data.dtype not in (np.float32, np.float64):
        data = data.astype(np.float64)
    low, high = data.min(initial=0), data.max(initial=0)
    if not (low >= 0 and high < np.inf):
        raise TokenizerError(
            f"counts must be finite and not negative, found values from {low} to {high}; "
            "scaled or corrected matrices cannot be tokenized, choose the raw counts with layer= or use_raw="
        )
    return CountBlock(
        indptr=np.ascontiguousarray(block.indptr, dtype=np.int64),
        indices=np.ascontiguousarray(block.indices, dtype=np.int32),
        data=data,
        n_columns=block.n_columns,
        start=block.start,
        totals=None if block.totals is None else np.ascontiguousarray(block.totals, dtype=np.float64),
    )


def gather(block: CountBlock, slots: Slots) -> Cells:
    """Collect every row of a block by slot."""
    block = checked(block, slots)
    offsets, filled, counts, total, matched = _gather(
        block.indptr, block.indices, block.data, slots.of_column, slots.n_averaged, len(slots.genes)
    )
    known = block.totals
    return Cells(
        offsets,
        filled,
        counts,
        total=total if known is None else known,
        total_matched=matched,
        depth=matched if known is None else matched + np.maximum(known - total, 0.0),
    )


@njit(nogil=True, cache=True)
def _gather(indptr, indices, data, slot_of, n_averaged, n_slots):  # type: ignore[no-untyped-def]
    n_cells = len(indptr) - 1
    acc = np.zeros(n_slots, np.float64)
    bits = np.zeros((n_slots + 63) // 64, np.uint64)
    offsets = np.zeros(n_cells + 1, np.int64)
    total = np.zeros(n_cells, np.float64)
    matched = np.zeros(n_cells, np.float64)
    slots = np.empty(indptr[-1] - indptr[0] + 1, np.int32)
    counts = np.empty(indptr[-1] - indptr[0] + 1, np.float64)
    at = 0
    for i in range(n_cells):
        n, total[i], matched[i] = gather_cell(
            indices, data, indptr[i], indptr[i + 1], slot_of, n_averaged, acc, bits, slots[at:], counts[at:]
        )
        at += n
        offsets[i + 1] = at
    return offsets, slots[:at], counts[:at], total, matched


def distinct(cells: Cells) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
    """The few different counts of each cell, so that a logarithm is taken once for each.

    Returns
    -------
    (E,) index of each entry's count in the table, (M,) the table's counts, (M,) the cell of each.
    """
    return _distinct(cells.offsets, cells.counts)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True)
def _distinct(offsets, counts):  # type: ignore[no-untyped-def]
    n_cells = len(offsets) - 1
    cell_of = np.full(_SMALL, -1, np.int64)
    place_of = np.empty(_SMALL, np.int32)
    which = np.empty(len(counts), np.int32)
    table = np.empty(len(counts), np.float64)
    cells = np.empty(len(counts), np.int64)
    m = 0
    for i in range(n_cells):
        for j in range(offsets[i], offsets[i + 1]):
            x = counts[j]
            c = np.int64(x) if x < _SMALL else 0
            if c == x and cell_of[c] == i:
                which[j] = place_of[c]
                continue
            if c == x:
                cell_of[c] = i
                place_of[c] = m
            which[j] = m
            table[m] = x
            cells[m] = i
            m += 1
    return which, table[:m], cells[:m]


def keys(cells: Cells, genes: NDArray[np.int32], seed: int) -> NDArray[np.uint64]:
    """(n,) a random stream per cell, from the seed and the cell's own pairs of vocabulary id (E,) and count."""
    out: NDArray[np.uint64] = _keys(cells.offsets, genes, cells.counts, np.uint64(seed % (1 << 64)))
    return out


@njit(nogil=True, cache=True)
def _keys(offsets, genes, counts, seed):  # type: ignore[no-untyped-def]
    out = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(out)):
        a, b = offsets[i], offsets[i + 1]
        out[i] = cell_key(genes[a:b], counts[a:b], b - a, seed)
    return out


def recorded(draws: Any, name: str, n_cells: int) -> NDArray[Any] | None:
    """The recorded draws of a name, one row per cell, or None.

    Raises
    ------
    TokenizerError
        If they are not a two-dimensional array with one row per cell.
    """
    if draws is None or name not in draws:
        return None
    array = np.asarray(draws[name])
    if array.ndim != 2 or len(array) != n_cells:
        raise TokenizerError(
            f"draws[{name!r}] has shape {array.shape}, expected ({n_cells}, draws of a cell): one row per cell"
        )
    return array
