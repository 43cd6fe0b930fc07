"""Made-up cells with known types: each type expresses its own genes more."""

from __future__ import annotations

from functools import cache

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm import genes

TYPES = ("CD4+/CD25 T", "CD8 T", "B", "Mono")
N_GENES = 400
MARKERS = 40


@cache
def names() -> tuple[str, ...]:
    """Ensembl ids of protein-coding genes."""
    table = genes.table("human")
    coding = table[(table["status"] == "current") & (table["biotype"] == "protein_coding") & (table["symbol"] != "")]
    return tuple(coding["ensembl_id"][:: len(coding) // N_GENES][:N_GENES])


def cells(
    n: int = 50, types: tuple[str, ...] = TYPES, *, seed: int = 0, strength: float = 4.0, depth: int = 1500
) -> anndata.AnnData:
    """``n`` cells of each type; a new type has markers of its own."""
    rng = np.random.default_rng([seed, 7])
    base = np.random.default_rng(1).gamma(0.5, size=N_GENES) + 0.05
    places = {
        name: np.random.default_rng([2, *name.encode()]).choice(N_GENES, MARKERS, replace=False) for name in types
    }
    labels = np.repeat(types, n)
    rates = np.tile(base, (len(labels), 1))
    for name, place in places.items():
        rates[np.ix_(labels == name, place)] *= strength
    rates *= rng.gamma(20, 1 / 20, rates.shape)
    x = rng.poisson(depth * rates / rates.sum(axis=1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(labels), "donor": [f"d{i % 4}" for i in range(len(labels))]},
        index=[f"c{seed}_{i}" for i in range(len(labels))],
    )
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=list(names())))


def with_vectors(adata: anndata.AnnData, slot: str = "X_vec") -> anndata.AnnData:
    """The cells with vectors of unknown origin in ``.obsm``: a fixed projection of log expression."""
    x = np.log1p(1e4 * adata.X.toarray() / np.maximum(adata.X.sum(axis=1), 1))
    axes = np.random.default_rng(3).standard_normal((adata.n_vars, 100)) / 20
    adata.obsm[slot] = np.asarray(x @ axes, dtype=np.float32)
    return adata
