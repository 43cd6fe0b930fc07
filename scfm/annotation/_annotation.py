"""The names of some cells, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scfm.annotation._decide import UNKNOWN
from scfm.errors import ConfigError


@dataclass(frozen=True, eq=False, repr=False)
class Annotation:
    """What an annotator says of n cells.

    Parameters
    ----------
    labels
        (n,) names; ``"unknown"`` where the reference has no such cell.
    score
        (n,) calibrated probability of the name, of the likeliest class for unknown cells; NaN where nothing is known.
    margin
        (n,) probability of the likeliest class minus that of the next.
    novelty
        (n,) how little a cell looks like the reference: 1 minus the probability, plus half the distance as a multiple of
        the reference's edge.
    reason
        (n,) why a cell is unknown or has the name of a group of classes; empty for the others.
    proba
        (n, K) calibrated probabilities.
    classes
        K names.
    facts
        How it came about.
    """

    labels: NDArray[Any]
    score: NDArray[np.float32]
    margin: NDArray[np.float32]
    novelty: NDArray[np.float32]
    reason: NDArray[Any]
    proba: NDArray[np.float32]
    classes: tuple[str, ...]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        names, sizes = np.unique(self.labels.astype(str), return_counts=True)
        shown = ", ".join(f"{n} {k:,}" for n, k in sorted(zip(names, sizes, strict=True), key=lambda x: -x[1])[:8])
        return f"Annotation({len(self):,} cells by {self.facts.get('method', 'a model')}: {shown})"

    @property
    def categories(self) -> list[str]:
        """Names in use or possible: classes, groups of classes that were used, and ``"unknown"``."""
        others = sorted(set(self.labels.tolist()) - {*self.classes, UNKNOWN})
        return [*self.classes, *others, UNKNOWN]

    def to_frame(self, index: pd.Index | None = None) -> pd.DataFrame:
        """A row per cell: label, score, margin, novelty, reason."""
        return pd.DataFrame(
            {
                "label": pd.Categorical(self.labels, categories=self.categories),
                "score": self.score,
                "margin": self.margin,
                "novelty": self.novelty,
                "reason": pd.Categorical(self.reason),
            },
            index=index,
        )


def voted(labels: NDArray[Any], groups: NDArray[Any] | csr_matrix) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Majority label of each cell's cluster or neighbourhood.

    Parameters
    ----------
    labels
        (n,)
    groups
        (n,) cluster of each cell, or an (n, n) graph whose weights are votes; a cell votes in its own neighbourhood.

    Returns
    -------
    (n,) labels, the cell's own where votes are equal, and (n,) share of the votes for them.
    """
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    n = len(labels)
    own = csr_matrix((np.ones(n), (np.arange(n), codes.ravel())), shape=(n, len(names)))
    if isinstance(groups, csr_matrix):
        votes = (groups + csr_matrix((np.full(n, max(groups.max(), 1e-12)), (range(n), range(n))), shape=(n, n))) @ own
        votes = votes.toarray()
    else:
        clusters = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].ravel()
        member = csr_matrix((np.ones(n), (clusters, np.arange(n))))
        votes = np.asarray((member @ own).todense())[clusters]
    best = (votes + 1e-9 * own.toarray()).argmax(axis=1)
    share = votes[np.arange(n), best] / np.maximum(votes.sum(axis=1), 1e-12)
    return names[best].astype(object), share.astype(np.float32)


def smoothed(annotation: Annotation, groups: NDArray[Any] | csr_matrix) -> tuple[Annotation, NDArray[np.float32]]:
    """The annotation with majority labels, and (n,) share of the votes for each.

    Raises
    ------
    ConfigError
        If there is not one group, or row of a graph, per cell.
    """
    if groups.shape[0] != len(annotation):
        raise ConfigError(f"{groups.shape[0]:,} groups for {len(annotation):,} cells; one per cell is needed")
    if not len(annotation):
        return annotation, np.zeros(0, np.float32)
    labels, share = voted(annotation.labels, groups)
    changed = labels != annotation.labels
    reason = annotation.reason.copy()
    reason[changed] = "the majority around it"
    reason[changed & (labels == UNKNOWN)] = "unknown are the majority around it"
    return replace(annotation, labels=labels, reason=reason), share
