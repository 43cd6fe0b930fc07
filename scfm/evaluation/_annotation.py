"""How good is an annotation? Scores of names and of the confidence in them, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from scfm.errors import ConfigError
from scfm.evaluation._scores import (
    Codes,
    Floats,
    Score,
    balanced_accuracy,
    macro_f1,
    mean_of_cells,
    table_score,
)
from scfm.evaluation._statistics import LEVEL, Resampling, interval, resample_cells, resample_groups
from scfm.ontology import Ontology

UNKNOWN = "unknown"
MIN_CELLS = 20
"""Classes with fewer cells stand outside macro F1 and balanced accuracy."""
N_BINS = 15
"""Of confidence, equally wide."""
N_BOOT = 1000


@dataclass(frozen=True, eq=False, repr=False)
class AnnotationScores:
    """What `annotation_scores` found; prints as a table.

    Parameters
    ----------
    table
        A row per score: ``value`` and the ends ``low`` and ``high`` of its interval.
    per_class
        A row per true class: cells, precision, recall, F1, share called unknown, and whether it counts in macro F1.
    confusion
        True classes by given names, numbers of cells.
    curve
        Coverage and risk: the share of cells that are named, most confident first, and the share of wrong names among
        them.
    reliability
        A row per bin of confidence: cells, mean confidence, share of right names.
    over
        What the intervals are over: ``"cells"`` or ``"groups"``.
    """

    table: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    curve: pd.DataFrame
    reliability: pd.DataFrame
    over: str

    def __getitem__(self, name: str) -> float:
        return float(self.table["value"][name])

    def __repr__(self) -> str:
        return f"{self.table.round(3).to_string()}\n\n{self.per_class.round(3).to_string()}"

    def to_dict(self) -> dict[str, Any]:
        """Scores and the table of classes as plain types."""
        return {
            "scores": {name: row.to_dict() for name, row in self.table.iterrows()},
            "per_class": {
                "class": [*map(str, self.per_class.index)],
                **{c: self.per_class[c].tolist() for c in self.per_class},
            },
            "intervals_over": self.over,
        }


def annotation_scores(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    proba: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    *,
    novelty: ArrayLike | None = None,
    ontology: Ontology | Mapping[str, Any] | str | Path | None = None,
    groups: ArrayLike | None = None,
    min_cells: int = MIN_CELLS,
    n_boot: int = N_BOOT,
    level: float = LEVEL,
    seed: int = 0,
) -> AnnotationScores:
    """Score the names that cells were given.

    Parameters
    ----------
    y_true
        (n,) true names. Names outside ``classes`` are of new types: they count in ``novelty AUROC`` and
        ``unknown among new`` only.
    y_pred
        (n,) given names; ``"unknown"`` is wrong for a cell of a known class.
    proba
        (n, K) probabilities; NaN rows count as no confidence.
    classes
        K names of the columns of ``proba``; None: all true names are known.
    novelty
        (n,) how new a cell looks; None: 1 minus the largest probability.
    ontology
        What names are kinds of, for the F1 that gives credit to a broader name.
    groups
        (n,) donor of each cell, to be drawn as a whole; None: cells are drawn within classes.
    min_cells
        Classes with fewer cells stand outside the means over classes.
    n_boot, level, seed
        Bootstrap replicates, nominal coverage, and seed of the draws.

    Returns
    -------
    AnnotationScores
        With the scores

        - ``accuracy``, ``macro F1``, ``balanced accuracy`` of known cells;
        - ``coverage``: share of known cells that are not unknown, and ``accuracy when named``;
        - ``tolerant F1``: hierarchical F1, over the sets of a name and everything it is a kind of (Kiritchenko et al.
          2005), micro-averaged; nodes above all true names are left out, so that a name that says nothing earns nothing;
        - ``ECE``: mean over 15 bins of confidence of its absolute difference from accuracy, weighed by cells (Guo et al.
          2017), of the likeliest classes before any rejection;
        - ``AURC``: area under the coverage-risk curve (Geifman and El-Yaniv 2017), 0 the best;
        - ``novelty AUROC`` and ``unknown among new``, where there are cells of new types.

    Raises
    ------
    ConfigError
        If the lengths differ, or there is no cell.

    Examples
    --------
    >>> scores = annotation_scores(["T", "T", "B"], ["T", "B", "B"], min_cells=1, n_boot=10)
    >>> round(scores["accuracy"], 3)
    0.667
    """
    true, pred = _names(y_true, "y_true"), _names(y_pred, "y_pred")
    p, known_names = _probabilities(proba, classes, true)
    for name, values in (("y_pred", pred), ("proba", p), ("novelty", novelty), ("groups", groups)):
        if values is not None and len(np.asarray(values)) != len(true):
            raise ConfigError(
                f"y_true has {len(true):,} cells, {name} has {len(np.asarray(values)):,}; they must match"
            )
    known = np.isin(true, known_names)
    if not known.any():
        raise ConfigError(
            f"no true name is among the classes ({', '.join(known_names[:5])}); map the names of one side to the other's"
        )
    names = np.unique(np.concatenate([true[known], pred[pred != UNKNOWN]]))
    t, y = _codes(true, names), _codes(pred, names)
    sizes = np.bincount(t[known], minlength=len(names))
    counted = sizes >= min_cells
    if not counted.any():
        counted = sizes > 0
    parts: dict[str, Score | _Weighted] = {
        "accuracy": mean_of_cells((t == y).astype(np.float64), known),
        "macro F1": table_score(t, y, _of(counted, macro_f1), known, len(names)),
        "balanced accuracy": table_score(t, y, _of(counted, balanced_accuracy), known, len(names)),
        "coverage": mean_of_cells((pred != UNKNOWN).astype(np.float64), known),
        "accuracy when named": mean_of_cells((t == y).astype(np.float64), known & (pred != UNKNOWN)),
    }
    if ontology is not None:
        parts["tolerant F1"] = _hierarchical(true, pred, known, Ontology.of(ontology))
    curve, reliability = pd.DataFrame(), pd.DataFrame()
    if p is not None:
        confidence = np.nan_to_num(p.max(axis=1))
        right = np.asarray(known_names)[np.nan_to_num(p).argmax(axis=1)] == true
        parts["ECE"] = _ece(confidence, right, known)
        parts["AURC"] = _Weighted(known, lambda w: _aurc(confidence, right, w))
        curve = _curve(confidence[known], right[known])
        reliability = _reliability(confidence[known], right[known])
        novelty = 1 - confidence if novelty is None else novelty
    if novelty is not None and not known.all():
        newness = np.nan_to_num(np.asarray(novelty, dtype=np.float64), nan=np.inf)
        parts["novelty AUROC"] = _Weighted(np.ones(len(true), bool), lambda w: _auroc(newness, ~known, w))
    if not known.all():
        parts["unknown among new"] = mean_of_cells((pred == UNKNOWN).astype(np.float64), ~known)
    stratum = np.where(known, t, len(names)).astype(np.int64)
    draws = _resampling(groups, stratum, n_boot, seed)
    rows = {name: _with_interval(part, draws, level) for name, part in parts.items()}
    per_class = _per_class(t, y, known, pred, names, counted)
    confusion = pd.crosstab(pd.Series(true, name="true"), pd.Series(pred, name="given"))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
    return AnnotationScores(table, per_class, confusion, curve, reliability, draws.over)


@dataclass(frozen=True, eq=False)
class _Weighted:
    """A score that depends on the order of cells: a function of the weights (n,) of cells."""

    used: NDArray[np.bool_]
    function: Callable[[Floats], float]

    @property
    def value(self) -> float:
        return self.function(self.used.astype(np.float64))

    def replicates(self, draws: Resampling) -> Floats:
        return np.array([self.function(w[draws.unit] * self.used) for w in draws.weights.astype(np.float64)])


def _with_interval(part: Score | _Weighted, draws: Resampling, level: float) -> tuple[float, float, float]:
    replicates = part.replicates(draws) if isinstance(part, _Weighted) else draws.replicates(part)
    return (part.value, *interval(replicates, draws.n_units, level))


def _resampling(groups: ArrayLike | None, stratum: Codes, n_boot: int, seed: int) -> Resampling:
    if groups is None:
        return resample_cells(stratum, n_boot, seed)
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].ravel()
    return resample_groups(codes, np.zeros(len(codes), dtype=np.int64), n_boot, seed)


def _names(values: ArrayLike, what: str) -> NDArray[Any]:
    names = np.asarray(values).astype(str)
    if names.ndim != 1 or not len(names):
        raise ConfigError(f"{what} has shape {names.shape}; a sequence of one name per cell is needed")
    return names


def _probabilities(
    proba: ArrayLike | None, classes: Sequence[str] | None, true: NDArray[Any]
) -> tuple[Floats | None, list[str]]:
    if proba is None:
        return None, [*map(str, np.unique(true) if classes is None else classes)]
    p = np.asarray(proba, dtype=np.float64)
    if p.ndim != 2 or classes is None or p.shape[1] != len(classes):
        found = "no classes" if classes is None else f"{len(classes)} classes"
        raise ConfigError(f"proba has shape {p.shape} and there are {found}; pass the name of each column as classes=")
    return p, [*map(str, classes)]


def _codes(values: NDArray[Any], names: NDArray[Any]) -> Codes:
    place = np.searchsorted(names, values)
    place[place == len(names)] = 0
    return np.where(names[place] == values, place, -1).astype(np.int64)


def _of(counted: NDArray[np.bool_], reduce: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """A mean over some of the true classes: what is given to cells of the others still counts as given."""

    def function(table: Floats) -> Floats:
        order = np.concatenate([np.flatnonzero(counted), np.flatnonzero(~counted)])
        last = np.arange(len(counted), table.shape[-1])
        moved = table[..., order, :][..., np.concatenate([order, last])]
        n = int(counted.sum())
        if reduce is macro_f1:
            return _macro_f1_of_first(moved, n)
        return reduce(moved[..., :n, :])

    return function


def _macro_f1_of_first(table: Floats, n: int) -> Floats:
    """Macro F1 over the first n classes; false positives may come from all rows."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)[..., :n]
    below = table.sum(axis=-1)[..., :n] + table.sum(axis=-2)[..., :n]
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(table.sum(axis=-1)[..., :n] > 0, 2 * hits / below, np.nan)
    return np.asarray(np.nanmean(f1, axis=-1))


def _hierarchical(true: NDArray[Any], pred: NDArray[Any], known: NDArray[np.bool_], tree: Ontology) -> Score:
    labels = [*np.unique(true[known])]
    above = {name: tree.ancestors(name) for name in {*labels, *np.unique(pred)} - {UNKNOWN}}
    empty = set.intersection(*(above[name] for name in labels)) if len(labels) > 1 else set()
    above = {name: nodes - empty for name, nodes in above.items()}
    pairs, which = np.unique(np.stack([true, pred]), axis=1, return_inverse=True)
    sums = np.zeros((pairs.shape[1], 3))
    for i, (t, y) in enumerate(pairs.T):
        a, b = above.get(t, set()), above.get(y, set())
        sums[i] = len(a & b), len(a), len(b)
    cells = sp.csr_matrix(sums[which.ravel()] * known[:, None])

    def f1(s: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2 * s[..., 0] / (s[..., 1] + s[..., 2])

    return Score(cells, f1)


def _bins(confidence: Floats) -> Codes:
    return np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)


def _ece(confidence: Floats, right: NDArray[np.bool_], known: NDArray[np.bool_]) -> Score:
    rows = np.flatnonzero(known)
    place = np.concatenate([_bins(confidence)[rows], _bins(confidence)[rows] + N_BINS])
    data = np.concatenate([confidence[rows] - right[rows], np.ones(len(rows))])
    cells = sp.csr_matrix((data, (np.concatenate([rows, rows]), place)), shape=(len(known), 2 * N_BINS))
    return Score(cells, lambda s: np.abs(s[..., :N_BINS]).sum(-1) / np.maximum(s[..., N_BINS:].sum(-1), 1e-12))


def _aurc(confidence: Floats, right: NDArray[np.bool_], weights: Floats) -> float:
    order = np.argsort(-confidence, kind="stable")
    w = weights[order]
    total = np.cumsum(w)
    if not len(w) or total[-1] <= 0:
        return float("nan")
    risk = np.cumsum(w * ~right[order]) / np.maximum(total, 1e-12)
    return float((risk * w).sum() / total[-1])


def _auroc(score: Floats, new: NDArray[np.bool_], weights: Floats) -> float:
    values, codes = np.unique(score, return_inverse=True)
    positive = np.bincount(codes.ravel(), weights * new, len(values))
    negative = np.bincount(codes.ravel(), weights * ~new, len(values))
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / total) if total > 0 else float("nan")


def _curve(confidence: Floats, right: NDArray[np.bool_]) -> pd.DataFrame:
    order = np.argsort(-confidence, kind="stable")
    n = np.arange(1, len(order) + 1)
    risk = np.cumsum(~right[order]) / n
    kept = np.unique(np.linspace(0, len(n) - 1, min(len(n), 200)).astype(int))
    return pd.DataFrame({"coverage": (n / len(n))[kept], "risk": risk[kept]})


def _reliability(confidence: Floats, right: NDArray[np.bool_]) -> pd.DataFrame:
    table = pd.DataFrame({"bin": _bins(confidence), "confidence": confidence, "accuracy": right.astype(float)})
    grouped = table.groupby("bin")
    return grouped.mean().assign(n=grouped.size())[["n", "confidence", "accuracy"]]


def _per_class(
    t: Codes, y: Codes, known: NDArray[np.bool_], pred: NDArray[Any], names: NDArray[Any], counted: NDArray[np.bool_]
) -> pd.DataFrame:
    rows = {}
    for i in np.unique(t[known]):
        own, given = known & (t == i), known & (y == i)
        hits = int((own & given).sum())
        precision = hits / given.sum() if given.any() else np.nan
        rows[names[i]] = {
            "cells": int(own.sum()),
            "precision": precision,
            "recall": hits / own.sum(),
            "F1": 2 * hits / (own.sum() + given.sum()),
            "unknown": float((pred[own] == UNKNOWN).mean()),
            "counted": bool(counted[i]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")
