"""Which name does a cell get, if any, and why not? From probabilities and distances to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.annotation._calibration import Floats, Rejection

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rule:
    """What is known, and when a cell is not.

    Parameters
    ----------
    classes
        K names.
    thresholds
        (K + 1,) see `Rejection.thresholds`; infinite: nothing is rejected.
    groups
        Inner nodes of the tree of labels and the classes below each, most specific first.
    min_genes
        Cells with fewer expressed genes are unknown.
    """

    classes: tuple[str, ...]
    thresholds: Floats
    groups: Mapping[str, frozenset[str]]
    min_genes: int = 0


@dataclass(frozen=True, eq=False)
class Decision:
    """What is said of each cell.

    Parameters
    ----------
    labels
        (n,) a class, an inner node of the tree of labels, or ``"unknown"``.
    score
        (n,) calibrated probability of the likeliest class, or of the inner node; NaN where nothing is known.
    margin
        (n,) probability of the likeliest class minus that of the next.
    novelty
        (n,) rejection score, see `Rejection`.
    reason
        (n,) why a cell is unknown or has the name of an inner node; empty for the others.
    """

    labels: NDArray[Any]
    score: NDArray[np.float32]
    margin: NDArray[np.float32]
    novelty: NDArray[np.float32]
    reason: NDArray[Any]


def decide(
    proba: Floats,
    distance: Mapping[str, Floats],
    rejection: Rejection,
    rule: Rule,
    n_genes: NDArray[np.int64] | None,
) -> Decision:
    """Names for cells.

    Parameters
    ----------
    proba
        (n, K) calibrated; NaN rows for cells of which nothing is known.
    distance
        (n,) in each view.
    rejection
        Of the annotator.
    rule
        What is rejected.
    n_genes
        (n,) expressed genes; None: not counted.
    """
    n = len(proba)
    if not n:
        nothing, none = np.zeros(0, np.float32), np.zeros(0, object)
        return Decision(none, nothing, nothing, nothing, none)
    empty = np.asarray(np.isnan(proba).any(axis=1))
    p = np.where(empty[:, None], 1 / proba.shape[1], proba)
    order = np.argsort(-p, axis=1, kind="stable")
    every = np.arange(n)
    best, second = order[:, 0], order[:, min(1, p.shape[1] - 1)]
    top = p[every, best]
    margin = top - p[every, second] if p.shape[1] > 1 else np.ones(n)
    far = np.nan_to_num(rejection.far(distance, n) / 2, nan=np.inf)
    score = (1 - top) + far
    limit = rule.thresholds[best]
    labels = np.array(rule.classes, dtype=object)[best]
    reason = np.full(n, "", dtype=object)
    rejected = score > limit
    too_far = rejected & (far >= 1 - top)
    reason[too_far] = "too far from the reference"
    for i in np.flatnonzero(rejected & ~too_far):
        reason[i] = f"ambiguous between {rule.classes[best[i]]} and {rule.classes[second[i]]}"
    labels[rejected] = UNKNOWN
    confidence = top.copy()
    if rule.groups:
        _back_off(np.flatnonzero(rejected & ~too_far), p, best, far, limit, rule, labels, confidence)
    few = empty if n_genes is None else empty | (n_genes < rule.min_genes)
    labels[few] = UNKNOWN
    reason[few] = "too few genes"
    confidence[empty] = margin[empty] = score[empty] = np.nan
    return Decision(labels, confidence.astype(np.float32), margin.astype(np.float32), score.astype(np.float32), reason)


def _back_off(
    rows: NDArray[np.int64],
    p: Floats,
    best: NDArray[np.int64],
    far: Floats,
    limit: Floats,
    rule: Rule,
    labels: NDArray[Any],
    confidence: Floats,
) -> None:
    """The most specific node above the likeliest class that is sure enough, by the threshold of that class."""
    place = {name: i for i, name in enumerate(rule.classes)}
    for name, below in rule.groups.items():
        members: Sequence[int] = [place[label] for label in below if label in place]
        if len(members) < 2:
            continue
        left = rows[labels[rows] == UNKNOWN]
        here = left[np.isin(best[left], members)]
        together = p[np.ix_(here, members)].sum(axis=1)
        sure = (1 - together) + far[here] <= limit[here]
        labels[here[sure]] = name
        confidence[here[sure]] = together[sure]
