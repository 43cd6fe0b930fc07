"""`scfm.pl.annotation`: pictures of an annotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm.errors import ConfigError
from scfm.evaluation import AnnotationScores, annotation_scores
from scfm.get import annotation as probabilities
from scfm.get._annotation import annotation_facts
from scfm.pl._pyplot import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["confusion", "reliability", "coverage", "umap"]


def annotation(
    source: AnnData | AnnotationScores,
    kind: Kind = "confusion",
    *,
    truth: str | None = None,
    key: str | None = None,
) -> Figure:
    """Draw an annotation that `scfm.tl.annotate` wrote, or its scores.

    Parameters
    ----------
    source
        Annotated cells, or scores (`scfm.evaluation.annotation_scores`).
    kind
        ``confusion``: true classes by given names, shares of each row; ``reliability``: share of right names by
        confidence; ``coverage``: risk by the share of cells that are named; ``umap``: ``obsm["X_umap"]`` by label and by
        score.
    truth
        Column of ``obs`` with true names, for all but ``umap``, where the source is cells.
    key
        ``key_added`` of the annotation; None: the only one.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If there is no such kind, no annotation, or what it needs is missing.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if kind not in (*DRAWN, "umap"):
        raise ConfigError(f"kind={kind!r} is not one of {', '.join((*DRAWN, 'umap'))}")
    plt = pyplot()
    size = {"umap": (11, 4.5), "confusion": (6.5, 5.5)}.get(kind, (4.5, 4.2))
    figure: Figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)  # a notebook shows what is returned, once
    if kind == "umap":
        return _umap(figure, source, key)
    scores = source if isinstance(source, AnnotationScores) else _scores(source, truth, key)
    DRAWN[kind](figure.subplots(), scores)
    return figure


def _scores(adata: AnnData, truth: str | None, key: str | None) -> AnnotationScores:
    if truth is None or truth not in adata.obs:
        raise ConfigError(f"truth={truth!r} is no column of obs; name the one with true names")
    name, _facts = annotation_facts(adata, key)
    known = adata.obs[truth].notna().to_numpy()
    table = probabilities(adata, name)
    return annotation_scores(
        adata.obs[truth].astype(str)[known],
        adata.obs[f"{name}_label"].astype(str)[known],
        table[known],
        [*table.columns],
        n_boot=2,
    )


def _confusion(axes: Any, scores: AnnotationScores) -> None:
    counts: pd.DataFrame = scores.confusion
    order = [c for c in counts.index if c in counts.columns]
    counts = counts[[*order, *(c for c in counts.columns if c not in order)]]
    shares = counts.div(counts.sum(axis=1), axis=0)
    picture = axes.imshow(shares.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(shares.shape[1]), shares.columns, rotation=60, ha="right")
    axes.set_yticks(range(len(shares)), [f"{n} ({k:,})" for n, k in counts.sum(axis=1).items()])
    if shares.size <= 400:
        for (i, j), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.005:
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
    axes.set(xlabel="given", ylabel="true (cells)")
    axes.figure.colorbar(picture, label="share of the true class")


def _reliability(axes: Any, scores: AnnotationScores) -> None:
    table = _needed(scores.reliability)
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    sizes = 10 + 200 * table["n"] / table["n"].sum()
    axes.scatter(table["confidence"], table["accuracy"], s=sizes)
    axes.set(xlabel="confidence", ylabel="share of right names", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"ECE {scores['ECE']:.3f}", fontsize=10)


def _coverage(axes: Any, scores: AnnotationScores) -> None:
    table = _needed(scores.curve)
    axes.plot(table["coverage"], table["risk"])
    axes.set(xlabel="share of cells that are named", ylabel="share of wrong names among them", xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.set_title(f"AURC {scores['AURC']:.3f}", fontsize=10)


def _needed(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise ConfigError(
            "these scores were computed without probabilities; pass proba= and classes= to annotation_scores"
        )
    return table


def _umap(figure: Figure, source: Any, key: str | None) -> Figure:
    if not isinstance(source, AnnData) or "X_umap" not in source.obsm:
        raise ConfigError("kind='umap' needs cells with obsm['X_umap']; run sc.tl.umap(adata) first")
    name, _facts = annotation_facts(source, key)
    xy = np.asarray(source.obsm["X_umap"])
    left, right = figure.subplots(1, 2)
    labels = source.obs[f"{name}_label"].cat.remove_unused_categories()
    from matplotlib import colormaps

    for i, label in enumerate(labels.cat.categories):
        own = (labels == label).to_numpy()
        color = "0.75" if label == "unknown" else colormaps["tab20"](i % 20)
        left.scatter(*xy[own].T[:2], s=4, color=color, label=f"{label} ({own.sum():,})")
    left.legend(fontsize=7, markerscale=2.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    points = right.scatter(*xy.T[:2], s=4, c=source.obs[f"{name}_score"], cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(points, ax=right, label="score")
    for axes, title in ((left, "label"), (right, "score")):
        axes.set(xticks=[], yticks=[], title=title)
    return figure


DRAWN: dict[str, Callable[[Any, AnnotationScores], None]] = {
    "confusion": _confusion,
    "reliability": _reliability,
    "coverage": _coverage,
}
