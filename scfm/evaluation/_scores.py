"""What does a score consist of? Sums over cells and a function of the sums.

Whatever is a function of sums over cells (a mean, an F1, a mutual information) can be drawn again by weighing the
cells, without computing neighbours or classifiers again. Every score of the report is of that form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Reduce = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Score:
    """A number that is a function of sums over cells.

    Parameters
    ----------
    cells
        (n, p) what each cell adds to p sums; cells that do not take part have empty rows.
    reduce
        (..., p) sums to (...) values; NaN where the sums define none.
    """

    cells: sp.csr_matrix
    reduce: Reduce

    @cached_property
    def value(self) -> float:
        """The score itself."""
        return float(self.reduce(np.asarray(self.cells.sum(axis=0), dtype=np.float64).ravel()))

    @property
    def n(self) -> int:
        """Number of cells that take part."""
        return int((np.diff(self.cells.indptr) > 0).sum())


def mean_of_cells(values: Floats, used: NDArray[np.bool_] | None = None) -> Score:
    """Mean over the cells.

    Parameters
    ----------
    values
        (n,)
    used
        (n,) cells that take part; None: all.
    """
    return mean_of_groups(values, np.zeros(len(values), dtype=np.int64), used)


def mean_of_groups(values: Floats, group: Codes, used: NDArray[np.bool_] | None = None) -> Score:
    """Mean over groups of the mean over a group's cells: every group counts alike."""
    n_groups = int(group.max()) + 1 if len(group) else 1
    return ratio_of_groups(values, np.ones(len(values)), group, n_groups, used)


def ratio_of_groups(
    above: Floats, below: Floats, group: Codes, n_groups: int, used: NDArray[np.bool_] | None = None
) -> Score:
    """Mean over groups of one sum divided by another.

    Parameters
    ----------
    above, below
        (n,) what is summed up above and below the line.
    group
        (n,) codes.
    n_groups
        Number of codes.
    used
        (n,) cells that take part; None: all.
    """
    rows = np.flatnonzero(np.ones(len(above), dtype=bool) if used is None else used)
    place = np.concatenate([group[rows], group[rows] + n_groups])
    data = np.concatenate([above[rows], below[rows]]).astype(np.float64)
    cells = sp.csr_matrix((data, (np.concatenate([rows, rows]), place)), shape=(len(above), 2 * n_groups))
    return Score(cells, _mean_of_ratios)


def _mean_of_ratios(sums: Floats) -> Floats:
    half = sums.shape[-1] // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return _nanmean(sums[..., :half] / np.where(sums[..., half:] != 0, sums[..., half:], np.nan))


def _nanmean(x: Floats) -> Floats:
    there = np.isfinite(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, x, 0).sum(axis=-1) / there.sum(axis=-1)


def table_score(
    rows: Codes, columns: Codes, reduce: Reduce, used: NDArray[np.bool_] | None = None, n_rows: int | None = None
) -> Score:
    """A score of a contingency table, such as labels against clusters or truth against prediction.

    Parameters
    ----------
    rows, columns
        (n,) codes; column -1 (no prediction) becomes a column of its own, the last.
    reduce
        (..., R, C) tables to (...) values; C is at least R + 1 with ``n_rows``.
    used
        (n,) cells that take part; None: all.
    n_rows
        Number of row codes; None: as they occur.
    """
    r = n_rows or int(rows.max()) + 1
    c = max(r, int(columns.max()) + 1) + 1
    kept = np.flatnonzero(np.ones(len(rows), dtype=bool) if used is None else used)
    place = rows[kept] * c + np.where(columns[kept] < 0, c - 1, columns[kept])
    cells = sp.csr_matrix((np.ones(len(kept)), (kept, place)), shape=(len(rows), r * c))
    return Score(cells, lambda sums: reduce(sums.reshape(*sums.shape[:-1], r, c)))


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of several scores of the same cells."""
    return combined(scores, _nanmean)


def difference(first: Score, second: Score) -> Score:
    """First minus second, on the same cells."""
    return combined([first, second], lambda both: both[..., 0] - both[..., 1])


def combined(scores: Sequence[Score], function: Reduce) -> Score:
    """A function of several scores of the same cells.

    Parameters
    ----------
    scores
        Each with (n, p_i) cells.
    function
        (..., number of scores) to (...).
    """
    ends = np.cumsum([s.cells.shape[1] for s in scores])[:-1]

    def reduce(sums: Floats) -> Floats:
        parts = np.split(sums, ends, axis=-1)
        return function(np.stack([s.reduce(part) for s, part in zip(scores, parts, strict=True)], axis=-1))

    return Score(sp.hstack([s.cells for s in scores], format="csr"), reduce)


def macro_f1(table: Floats) -> Floats:
    """Macro F1 of (..., truth, predicted) tables over the classes that occur as truth.

    F1 of a class is 2 TP / (2 TP + FP + FN), 0 where nothing of it was found; as scikit-learn's ``f1_score`` with
    ``average="macro"`` and ``labels`` the classes of the truth.
    """
    n = table.shape[-2]
    hits = np.diagonal(table, axis1=-2, axis2=-1)[..., :n]
    truth = table.sum(axis=-1)
    found = table.sum(axis=-2)[..., :n]
    with np.errstate(invalid="ignore", divide="ignore"):
        return _nanmean(np.where(truth > 0, 2 * hits / (truth + found), np.nan))


def balanced_accuracy(table: Floats) -> Floats:
    """Mean over classes of the share of a class that was found (..., truth, predicted)."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)[..., : table.shape[-2]]
    truth = table.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _nanmean(np.where(truth > 0, hits / truth, np.nan))


def normalised_mutual_information(table: Floats) -> Floats:
    """2 I(A; B) / (H(A) + H(B)) of (..., A, B) tables; 1 for two equal partitions, 0 for independent ones."""
    n = table.sum(axis=(-2, -1), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = table / n
        joint = _entropy(p.reshape(*p.shape[:-2], -1))
        a, b = _entropy(p.sum(axis=-1)), _entropy(p.sum(axis=-2))
        return np.where(a + b > 0, 2 * (a + b - joint) / (a + b), 1.0)


def _entropy(p: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=-1)


def adjusted_rand(table: Floats) -> Floats:
    """Adjusted Rand index of (..., A, B) tables (Hubert and Arabie 1985, J. Classification 2:193, eq. 5)."""
    n = table.sum(axis=(-2, -1))
    both = _pairs(table).sum(axis=(-2, -1))
    rows, columns = _pairs(table.sum(axis=-1)).sum(axis=-1), _pairs(table.sum(axis=-2)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = rows * columns / np.maximum(_pairs(n), 1)
        most = (rows + columns) / 2
        return np.where(most != expected, (both - expected) / (most - expected), 1.0)


def _pairs(n: Any) -> Any:
    return n * (n - 1) / 2
