"""Draw the scores of scfm-mini beside those of its rivals.

    python scripts/draw_gate.py SCORES.csv OUT.png

SCORES is what ``evaluate_mini.py --out`` writes, of one run or of several one behind the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

PANELS = {
    "no batches known": {
        "scfm-mini": "scfm-mini",
        "random projection 192": "random projection",
        "random network": "random network",
        "PCA-50 of HVG-2000, fitted on these cells": "PCA-50, fitted on the cells",
    },
    "batches known": {
        "scfm-mini centred per set": "scfm-mini, centred",
        "scfm-mini adapted, centred per set": "scfm-mini, adapted and centred",
        "the same, centred per set": "PCA-50, centred",
        "PCA of scaled genes, centred per set": "PCA-50 of scaled genes, centred",
        "the same with Harmony": "PCA-50 + Harmony",
        "scVI, fitted on these cells": "scVI",
    },
}
OURS, OTHERS = ("#0b5394", "#3d85c6"), ("#b45f06", "#674ea7", "#7f7f7f", "#bf9000")


def draw(scores: pd.DataFrame, out: Path) -> None:
    """One panel per kind of embedding: a dot with its interval for every row of the protocol."""
    rows = list(dict.fromkeys(scores["row"]))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 5.5), sharey=True, sharex=True, layout="constrained")
    for axis, (title, shown) in zip(axes, PANELS.items(), strict=True):
        there = {name: label for name, label in shown.items() if name in set(scores["embedding"])}
        ours, others = iter(OURS), iter(OTHERS)
        for number, (name, label) in enumerate(there.items()):
            of = scores[scores["embedding"] == name].set_index("row").reindex(rows)
            mine = name.startswith("scfm-mini")
            y = np.arange(len(rows)) + 0.14 * (number - (len(there) - 1) / 2)
            spread = np.abs(of[["low", "high"]].to_numpy().T - of["value"].to_numpy())
            axis.errorbar(
                of["value"],
                y,
                xerr=spread,
                fmt="o" if mine else "s",
                ms=6 if mine else 4,
                lw=1,
                color=next(ours if mine else others),
                label=label,
            )
        axis.set_title(title, loc="left")
        axis.set_xlim(0, 1)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", fontsize=8, frameon=False)
        axis.set_xlabel("macro F1 of 15-nearest-neighbour transfer (iLISI: mixing of batches)")
    axes[0].set_yticks(np.arange(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    table = pd.read_csv(args.scores)
    draw(table[table["embedding"] != "embedding"].astype(dict.fromkeys(("value", "low", "high"), float)), args.out)
