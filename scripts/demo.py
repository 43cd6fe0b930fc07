"""Embed the cells that scanpy ships and show them beside a plain PCA of the same genes.

Writes ``pbmc68k_scfm.h5ad`` and ``umap.png`` into ``demo-output`` (or the folder given).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from anndata import AnnData

import scfm

MODEL = "scfm-mini"
LABELS = "bulk_labels"
N_NEIGHBORS = 15


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    adata = sc.datasets.pbmc68k_reduced()
    heading(f"The cells: {adata.n_obs} blood cells, {adata.raw.n_vars} genes, shipped with scanpy")
    print("X holds scaled values, which no model reads; .raw holds log-normalised ones:")
    print(scfm.pp.inspect(adata, use_raw=True))

    heading(f"scfm.tl.embed(adata, {MODEL!r}, use_raw=True)")
    start = time.perf_counter()
    scfm.tl.embed(adata, MODEL, use_raw=True)
    seconds = time.perf_counter() - start
    (key,) = adata.uns["scfm"]
    report = scfm.get.report(adata, key)
    print(scfm.get.EmbedReport({name: report[name] for name in ("coverage", "tokens", "health")}))
    print(f"{adata.n_obs} cells in {seconds:.1f} s -> adata.obsm['X_{key}'] {adata.obsm[f'X_{key}'].shape}")

    heading("What one does next: neighbours and UMAP, on the embedding and on a plain PCA")
    add_pca(adata)
    panels = {f"X_{key}": MODEL, "X_pca": "PCA of the same cells"}
    for use_rep, title in panels.items():
        same = add_umap(adata, use_rep)
        print(f"{title}: {same:.0%} of the {N_NEIGHBORS} nearest neighbours carry the cell's own label")

    heading("scfm.tl.robustness: the same cells, shallower and on small panels")
    told = scfm.tl.robustness(
        adata, batch_key=None, label_key=LABELS, models=[MODEL], baselines=("pca",), stress=("depth", "panel"),
        use_raw=True, n_boot=200,
    )  # fmt: skip
    print(
        f"Macro F1 of labels from {N_NEIGHBORS} unaltered neighbours, 95 % intervals over {told.parameters['n_cells']} cells:"
    )
    print(stress_table(told))
    print(*told.verdicts.values(), sep="\n")

    h5ad, png = out / "pbmc68k_scfm.h5ad", out / "umap.png"
    adata.write_h5ad(h5ad)
    draw(adata, panels, png)
    heading("Written")
    print(f"{h5ad}\n{png}")


def heading(text: str) -> None:
    """Print a line that stands out."""
    print(f"\n== {text}")


def add_pca(adata: AnnData) -> None:
    """Write the 50 principal components of the log-normalised values in ``.raw`` to ``.obsm["X_pca"]``."""
    adata.obsm["X_pca"] = sc.pp.pca(adata.raw.to_adata(), n_comps=50, copy=True).obsm["X_pca"]


def add_umap(adata: AnnData, use_rep: str) -> float:
    """Write the UMAP of one representation to ``.obsm["<use_rep>_umap"]``.

    Returns
    -------
    Mean share of a cell's neighbours that carry its own label.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS + 1, use_rep=use_rep, key_added=use_rep, random_state=0)
        sc.tl.umap(adata, neighbors_key=use_rep, key_added=f"{use_rep}_umap", random_state=0)
    labels = adata.obs[LABELS].to_numpy()
    neighbours = adata.obsp[f"{use_rep}_distances"].tocoo()
    return float(np.mean(labels[neighbours.row] == labels[neighbours.col]))


def stress_table(report: scfm.evaluation.RobustnessReport) -> str:
    """Alterations as rows, embeddings as columns, values with intervals."""
    table = report.to_dataframe()
    table = table[table["metric"] == "stressed kNN"]
    shown = [f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in zip(table["value"], table["low"], table["high"], strict=True)]
    wide = table.assign(shown=shown).pivot(index="detail", columns="embedding", values="shown")
    wide = wide.reindex(index=table["detail"].unique(), columns=table["embedding"].unique())
    return wide.rename_axis(index=None, columns=None).to_string()


def draw(adata: AnnData, panels: dict[str, str], path: Path) -> None:
    """Draw the UMAPs side by side with one legend, colours by label."""
    labels = adata.obs[LABELS].astype("category").cat
    colours = plt.get_cmap("tab10").colors
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.2), layout="constrained")
    for axis, (use_rep, title) in zip(axes, panels.items(), strict=True):
        xy = adata.obsm[f"{use_rep}_umap"]
        for code, name in enumerate(labels.categories):
            cells = labels.codes.to_numpy() == code
            axis.scatter(*xy[cells].T, s=9, color=colours[code % len(colours)], label=name, linewidths=0)
        axis.set(title=title, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
