"""How does it look? Pictures of a report."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError, require
from scfm.evaluation._metrics import METRICS
from scfm.evaluation._stress import LEVELS, MEANING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scfm.evaluation._report import RobustnessReport

SHOWN = (
    "NMI (k-means)", "ARI (k-means)", "label ASW", "isolated labels", "cLISI", "kNN within", "kNN transfer",
    "linear transfer", "iLISI", "BRAS", "kBET", "PCR", "graph connectivity", "batch ASW", "same-batch neighbours",
    "effective batches", "batch probe",
)  # fmt: skip
N_UMAP = 3000


def _pyplot() -> Any:
    require("matplotlib.pyplot", "pictures need matplotlib", "robustness")
    import matplotlib.pyplot as plt

    return plt


def draw(report: RobustnessReport, kind: str) -> Figure:
    """A picture of a report.

    Parameters
    ----------
    report
        What is drawn.
    kind
        Name in `KINDS`.

    Raises
    ------
    ConfigError
        If there is no such kind, or the report holds nothing for it.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is none of {', '.join(KINDS)}")
    return KINDS[kind](report)


def goodness(metric: str, values: pd.Series) -> pd.Series:
    """Values of a metric on a scale from 0, its worst, to 1, its best."""
    worst, best = METRICS[metric].limits
    return ((values - worst) / (best - worst)).clip(0, 1)


LINE = 0.045
"""Height of a name beside a point, as a share of what the points span."""


def summary(report: RobustnessReport) -> Figure:
    """Scores as coloured dots, the larger the better; and the biology total against the batch total."""
    plt = _pyplot()
    table = report.summary(SHOWN)
    if table.empty:
        raise ConfigError("the report holds no scores of labels or batches; there is nothing to draw in a summary")
    totals = report.summary(("bio total", "batch total"))
    n, m = table.shape
    both = totals.shape[1] == 2
    figure, axes = plt.subplots(
        1, 1 + both, figsize=(4.2 + 0.42 * m + 4 * both, 1.9 + 0.34 * n), width_ratios=(max(m, 6), 8)[: 1 + both],
        layout="constrained", squeeze=False,
    )  # fmt: skip
    left = axes[0, 0]
    colours = {"bio": "Blues", "transfer": "Purples", "batch": "Greens"}
    for x, metric in enumerate(table.columns):
        good = goodness(metric, table[metric])
        left.scatter(
            np.full(n, x), np.arange(n), s=30 + 230 * good.fillna(0), c=0.15 + 0.85 * good,
            cmap=colours[METRICS[metric].axis], vmin=0, vmax=1.15, edgecolors="0.6", linewidths=0.4,
        )  # fmt: skip
        for y, value in enumerate(table[metric]):
            dark = good.iloc[y] > 0.75
            left.text(x, y, "-" if np.isnan(value) else f"{value:z.2f}", ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "black")  # fmt: skip
    arrows = [f"{c} {'↑' if METRICS[c].better == 'higher' else '↓'}" for c in table.columns]
    left.set_xticks(range(m), arrows, rotation=55, ha="left", fontsize=8)
    left.xaxis.tick_top()
    left.set_yticks(range(n), table.index, fontsize=8.5)
    left.set(xlim=(-0.7, m - 0.3), ylim=(n - 0.4, -0.6))
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    if both:
        _scatter(axes[0, 1], totals, report)
    return figure


def _scatter(axis: Any, totals: pd.DataFrame, report: RobustnessReport) -> None:
    kinds = dict(zip(report.table["embedding"], report.table["kind"], strict=True))
    marks = {"model": "o", "embedding": "o", "aligned": "D", "baseline": "s", "control": "x"}
    lifted = _lifted(totals)
    for name, row in totals.iterrows():
        kind = kinds[str(name)]
        axis.scatter(row["batch total"], row["bio total"], marker=marks[kind], s=40, label=name)
        axis.annotate(str(name), (row["batch total"], row["bio total"]), xytext=(5, 3 + lifted[str(name)]), textcoords="offset points",
                      fontsize=7)  # fmt: skip
    axis.set_xlabel("batches mixed (total)", fontsize=8.5)
    axis.set_ylabel("biology kept (total)", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.margins(0.18)
    axis.spines[["top", "right"]].set_visible(False)


def _lifted(totals: pd.DataFrame) -> dict[str, float]:
    """Points by which a name is moved up so that it lies on no other."""
    span = (totals.max() - totals.min()).clip(lower=1e-9)
    taken: list[tuple[float, float]] = []
    lifted = {}
    for name, row in (totals / span).sort_values("bio total").iterrows():
        x, y = float(row["batch total"]), float(row["bio total"])
        while any(abs(x - other) < 0.3 and abs(y - at) < LINE for other, at in taken):
            y += LINE / 4
        taken.append((x, y))
        lifted[str(name)] = 150 * (y - float(row["bio total"]))
    return lifted


def stress_curves(report: RobustnessReport) -> Figure:
    """Macro F1 of labels under each alteration, mild to hard, with 95 % bands."""
    plt = _pyplot()
    table = report.table[report.table["metric"] == "stressed kNN"]
    metric = "stressed kNN"
    if table.empty:
        metric, table = "drift", report.table[report.table["metric"] == "drift"]
    kinds = [k for k in LEVELS if table["detail"].str.startswith(k).any()]
    if not kinds:
        raise ConfigError("the report holds no alterations; run scfm.tl.robustness with stress=(...)")
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(2.7 * len(kinds) + 2.2, 3.3), sharey=True, layout="constrained", squeeze=False
    )
    names = list(dict.fromkeys(table["embedding"]))
    palette = plt.get_cmap("tab10").colors
    for axis, kind in zip(axes[0], kinds, strict=True):
        details = [d for d in dict.fromkeys(table["detail"]) if d.startswith(kind)]
        ticks = (["none"] if (table["detail"] == "none").any() else []) + details
        for i, name in enumerate(names):
            own = table[table["embedding"] == name].set_index("detail").reindex(ticks)
            if own["value"].reindex(details).notna().any():
                x = np.arange(len(ticks))
                axis.plot(x, own["value"], marker="o", ms=3, lw=1.3, color=palette[i % 10], label=name)
                axis.fill_between(x, own["low"], own["high"], color=palette[i % 10], alpha=0.15, lw=0)
        axis.set_xticks(range(len(ticks)), [t.removeprefix(kind).strip() for t in ticks], fontsize=7.5, rotation=30)
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel(textwrap.fill(MEANING[kind], 24), fontsize=7.5)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("macro F1 of labels" if metric == "stressed kNN" else "drift", fontsize=8.5)
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def umaps(report: RobustnessReport) -> Figure:
    """UMAP of each embedding, coloured by label and by batch."""
    plt = _pyplot()
    if not report.vectors or report.design is None:
        raise ConfigError(
            "this report holds no embeddings (they are not stored in files); run scfm.tl.robustness again to draw UMAPs"
        )
    import scanpy as sc
    from anndata import AnnData

    design = report.design
    rng = np.random.default_rng(0)
    n = len(design)
    rows = np.sort(rng.choice(n, min(n, N_UMAP), replace=False))
    colours = {"label": (design.label, design.labels), "batch": (design.batch, design.batches)}
    figure, axes = plt.subplots(
        2, len(report.vectors), figsize=(2.4 * len(report.vectors) + 2, 5), layout="constrained", squeeze=False
    )
    order = rng.permutation(len(rows))
    for column, (name, x) in enumerate(report.vectors.items()):
        own = AnnData(np.zeros((len(rows), 1), dtype=np.float32), obsm={"X": x[rows]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sc.pp.neighbors(own, use_rep="X", metric="cosine", random_state=0)
            sc.tl.umap(own, random_state=0)
        xy = own.obsm["X_umap"]
        for line, (codes, names) in enumerate(colours.values()):
            palette = np.array(plt.get_cmap("tab10" if len(names) <= 10 else "tab20").colors)
            axis = axes[line, column]
            axis.scatter(*xy[order].T, s=3, linewidths=0, c=palette[codes[rows][order] % len(palette)])
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(1)
        axes[0, column].set_title(name, fontsize=8.5)
    for line, (title, (_codes, names)) in enumerate(colours.items()):
        palette = plt.get_cmap("tab10" if len(names) <= 10 else "tab20").colors
        axes[line, 0].set_ylabel(title, fontsize=9)
        handles = [
            plt.Line2D([], [], ls="", marker="o", ms=4, color=palette[i % len(palette)], label=name)
            for i, name in enumerate(names[:20])
        ]
        axes[line, -1].legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    return figure


KINDS: Mapping[str, Callable[[RobustnessReport], Figure]] = {
    "summary": summary,
    "stress": stress_curves,
    "umap": umaps,
}
