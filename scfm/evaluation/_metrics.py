"""Which metrics are there, what do they compute, and which direction is good? One row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.evaluation import _scib
from scfm.evaluation._clusters import best_leiden, igraph_is_here, kmeans
from scfm.evaluation._neighbours import nearest
from scfm.evaluation._scores import (
    Codes,
    Floats,
    Score,
    adjusted_rand,
    balanced_accuracy,
    combined,
    difference,
    mean_of,
    mean_of_cells,
    mean_of_groups,
    normalised_mutual_information,
    ratio_of_groups,
    table_score,
)
from scfm.evaluation._space import EXTRA, N_NEIGHBORS, Space, silhouettes
from scfm.evaluation._transfer import MIN_CELLS, Transfer, cross_validated, largest, linear_labels

Axis = Literal["bio", "batch", "transfer", "stress", "total"]
Values = Mapping[str, "Score | float"]
MIN_EFFECTIVE = 90
"""Cells of a label whose mixing is looked at by `effective batches`."""


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Parameters
    ----------
    name
        As in the report.
    axis
        What it is about: biology kept, batches mixed, labels carried over.
    better
        ``"higher"`` or ``"lower"``.
    limits
        Worst and best value.
    formula
        In words.
    by
        Library that computes it.
    in_total
        Whether it enters the scIB-style total.
    needs
        ``"labels"``: at least two labels; ``"batches"``: at least two batches.
    extra
        Line that installs what it needs; empty: nothing beside scikit-learn.
    """

    name: str
    axis: Axis
    better: Literal["higher", "lower"]
    limits: tuple[float, float]
    formula: str
    by: str
    in_total: bool
    needs: tuple[Literal["labels", "batches"], ...]
    extra: str = ""

    def holds(self, n_labels: int, n_batches: int) -> bool:
        """Whether there are labels and batches enough."""
        there = {"labels": n_labels > 1, "batches": n_batches > 1}
        return all(there[need] for need in self.needs)


BOTH: tuple[Literal["labels", "batches"], ...] = ("labels", "batches")
BATCHES: tuple[Literal["labels", "batches"], ...] = ("batches",)
_ROWS: tuple[Metric, ...] = (
    Metric(
        "NMI (k-means)", "bio", "higher", (0, 1),
        "2 I / (H + H) of labels and as many k-means clusters", "scikit-learn", True, ("labels",),
    ),
    Metric(
        "ARI (k-means)", "bio", "higher", (0, 1),
        "adjusted Rand index of labels and as many k-means clusters", "scikit-learn", True, ("labels",),
    ),
    Metric(
        "NMI (best Leiden)", "bio", "higher", (0, 1),
        "2 I / (H + H) of labels and the Leiden clusters of the best of ten resolutions", "igraph", False, ("labels",),
        EXTRA,
    ),
    Metric(
        "ARI (best Leiden)", "bio", "higher", (0, 1),
        "adjusted Rand index of labels and the same Leiden clusters", "igraph", False, ("labels",), EXTRA,
    ),
    Metric(
        "label ASW", "bio", "higher", (0, 1),
        "mean of (s + 1) / 2, s the silhouette width of a cell among the labels", "scikit-learn", True, ("labels",),
    ),
    Metric(
        "isolated labels", "bio", "higher", (0, 1),
        "mean of (s + 1) / 2 over the labels that occur in the fewest batches, each label counting alike",
        "scikit-learn", True, BOTH,
    ),
    Metric(
        "cLISI", "bio", "higher", (0, 1),
        "(labels - median local inverse Simpson index of the label) / (labels - 1)", "scib-metrics", True, ("labels",),
        _scib.EXTRA,
    ),
    Metric(
        "iLISI", "batch", "higher", (0, 1),
        "(median local inverse Simpson index of the batch - 1) / (batches - 1)", "scib-metrics", True, BATCHES, _scib.EXTRA,
    ),
    Metric(
        "BRAS", "batch", "higher", (0, 1),
        "batch removal adapted silhouette, within labels", "scib-metrics", True, BATCHES, _scib.EXTRA,
    ),
    Metric(
        "kBET", "batch", "higher", (0, 1),
        "share of neighbourhoods whose batches a chi-squared test accepts, within labels", "scib-metrics", True, BATCHES,
        _scib.EXTRA,
    ),
    Metric(
        "PCR", "batch", "higher", (0, 1),
        "share of the variance explained by the batch that is gone, against log-normalised counts", "scib-metrics",
        True, BATCHES, _scib.EXTRA,
    ),
    Metric(
        "graph connectivity", "batch", "higher", (0, 1),
        "mean over labels of the share of cells in the largest component of the label's part of the kNN graph", "scipy",
        True, BATCHES,
    ),
    Metric(
        "batch ASW", "batch", "higher", (0, 1),
        "mean over labels of 1 - |s|, s the silhouette width of a cell among the batches of its label", "scikit-learn",
        True, BATCHES,
    ),
    Metric(
        "same-batch neighbours", "batch", "lower", (1, 0),
        "excess over expectation: (share - e) / (1 - e) of 30 neighbours of the same label, e as if batches were mixed",
        "scikit-learn", False, BATCHES,
    ),
    Metric(
        "effective batches", "batch", "higher", (0, 1),
        "(1 / sum of squared shares of the batches among 30 neighbours of the same label - 1) / (batches - 1), mean "
        "over labels of several batches with 90 cells", "scikit-learn", False, BATCHES,
    ),
    Metric(
        "batch probe", "batch", "lower", (1, 0),
        "how well a linear classifier tells the batch: (balanced accuracy - chance) / (1 - chance), in folds, at least 0",
        "scikit-learn", False, BATCHES,
    ),
    Metric(
        "kNN within", "transfer", "higher", (0, 1),
        "macro F1 of labels from 15 neighbours of other folds of the same batch, mean over batches", "scikit-learn",
        False, ("labels",),
    ),
    Metric(
        "kNN transfer", "transfer", "higher", (0, 1),
        "macro F1 of labels from 15 neighbours of another batch, every ordered pair", "scikit-learn", False, BOTH,
    ),
    Metric(
        "kNN drop", "transfer", "lower", (1, 0),
        "macro F1 within the query's batch minus that from the other batch", "scikit-learn", False, BOTH,
    ),
    Metric(
        "linear within", "transfer", "higher", (0, 1),
        "macro F1 of labels by a ridge classifier of other folds of the same batch", "scikit-learn", False, ("labels",),
    ),
    Metric(
        "linear transfer", "transfer", "higher", (0, 1),
        "macro F1 of labels by a ridge classifier of another batch, every ordered pair", "scikit-learn", False, BOTH,
    ),
    Metric(
        "linear drop", "transfer", "lower", (1, 0),
        "macro F1 within the query's batch minus that from the other batch", "scikit-learn", False, BOTH,
    ),
    Metric(
        "stressed kNN", "stress", "higher", (0, 1),
        "macro F1 of labels of altered cells from 15 unaltered neighbours of other folds", "scikit-learn", False,
        ("labels",),
    ),
    Metric(
        "drift", "stress", "lower", (1, 0),
        "cosine distance of a cell to itself unaltered, in units of that between two different cells", "scikit-learn",
        False, (),
    ),
    Metric(
        "changed neighbours", "stress", "lower", (1, 0),
        "share of cells whose nearest unaltered other cell is another one than before", "scikit-learn", False, (),
    ),
    Metric(
        "bio total", "total", "higher", (0, 1), "mean of the bio metrics that enter totals, unscaled", "", False,
        ("labels",),
    ),
    Metric(
        "batch total", "total", "higher", (0, 1), "mean of the batch metrics that enter totals, unscaled", "", False, BATCHES,
    ),
    Metric("total", "total", "higher", (0, 1), "0.6 bio total + 0.4 batch total, as in scIB", "", False, BOTH),
)  # fmt: skip
METRICS: Mapping[str, Metric] = {m.name: m for m in _ROWS}


def metric_table() -> pd.DataFrame:
    """Every metric: axis, direction, worst and best value, formula, and the library that computes it.

    Examples
    --------
    >>> import scfm
    >>> scfm.evaluation.metric_table().loc["batch probe", "better"]
    'lower'
    """
    return pd.DataFrame({f.name: [getattr(m, f.name) for m in _ROWS] for f in fields(Metric)}).set_index("name")


def nmi_ari_kmeans(space: Space) -> Values:
    """Labels against as many k-means clusters."""
    return _agreement(space, kmeans(space.x, len(np.unique(space.design.label)), space.seed), "k-means")


def nmi_ari_leiden(space: Space) -> Values:
    """Labels against Leiden clusters of the resolution that fits them best."""
    return _agreement(space, best_leiden(space), "best Leiden")


def _agreement(space: Space, clusters: Codes, how: str) -> Values:
    label, n = space.design.label, len(space.design.labels)
    return {
        f"NMI ({how})": table_score(label, clusters, normalised_mutual_information, n_rows=n),
        f"ARI ({how})": table_score(label, clusters, adjusted_rand, n_rows=n),
    }


def label_asw(space: Space) -> Values:
    """Silhouette of the labels."""
    return {"label ASW": mean_of_cells((space.silhouettes + 1) / 2)}


def isolated_labels(space: Space) -> Values:
    """Silhouette of the labels that occur in the fewest batches."""
    design = space.design
    n_batches = (design.table > 0).sum(axis=1)
    fewest = n_batches[n_batches > 0].min()
    used = (n_batches == fewest)[design.label]
    return {"isolated labels": mean_of_groups((space.silhouettes + 1) / 2, design.label, used)}


def graph_connectivity(space: Space) -> Values:
    """Whether the cells of a label hang together, whatever their batch."""
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    rows, _distances = space.neighbours
    n, k = rows.shape
    graph = sp.csr_matrix((np.ones(n * k), rows.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    inside = np.zeros(n)
    for code in np.unique(space.design.label):
        here = np.flatnonzero(space.design.label == code)
        _n, component = connected_components(graph[here][:, here], directed=False)
        inside[here] = component == np.bincount(component).argmax()
    return {"graph connectivity": mean_of_groups(inside, space.design.label)}


def batch_asw(space: Space) -> Values:
    """Silhouette of the batches within each label."""
    width, used = np.zeros(len(space.design)), np.zeros(len(space.design), dtype=bool)
    for here in _mixed_labels(space, 2):
        if len(np.unique(space.design.batch[here])) < len(here):
            width[here] = 1 - np.abs(silhouettes(space.x[here], space.design.batch[here]))
            used[here] = True
    return {"batch ASW": mean_of_groups(width, space.design.label, used)}


def mixing(space: Space) -> Values:
    """Batches among the neighbours of the same label."""
    design, n = space.design, len(space.design)
    n_batches = len(np.unique(design.batch))
    excess, room, effective = np.zeros(n), np.zeros(n), np.zeros(n)
    large = np.zeros(n, dtype=bool)
    for here in _mixed_labels(space, MIN_CELLS):
        batch = design.batch[here]
        rows, _distances = nearest(space.x[here], None, N_NEIGHBORS)
        share = (batch[rows] == batch[:, None]).mean(axis=1)
        expected = (np.bincount(batch)[batch] - 1) / (len(here) - 1)
        excess[here], room[here] = share - expected, 1 - expected
        shares = np.stack([(batch[rows] == b).mean(axis=1) for b in np.unique(design.batch)])
        effective[here] = (1 / (shares**2).sum(axis=0) - 1) / max(n_batches - 1, 1)
        large[here] = len(here) >= MIN_EFFECTIVE
    one = np.zeros(n, dtype=np.int64)
    found: dict[str, Score | float] = {"same-batch neighbours": ratio_of_groups(excess, room, one, 1, room > 0)}
    found["effective batches"] = mean_of_groups(effective, design.label, large)
    return found


def _mixed_labels(space: Space, at_least: int) -> list[NDArray[np.int64]]:
    """Rows of each label that occurs in two batches or more."""
    design = space.design
    several = np.flatnonzero(((design.table > 0).sum(axis=1) > 1) & (design.table.sum(axis=1) >= at_least))
    return [np.flatnonzero(design.label == code) for code in several]


def batch_probe(space: Space) -> Values:
    """Whether a linear classifier tells the batch of a cell, among labels that several batches have."""
    design = space.design
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *_mixed_labels(space, MIN_CELLS)])
    batches, sizes = np.unique(design.batch[rows], return_counts=True)
    rows = rows[np.isin(design.batch[rows], batches[sizes >= 2])]
    if len(np.unique(design.batch[rows])) < 2:
        return {"batch probe": float("nan")}
    predicted = np.full(len(design), -1, dtype=np.int64)
    predicted[rows] = cross_validated(linear_labels, space.x[rows], design.batch[rows], space.seed)
    used = np.zeros(len(design), dtype=bool)
    used[rows] = True
    chance = 1 / len(np.unique(design.batch[rows]))
    accuracy = table_score(design.batch, predicted, balanced_accuracy, used, n_rows=len(design.batches))
    return {"batch probe": combined([accuracy], lambda x: np.maximum((x[..., 0] - chance) / (1 - chance), 0))}


def transfer(space: Space) -> Values:
    """Label transfer within batches and between every ordered pair of them.

    Pairs are named ``kNN transfer | reference -> query``; the plain name is the mean over them.
    """
    found: dict[str, Score | float] = {}
    for name, title in (("knn", "kNN"), ("linear", "linear")):
        t = Transfer(space, name)
        design = space.design
        within = [t.within(int(b)) for b in largest(design) if (design.table[:, b] >= MIN_CELLS).sum() > 1]
        if within:
            found[f"{title} within"] = mean_of(within)
        crossed, drops = [], []
        for a, b in t.pairs:
            crossed.append(t.cross(a, b))
            drops.append(difference(t.reference_of(a, b), crossed[-1]))
            pair = f"{design.batches[a]} -> {design.batches[b]}"
            found[f"{title} transfer | {pair}"] = crossed[-1]
            found[f"{title} drop | {pair}"] = drops[-1]
        if crossed:
            found[f"{title} transfer"] = mean_of(crossed)
            found[f"{title} drop"] = mean_of(drops)
    return found


def _from_scib(name: str, title: str) -> Callable[[Space], Values]:
    return lambda space: {title: _scib.FUNCTIONS[name](space)}


@dataclass(frozen=True)
class Computation:
    """A function and the metrics that it gives."""

    compute: Callable[[Space], Values]
    gives: tuple[str, ...]
    is_here: Callable[[], bool] = lambda: True


COMPUTATIONS: tuple[Computation, ...] = (
    Computation(nmi_ari_kmeans, ("NMI (k-means)", "ARI (k-means)")),
    Computation(nmi_ari_leiden, ("NMI (best Leiden)", "ARI (best Leiden)"), igraph_is_here),
    Computation(label_asw, ("label ASW",)),
    Computation(isolated_labels, ("isolated labels",)),
    Computation(_from_scib("clisi", "cLISI"), ("cLISI",), _scib.is_here),
    Computation(_from_scib("ilisi", "iLISI"), ("iLISI",), _scib.is_here),
    Computation(_from_scib("bras", "BRAS"), ("BRAS",), _scib.is_here),
    Computation(_from_scib("kbet", "kBET"), ("kBET",), _scib.is_here),
    Computation(_from_scib("pcr", "PCR"), ("PCR",), _scib.is_here),
    Computation(graph_connectivity, ("graph connectivity",)),
    Computation(batch_asw, ("batch ASW",)),
    Computation(mixing, ("same-batch neighbours", "effective batches")),
    Computation(batch_probe, ("batch probe",)),
    Computation(
        transfer, ("kNN within", "kNN transfer", "kNN drop", "linear within", "linear transfer", "linear drop")
    ),
)


def computable(n_labels: int, n_batches: int) -> list[Computation]:
    """What can be computed of these cells with what is installed."""
    return [c for c in COMPUTATIONS if c.is_here() and any(METRICS[m].holds(n_labels, n_batches) for m in c.gives)]


def absent() -> dict[str, str]:
    """Metrics whose library is not installed, with the line that installs it."""
    return {m: METRICS[m].extra for c in COMPUTATIONS if not c.is_here() for m in c.gives}


def totals(found: Values) -> dict[str, Score | float]:
    """Means of the metrics of an axis and of both, unscaled, as scIB weighs them: 0.6 biology + 0.4 batch."""
    out: dict[str, Score | float] = {}
    for axis in ("bio", "batch"):
        scores = [found[m.name] for m in _ROWS if m.in_total and m.axis == axis and m.name in found]
        if scores:
            out[f"{axis} total"] = _joined(scores, _finite_mean)
    if len(out) == 2:
        out["total"] = _joined([*out.values()], lambda x: 0.6 * x[..., 0] + 0.4 * x[..., 1])
    return out


def _finite_mean(x: Floats) -> Floats:
    there = np.isfinite(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(there, x, 0).sum(axis=-1) / there.sum(axis=-1))


def _joined(scores: Sequence[Score | float], function: Callable[[Floats], Floats]) -> Score | float:
    """A function of scores; a plain number where one of them is."""
    whole = [s for s in scores if isinstance(s, Score)]
    if len(whole) == len(scores):
        return combined(whole, function)
    return float(function(np.array([s.value if isinstance(s, Score) else s for s in scores])))
