"""Which cells hang together? Clusterings to compare with labels."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.evaluation._scores import Codes, normalised_mutual_information, table_score
from scfm.evaluation._space import Space

RESOLUTIONS = tuple(np.round(np.geomspace(0.1, 3.0, 10), 3))
N_GRAPH = 15
"""Neighbours of the graph that is cut by Leiden."""


def igraph_is_here() -> bool:
    """Whether igraph is installed."""
    return find_spec("igraph") is not None


def kmeans(x: NDArray[Any], n_clusters: int, seed: int) -> Codes:
    """Cluster of each cell by k-means (scikit-learn, the best of five starts).

    Parameters
    ----------
    x
        (n, d)
    n_clusters
        At most n.
    seed
        Of the starts.
    """
    from sklearn.cluster import KMeans

    found = KMeans(min(n_clusters, len(x)), n_init=5, random_state=seed).fit_predict(x)
    return np.asarray(found, dtype=np.int64)


def best_leiden(space: Space) -> Codes:
    """The Leiden clustering, among `RESOLUTIONS`, with the highest NMI with the labels.

    The graph is the union of the 15 nearest neighbours of each cell, unweighted; modularity is maximised.
    """
    import igraph

    rows, _distances = space.neighbours
    rows = rows[:, :N_GRAPH]
    edges = np.stack([np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()], axis=1)
    graph = igraph.Graph(n=len(rows), edges=np.unique(np.sort(edges, axis=1), axis=0))
    best, score = np.zeros(len(rows), dtype=np.int64), -1.0
    igraph.set_random_number_generator(random.Random(space.seed))
    try:
        for resolution in RESOLUTIONS:
            parts = graph.community_leiden("modularity", resolution=resolution, n_iterations=2)
            clusters = np.asarray(parts.membership, dtype=np.int64)
            agreement = table_score(space.design.label, clusters, normalised_mutual_information).value
            if agreement > score:
                best, score = clusters, agreement
    finally:
        igraph.set_random_number_generator(random)
    return best
