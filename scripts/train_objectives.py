"""Does every objective learn something? Short runs on the real corpus, held-out loss against the best guess without input.

    python scripts/train_objectives.py ../shared/data/corpus [--objectives masked_genes ...] [--seeds 0 1 2] [--steps 400]

Human files of the corpus, a few hundred cells of each, the genes that most cells express; whole data sets are held out. A small
new model is trained for each objective and seed. Printed: a markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

import scfm
from scfm.training import pretrain

KINDS = {
    "masked_genes": ("ranks", {"share": 0.3}),
    "masked_levels": ("levels", {"share": 0.3}),
    "masked_values": ("bins", {}),
    "generative": ("bins", {"prompt_from": 100}),
    "expressed": ("bins", {"n_genes": 50}),
    "read_depth": ("depth", {}),
    "next_word": ("words", {}),
    "contrastive": ("bins", {}),
}
"""A new model for each objective, and settings of the objective."""
CELLS_PER_FILE = 200
N_GENES = 1_000


def human_cells(folder: Path, seed: int = 0) -> list[ad.AnnData]:
    """Some cells of each human file with the genes that are found in most of them, under their Ensembl ids."""
    rng = np.random.default_rng(seed)
    table = scfm.genes.table("human")
    table = table[(table["status"] == "current") & (table["biotype"] == "protein_coding")]
    every = scfm.genes.GeneVocabulary(tuple(table["ensembl_id"]), "ensembl")
    found = []
    for path in sorted(folder.glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        if adata.obs["species"].iloc[0] not in ("human", "Homo sapiens"):
            continue
        adata = adata[np.sort(rng.permutation(adata.n_obs)[:CELLS_PER_FILE])].copy()
        match = scfm.genes.match(adata.var, every)
        kept = np.flatnonzero(match.columns >= 0)
        _, first = np.unique(match.columns[kept], return_index=True)
        adata = adata[:, kept[first]].copy()
        adata.var_names = [every.names[i] for i in match.columns[kept[first]]]
        adata.var = adata.var[[]]
        found.append(adata)
    share = np.zeros(len(every.names))
    for adata in found:
        ids = [every.index[n] for n in adata.var_names]
        share[ids] += np.asarray((adata.X > 0).mean(axis=0)).ravel()
    best = {every.names[i] for i in np.argsort(-share)[:N_GENES]}
    return [a[:, [n in best for n in a.var_names]].copy() for a in found]


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--objectives", nargs="*", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=2_048, help="of a batch")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    cells = human_cells(chosen.corpus)
    print(f"{sum(a.n_obs for a in cells):,} cells of {len(cells)} files, {N_GENES:,} genes, {chosen.steps} steps\n")
    print(
        "| objective | model | seed | held-out loss | without input | ratio | parts |\n| --- | --- | ---: | ---: | ---: | ---: | --- |"
    )
    for name in chosen.objectives:
        kind, settings = KINDS[name]
        for seed in chosen.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = pretrain(
                    cells,
                    {
                        "model": {"kind": kind, "n_layers": 2, "width": 64, "n_heads": 4, "max_length": 256},
                        "objective": {"name": name, **settings},
                        "sampling": {
                            "batch_tokens": 6 * chosen.tokens if kind == "depth" else chosen.tokens,
                            "block_rows": 32,
                            "pool_blocks": 64,
                        },
                        "validation": {"by": "file", "share": 0.15, "max_cells": 150},
                        "run": {
                            "steps": chosen.steps,
                            "learning_rate": 4e-3,
                            "warmup_steps": 20,
                            "device": "cpu",
                            "seed": seed,
                        },
                        "output": {
                            "folder": f"{folder}/run",
                            "progress": False,
                            "tensorboard": False,
                            "checkpoint_every": chosen.steps,
                            "evaluate_every": chosen.steps,
                        },
                    },
                )
            loss, guess = run.metrics["eval_loss"], run.metrics["eval_reference"]
            parts = ", ".join(
                f"{k.removeprefix('eval_loss_')} {v:.4g}" for k, v in run.metrics.items() if k.startswith("eval_loss_")
            )
            print(f"| {name} | {kind} | {seed} | {loss:.4g} | {guess:.4g} | {loss / guess:.3f} | {parts} |", flush=True)


if __name__ == "__main__":
    main()
