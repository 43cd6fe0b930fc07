"""`scfm.pl.probe_layers`: a heat map of linear probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scfm.get._layer_probes import LayerProbes, layer_probes
from scfm.pl._pyplot import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def probe_layers(result: LayerProbes | AnnData, key: str | None = None) -> Figure:
    """Draw how well each label can be read off each layer.

    A box marks the best layer of each label, dots the layers that the bootstrap does not tell apart from it.

    Parameters
    ----------
    result
        Of `scfm.tl.probe_layers`, or the AnnData that it was written into.
    key
        Of ``.uns``, where there are several.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If there is no result.
    MissingDependencyError
        If matplotlib is not installed.
    """
    found = result if isinstance(result, LayerProbes) else layer_probes(result, key)
    plt = pyplot()
    table: Any = found.table
    several = table["pooling"].nunique() > 1
    names = table["target"] + (" · " + table["pooling"] if several else "")
    table = table.assign(row=names + " (" + table["score"] + ")")
    values: Any = table.pivot(index="row", columns="layer", values="value")
    values = values.loc[list(dict.fromkeys(table["row"]))]
    height, width = 1.3 + 0.42 * len(values), 2.8 + 0.52 * values.shape[1]
    figure, axes = plt.subplots(figsize=(max(width, 4.5), height), layout="constrained")
    low = float(min(np.nanmin(values.to_numpy()), 0.999))
    image = axes.imshow(values.to_numpy(), aspect="auto", cmap="cividis", vmin=max(low, -1.0), vmax=1.0)
    axes.set_xticks(range(values.shape[1]), [str(c) for c in values.columns])
    axes.set_yticks(range(len(values)), list(values.index))
    axes.set_xlabel("layer")
    axes.set_title(f"linear probes of {found.facts['model']}")
    rows, columns = {n: i for i, n in enumerate(values.index)}, {n: i for i, n in enumerate(values.columns)}
    middle = (max(low, -1.0) + 1.0) / 2
    for entry in table.itertuples():
        at = columns[entry.layer], rows[entry.row]
        tied = entry.behind_low <= 0 < entry.behind
        ink = "black" if entry.value > middle else "white"
        axes.text(*at, f"{entry.value:.2f}" + ("·" if tied else ""), ha="center", va="center", fontsize=8, color=ink)
    for target in dict.fromkeys(table["target"]):
        best = table.loc[found.best(target).name]
        corner = columns[best["layer"]] - 0.5, rows[best["row"]] - 0.5
        axes.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="crimson", linewidth=2))
    figure.colorbar(image, ax=axes, shrink=0.9)
    return figure
