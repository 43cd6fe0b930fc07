"""Can labels be carried over? From one assay to another, and within one for comparison."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.evaluation._neighbours import nearest
from scfm.evaluation._scores import Codes, Floats, Score, macro_f1, table_score
from scfm.evaluation._space import Space

N_VOTES = 15
"""Neighbours that vote."""
N_SEARCHED = 45
"""Neighbours that are looked at, so that 15 of other folds are among them (fewer with a chance of 1 in a billion)."""
N_FOLDS = 5
MIN_CELLS = 10
"""Cells of a label that both sides of a pair must have."""
MOST_BATCHES = 6
"""With more batches only the pairs of the largest ones are computed."""

Vectors = NDArray[np.float32]
Predict = Callable[[Vectors, Codes, Vectors], Codes]


def knn_labels(reference: Vectors, labels: Codes, query: Vectors, n_neighbors: int = N_VOTES) -> Codes:
    """Majority label of the nearest reference cells; ties go to the closer ones.

    Parameters
    ----------
    reference, query
        (r, d) and (q, d) vectors as they are compared; NaN rows of the query get -1.
    labels
        (r,) codes.
    n_neighbors
        Neighbours that vote.
    """
    out = np.full(len(query), -1, dtype=np.int64)
    there = np.flatnonzero(~np.isnan(query).any(axis=1))
    if len(there) and len(reference):
        rows, distances = nearest(reference, query[there], n_neighbors)
        out[there] = majority(labels[rows], distances, np.ones(rows.shape, dtype=bool), n_neighbors)
    return out


def majority(labels: Codes, distances: Floats, valid: NDArray[np.bool_], n_votes: int = N_VOTES) -> Codes:
    """Most common label among the first valid neighbours; ties go to the closer ones.

    Parameters
    ----------
    labels, distances
        (q, k) of the neighbours, nearest first.
    valid
        (q, k) neighbours that may vote.
    n_votes
        How many of them do.
    """
    voting = valid & (np.cumsum(valid, axis=1) <= n_votes)
    # the closeness breaks ties only: it adds up to less than half a vote
    weight = voting * (1 + 0.4 / n_votes / (1 + distances))
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weight)
    return np.where(voting.any(axis=1), votes.argmax(axis=1), -1)


@dataclass(frozen=True, eq=False)
class FoldedVotes:
    """Votes of neighbours of other folds, from one search among all cells.

    Parameters
    ----------
    label
        (n,) codes.
    fold
        (n,) fold of each cell.
    """

    label: Codes
    fold: Codes

    @classmethod
    def of(cls, label: Codes, seed: int) -> FoldedVotes:
        """With the folds of `folds`."""
        fold = np.zeros(len(label), dtype=np.int64)
        for number, (_learn, test) in enumerate(folds(label, seed)):
            fold[test] = number
        return cls(label, fold)

    def predict(self, rows: NDArray[np.int64], distances: Floats) -> Codes:
        """Labels of all cells, from their `N_SEARCHED` nearest cells; those of the own fold have no vote."""
        return majority(self.label[rows], distances, self.fold[rows] != self.fold[:, None])


def linear_labels(reference: Vectors, labels: Codes, query: Vectors) -> Codes:
    """Labels by a ridge classifier on standardised axes, classes weighed alike (scikit-learn, alpha 1).

    Parameters
    ----------
    reference, query
        (r, d) and (q, d) vectors; NaN rows of the query get -1.
    labels
        (r,) codes.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = np.full(len(query), -1, dtype=np.int64)
    there = np.flatnonzero(~np.isnan(query).any(axis=1))
    if len(np.unique(labels)) < 2:
        out[there] = labels[0]
        return out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # axes without any variance
        model = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
        out[there] = model.fit(reference.astype(np.float64), labels).predict(query[there].astype(np.float64))
    return out


PREDICTORS: dict[str, Predict] = {"knn": knn_labels, "linear": linear_labels}


def folds(codes: Codes, seed: int, n_folds: int = N_FOLDS) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Stratified splits: rows to learn from, and rows to test on."""
    from sklearn.model_selection import StratifiedKFold

    n = min(n_folds, int(np.bincount(codes)[np.unique(codes)].min()))
    return StratifiedKFold(max(n, 2), shuffle=True, random_state=seed).split(codes, codes)


def cross_validated(predict: Predict, x: Vectors, codes: Codes, seed: int) -> Codes:
    """Prediction for every cell from the cells of the other folds.

    Parameters
    ----------
    predict
        See `PREDICTORS`.
    x
        (n, d)
    codes
        (n,)
    seed
        Of the folds.
    """
    out = np.full(len(codes), -1, dtype=np.int64)
    for learn, test in folds(codes, seed):
        out[test] = predict(x[learn], codes[learn], x[test])
    return out


@dataclass
class Transfer:
    """Label transfer of one embedding by one classifier, each computed once.

    Parameters
    ----------
    space
        The embedding.
    predict
        Name in `PREDICTORS`.
    """

    space: Space
    predict: str
    _within: dict[tuple[int, tuple[int, ...]], Score] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Ordered pairs of batches (reference, query) that share at least two labels."""
        return [(a, b) for a, b in permutations(largest(self.space.design), 2) if len(self._shared(a, b)) > 1]

    def cross(self, a: int, b: int) -> Score:
        """Macro F1 of the cells of batch ``b`` with batch ``a`` as reference, over the labels that both have."""
        design, shared = self.space.design, self._shared(a, b)
        reference = np.flatnonzero((design.batch == a) & np.isin(design.label, shared))
        query = np.flatnonzero((design.batch == b) & np.isin(design.label, shared))
        predicted = np.full(len(design), -1, dtype=np.int64)
        x = self.space.x
        predicted[query] = PREDICTORS[self.predict](x[reference], design.label[reference], x[query])
        return self._score(predicted, query)

    def within(self, b: int, labels: Codes | None = None) -> Score:
        """Macro F1 within batch ``b`` from the other folds, over some labels; None: those with enough cells."""
        design = self.space.design
        kept = np.flatnonzero(design.table[:, b] >= MIN_CELLS) if labels is None else labels
        key = (b, tuple(kept))
        if key not in self._within:
            rows = np.flatnonzero((design.batch == b) & np.isin(design.label, kept))
            predicted = np.full(len(design), -1, dtype=np.int64)
            if len(rows):
                predicted[rows] = self._in_folds(self.space.x[rows], design.label[rows])
            self._within[key] = self._score(predicted, rows)
        return self._within[key]

    def _in_folds(self, x: Vectors, label: Codes) -> Codes:
        if self.predict == "knn":
            return FoldedVotes.of(label, self.space.seed).predict(*nearest(x, None, N_SEARCHED))
        return cross_validated(PREDICTORS[self.predict], x, label, self.space.seed)

    def reference_of(self, a: int, b: int) -> Score:
        """What `cross` is compared with: transfer within the query's own batch, over the same labels."""
        return self.within(b, self._shared(a, b))

    def _shared(self, a: int, b: int) -> Codes:
        table = self.space.design.table
        return np.flatnonzero((table[:, a] >= MIN_CELLS) & (table[:, b] >= MIN_CELLS))

    def _score(self, predicted: Codes, rows: Any) -> Score:
        used = np.zeros(len(predicted), dtype=bool)
        used[rows] = True
        label = self.space.design.label
        return table_score(label, predicted, macro_f1, used, n_rows=len(self.space.design.labels))


def largest(design: Any) -> NDArray[np.int64]:
    """The batches whose pairs are computed: all, or the largest ones."""
    sizes = design.table.sum(axis=0)
    order = np.argsort(-sizes, kind="stable")[:MOST_BATCHES]
    return np.sort(order[sizes[order] > 0])
