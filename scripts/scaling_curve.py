"""Does a larger model, or do more cells, help? Held-out loss against both, small enough for one core.

    python scripts/scaling_curve.py ../shared/data/corpus --out scaling.csv [--figure docs/_static/scaling_curve.png]

New models of four sizes are trained on three numbers of cells (masked levels); the same whole data sets are held out from all, and
the best of the held-out losses on the way counts, since small sets of cells are overfitted. Rows are added to the table as they
are finished, and not measured again. Printed: a markdown table and a fit of L = E + (A / N)^a + (B / D)^b with intervals by the
jackknife; where these reach 0 the data do not support an exponent.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from train_objectives import human_cells

from scfm.training import pretrain

SIZES = ((1, 16), (2, 32), (2, 64), (4, 128))
"""Layers and width."""
CELLS = (14, 53, 200)
"""Of each data set that is trained on."""
HELD_OUT = ("object_10", "object_16", "object_19")
STEPS = 240
COLUMNS = ["layers", "width", "seed", "cells", "weights", "loss", "step", "reference"]


def run(cells: list, layers: int, width: int, each: int, seed: int, steps: int) -> dict[str, float]:
    """One model on some cells of each data set."""
    rng = np.random.default_rng(seed)
    some = [
        a if f"object_{i}" in HELD_OUT else a[np.sort(rng.permutation(a.n_obs)[:each])].copy()
        for i, a in enumerate(cells)
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = pretrain(
            some,
            {
                "model": {"kind": "levels", "n_layers": layers, "width": width, "n_heads": 4, "max_length": 256},
                "objective": {"name": "masked_levels", "share": 0.3},
                "sampling": {"batch_tokens": 2_048, "block_rows": 32, "pool_blocks": 64},
                "validation": {"by": "file", "groups": HELD_OUT, "max_cells": 150},
                "run": {
                    "steps": steps,
                    # narrower models bear larger steps
                    "learning_rate": 4e-3 * (64 / width) ** 0.5,
                    "warmup_steps": 20,
                    "device": "cpu",
                    "seed": seed,
                },
                "output": {
                    "folder": f"{folder}/run",
                    "progress": False,
                    "tensorboard": False,
                    "checkpoint_every": steps,
                    "evaluate_every": steps // 6,
                },
            },
        )
        history = done.history.dropna(subset=["eval_loss"])
        best = history.loc[history["eval_loss"].idxmin()]
    return {
        "layers": layers,
        "width": width,
        "seed": seed,
        "cells": sum(a.n_obs for i, a in enumerate(some) if f"object_{i}" not in HELD_OUT),
        "weights": sum(p.numel() for p in done.model.transformer.encoder.parameters()),
        "loss": float(best["eval_loss"]),
        "step": int(best["step"]),
        "reference": float(best["eval_reference"]),
    }


def fit(table: pd.DataFrame) -> np.ndarray:
    """E, log A, a, log B, b of L = E + (A / N)^a + (B / D)^b (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3)."""
    n, d, loss = (np.log(table["weights"]), np.log(table["cells"]), table["loss"])

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.asarray(p[0] + np.exp(p[2] * (p[1] - n)) + np.exp(p[4] * (p[3] - d)) - loss)

    starts = [[loss.min() * 0.9, 0.0, a, 0.0, b] for a in (0.1, 0.5) for b in (0.1, 0.5)]
    low, high = [0, -60, 0, -60, 0], [loss.min(), 20, 3, 20, 3]
    return min((least_squares(residuals, s, bounds=(low, high)) for s in starts), key=lambda r: r.cost).x


def tell(table: pd.DataFrame) -> None:
    """The table, and the fit."""
    wide = table.pivot_table("loss", ["layers", "width", "weights"], "cells")
    print("| layers x width | weights in layers | " + " | ".join(f"{c:,} cells" for c in wide) + " |")
    print("| --- | ---: |" + " ---: |" * wide.shape[1])
    for (layers, width, weights), row in wide.iterrows():
        print(f"| {layers} x {width} | {weights:,} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    print(f"\nbest guess without input: {table['reference'].min():.3f} to {table['reference'].max():.3f}")
    whole = fit(table)
    without = np.stack([fit(table.drop(i)) for i in table.index])
    k = len(without)
    error = np.sqrt((k - 1) / k * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    for name, at in (("E", 0), ("a (weights)", 2), ("b (cells)", 4)):
        print(
            f"{name} = {whole[at]:.3f}, jackknife interval {whole[at] - 2 * error[at]:.3f} to {whole[at] + 2 * error[at]:.3f}"
        )


def draw(table: pd.DataFrame, path: Path) -> None:
    """Loss against cells, one line per size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, table["weights"].nunique()))
    for (weights, rows), color in zip(table.groupby("weights"), colors, strict=True):
        mean = rows.groupby("cells")["loss"].mean()
        axes.plot(mean.index, mean, "o-", color=color, label=f"{weights:,}")
        axes.plot(rows["cells"], rows["loss"], ".", color=color, alpha=0.4)
    ticks = sorted(table["cells"].unique())
    axes.set(xscale="log", xlabel="training cells", ylabel="held-out loss (masked levels)")
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.legend(title="weights in layers", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what is missing, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("scaling.csv"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    table = pd.read_csv(chosen.out) if chosen.out.exists() else pd.DataFrame(columns=COLUMNS)
    cells: list = []
    for seed in chosen.seeds:
        for layers, width in SIZES:
            mine = table[(table["seed"] == seed) & (table["layers"] == layers) & (table["width"] == width)]
            for each in CELLS[len(mine) :]:
                cells = cells or human_cells(chosen.corpus)
                row = run(cells, layers, width, each, seed, chosen.steps)
                table = pd.DataFrame([*table.to_dict("records"), row], columns=COLUMNS)
                table.to_csv(chosen.out, index=False)
                print(row, flush=True)
    tell(table)
    if chosen.figure is not None:
        draw(table, chosen.figure)


if __name__ == "__main__":
    main()
