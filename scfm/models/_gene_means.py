"""Cells as means of the vectors of their genes, weighted by expression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scfm.counts import CountBlock
from scfm.genes import GeneMatch
from scfm.models._gene_table import GeneTable


@dataclass(frozen=True)
class WeightedSums:
    """Sums of gene vectors over the genes of each cell.

    Parameters
    ----------
    vectors
        (n, d) sum of weight times vector; a gene without a vector adds nothing.
    n_columns
        Columns of the data, matched or not.
    weights, matched
        (n,) sum of the weights of all columns, and of those with a vector.
    counts, counts_matched
        (n,) the same of the raw counts.
    """

    vectors: NDArray[np.float32]
    n_columns: int
    weights: NDArray[np.float64]
    matched: NDArray[np.float64]
    counts: NDArray[np.float64]
    counts_matched: NDArray[np.float64]


def log_normalised(block: CountBlock, target_sum: float = 1e4, merged: NDArray[np.integer[Any]] | None = None) -> Any:
    """log(1 + counts / total of the cell * target_sum).

    Parameters
    ----------
    block
        Raw counts of n cells; the total of a cell is over all its columns.
    target_sum
        What a cell's counts are scaled to.
    merged
        (n_columns,) place of each column in the result; counts of one place are added up first. None: each its own.

    Returns
    -------
    (n, places) CSR array of float32.
    """
    n_places = block.n_columns if merged is None or not len(merged) else int(merged.max()) + 1
    places = block.indices if merged is None else merged[block.indices]
    counts = sparse.csr_array((block.data.astype(np.float64), places, block.indptr), shape=(block.n_cells, n_places))
    counts.sum_duplicates()
    totals = _row_sums(counts) if block.totals is None else block.totals
    scale = target_sum / np.where(totals > 0, totals, 1.0)
    values = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
    return sparse.csr_array((values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def _row_sums(matrix: Any) -> NDArray[np.float64]:
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()


def weighted_sums(
    blocks: Iterable[CountBlock], match: GeneMatch, table: GeneTable, target_sum: float = 1e4, progress: Any = None
) -> WeightedSums:
    """Sums of gene vectors, weighted by log-normalised expression, in memory that does not grow with the genes' counts.

    Parameters
    ----------
    blocks
        Raw counts.
    match
        Row of the table for each column. Where its duplicates are ``"sum"``, counts of several columns of one gene are
        added up before the logarithm; otherwise each column has a weight of its own.
    table
        Vectors.
    target_sum
        See `log_normalised`.
    progress
        A progress bar that counts cells.
    """
    columns = np.asarray(match.columns, dtype=np.int64)
    merged = _places(columns) if match.duplicates == "sum" else np.arange(len(columns))
    row_of_place = np.full(int(merged.max(initial=-1)) + 1, -1, dtype=np.int64)
    row_of_place[merged] = columns
    here = row_of_place >= 0
    vectors = np.nan_to_num(table.rows(row_of_place[here]))
    found: list[tuple[NDArray[Any], ...]] = []
    for block in blocks:
        weights = log_normalised(block, target_sum, merged)
        with_vector = weights[:, here]
        known = sparse.csr_array((block.data, block.indices, block.indptr), shape=(block.n_cells, len(columns)))
        found.append(
            (
                (with_vector @ vectors).astype(np.float32),
                _row_sums(weights),
                _row_sums(with_vector),
                _row_sums(known),
                _row_sums(known[:, columns >= 0]),
            )
        )
        if progress is not None:
            progress.update(block.n_cells)
    if not found:
        none = np.zeros(0)
        return WeightedSums(np.zeros((0, table.width), np.float32), len(columns), none, none, none, none)
    sums, *rest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return WeightedSums(sums, len(columns), *rest)


def _places(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """One place per gene, and one for each column without."""
    own = np.where(columns >= 0, columns, columns.max(initial=0) + 1 + np.arange(len(columns)))
    return np.unique(own, return_inverse=True)[1].astype(np.int64)


def _unit(sums: WeightedSums) -> NDArray[np.floating[Any]]:
    return np.linalg.norm(sums.vectors.astype(np.float64), axis=1)


SCALES: Mapping[str, Any] = {
    "unit": _unit,
    "n_genes": lambda sums: np.full(len(sums.vectors), float(max(sums.n_columns, 1))),
    "weights": lambda sums: sums.weights,
    "matched_weights": lambda sums: sums.matched,
}
"""By what a cell's sum is divided: its length, the number of columns, the sum of the weights of all or of matched ones."""


def scaled(sums: WeightedSums, scale: str) -> NDArray[np.float32]:
    """The sums divided as `SCALES` names it; a sum of zero stays zero."""
    divisor = SCALES[scale](sums)
    out: NDArray[np.float32] = (sums.vectors / np.where(divisor > 0, divisor, 1.0)[:, None]).astype(np.float32)
    return out
