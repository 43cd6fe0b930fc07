"""Metrics of scib-metrics, where that is installed; without it they are absent, not written anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from scfm.evaluation._neighbours import nearest
from scfm.evaluation._space import Space

EXTRA = "pip install 'scfm[scib]'"
N_NEIGHBORS = 90
"""Neighbours of LISI and kBET in scIB."""


def is_here() -> bool:
    """Whether scib-metrics is installed."""
    return find_spec("scib_metrics") is not None


def library() -> str:
    """Name and version of what computes these metrics, or that it is missing."""
    return f"scib-metrics {version('scib-metrics')}" if is_here() else "scib-metrics is not installed"


def _neighbours(space: Space) -> Any:
    """Neighbours as scib-metrics wants them: each cell its own first one."""
    from scib_metrics.nearest_neighbors import NeighborsResults

    rows, distances = nearest(space.x, None, min(N_NEIGHBORS, len(space.x) - 1) - 1)
    own = np.arange(len(rows))[:, None]
    return NeighborsResults(np.hstack([own, rows]), np.hstack([np.zeros((len(rows), 1)), distances]))


def ilisi(space: Space) -> float:
    """Local inverse Simpson index of the batch."""
    import scib_metrics

    return float(scib_metrics.ilisi_knn(_neighbours(space), space.design.batch))


def clisi(space: Space) -> float:
    """Local inverse Simpson index of the label, turned round."""
    import scib_metrics

    return float(scib_metrics.clisi_knn(_neighbours(space), space.design.label))


def kbet(space: Space) -> float:
    """Acceptance rate of the k-nearest-neighbour batch effect test, per label."""
    import scib_metrics

    return float(scib_metrics.kbet_per_label(_neighbours(space), space.design.batch, space.design.label))


def bras(space: Space) -> float:
    """Batch removal adapted silhouette."""
    import scib_metrics

    return float(scib_metrics.bras(space.x, space.design.label, space.design.batch))


def pcr(space: Space) -> float:
    """How much less of the variance the batch explains than before the embedding."""
    import scib_metrics

    if space.raw is None:
        return float("nan")
    return float(scib_metrics.pcr_comparison(space.raw, space.x, space.design.batch, categorical=True))


FUNCTIONS: Mapping[str, Callable[[Space], float]] = {
    "clisi": clisi,
    "ilisi": ilisi,
    "bras": bras,
    "kbet": kbet,
    "pcr": pcr,
}
