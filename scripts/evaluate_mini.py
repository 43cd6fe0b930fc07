"""Score an embedding on label transfer and mixing, beside baselines fitted on the evaluated cells.

    python scripts/evaluate_mini.py DATA [--model scfm-mini] [--rows WORD ...] [--out scores.csv]

DATA holds ``reference/*.h5ad`` and ``benchmark/*.h5ad``; what is scored stands in ``transfer_protocol.py``. scVI is scored
where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from transfer_protocol import (
    Cells,
    Embed,
    adapted,
    centred,
    evaluated_files,
    model_embedding,
    protocol,
    random_projection,
    remembered,
)

from scfm.evaluation._baselines import fit_scvi, harmony, log_values
from scfm.models._bag_model import gene_vectors
from scfm.models._registry import locate
from scfm.training._projection import ProjectionRecipe, load_statistics


def pca(
    sets: Sequence[Cells], *, n_genes: int = 2000, n_axes: int = 50, scaled: bool = False, per_set: bool = False
) -> list[NDArray[Any]]:
    """PCA of log1p counts per 10,000 of highly variable genes, fitted on the very cells.

    ``scaled``: each gene at unit variance, cut at 10, as in many a tutorial; ``per_set``: centred by set.
    """
    import anndata
    import scanpy as sc

    x = sp.vstack([log_values(s.counts, 1e4) for s in sets]).tocsr()
    shared = np.logical_or.reduce([s.measured for s in sets])
    adata = anndata.AnnData(x[:, shared].astype(np.float32))
    sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.X = adata.X.toarray()
    if scaled:
        sc.pp.scale(adata, max_value=10)
    dense = adata.X
    parts = np.split(dense, np.cumsum([len(s) for s in sets])[:-1])
    if per_set:
        dense = np.concatenate([p - p.mean(0) for p in parts])
    u, s, _ = svds(dense - dense.mean(0), k=n_axes, random_state=0)
    return np.split(u * s, np.cumsum([len(s) for s in sets])[:-1])


def pca_harmony(sets: Sequence[Cells], *, scaled: bool = False) -> list[NDArray[Any]]:
    """PCA, corrected for the set by Harmony; a single set stays as it is."""
    x = pca(sets, scaled=scaled)
    if len(sets) == 1:
        return x
    sizes = [len(s) for s in sets]
    corrected = harmony(np.concatenate(x), np.repeat(np.arange(len(sets)), sizes), 0)
    return np.split(corrected, np.cumsum(sizes)[:-1])


def scvi(sets: Sequence[Cells]) -> list[NDArray[Any]]:
    """scVI at its defaults, fitted on the very cells, with the set as its batch."""
    sizes = [len(s) for s in sets]
    shared = np.logical_or.reduce([s.measured for s in sets])
    counts = sp.vstack([s.counts for s in sets]).tocsr()[:, shared]
    return np.split(fit_scvi(counts, np.repeat(np.arange(len(sets)), sizes), 0).cells, np.cumsum(sizes)[:-1])


def random_network(vocabulary: Any) -> Embed:
    """A transformer over ranked genes whose weights are drawn, not learnt."""
    from scfm.training._architectures import new_model, seeded
    from scfm.training._config import ModelConfig

    seeded(0)
    sizes = ModelConfig(kind="ranks", n_layers=2, width=128, max_length=512, vocabulary="geneformer-v1")
    return model_embedding(new_model(sizes, None, "random network"), vocabulary)


def adapted_embedding(model: Any, folder: Path, n_axes: int = 128) -> Embed:
    """The vectors of the model fitted again to its corpus and all sets together, each a set of its own."""
    recipe = ProjectionRecipe(**model.card.details["recipe"])
    statistics = load_statistics(folder, gene_vectors(model).astype(np.float64), recipe)
    return adapted(statistics, replace(recipe, n_axes=n_axes), model.vocabulary, model.card)


def main() -> None:
    """Print the table."""
    import scfm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with reference/ and benchmark/")
    parser.add_argument("--model", default="scfm-mini", help="name or folder of a model")
    parser.add_argument("--out", type=Path, help="all values and intervals as a table")
    parser.add_argument("--rows", nargs="*", help="only the embeddings whose name holds one of these words")
    args = parser.parse_args()
    model = scfm.models.load(args.model)
    files = dict(evaluated_files(args.data, model.vocabulary))
    zero_shot, fitted_again = model_embedding(model), adapted_embedding(model, locate(args.model)[0])
    embeddings = {
        args.model: zero_shot,
        f"{args.model} centred per set": centred(zero_shot),
        "random projection 192": random_projection,
        "random network": random_network(model.vocabulary),
        "PCA-50 of HVG-2000, fitted on these cells": pca,
        "the same, centred per set": lambda sets: pca(sets, per_set=True),
        "the same with Harmony": pca_harmony,
        "PCA of scaled genes": lambda sets: pca(sets, scaled=True),
        "PCA of scaled genes, centred per set": lambda sets: pca(sets, scaled=True, per_set=True),
        "PCA of scaled genes with Harmony": lambda sets: pca_harmony(sets, scaled=True),
        f"{args.model} adapted": fitted_again,
        f"{args.model} adapted, centred per set": centred(fitted_again),
    }
    if find_spec("scvi"):
        embeddings["scVI, fitted on these cells"] = remembered(scvi)
    if args.rows:
        embeddings = {name: embed for name, embed in embeddings.items() if any(word in name for word in args.rows)}
    tables = {}
    for name, embed in embeddings.items():
        tables[name] = protocol(embed, files)
        print(
            name,
            *(f"{row} {v:.3f} [{a:.3f}, {b:.3f}]" for row, v, a, b in tables[name].itertuples()),
            sep="\n  ",
            flush=True,
        )
    everything = pd.concat(tables, names=["embedding", "row"])
    if args.out is not None:
        everything.to_csv(args.out)
    print(everything["value"].unstack()[next(iter(tables.values())).index].loc[list(tables)].round(3).to_string())


if __name__ == "__main__":
    main()
