"""How fast is the built-in model? Against the PCA of the same cells as scanpy users compute it; one thread each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from timing import Row, interleaved

import scfm

N_CELLS = 12_000
N_GENES, EXPRESSED = 20_000, 1_500


def make_cells(n: int = N_CELLS, seed: int = 0) -> AnnData:
    """Cells with so many expressed genes, of which a few are abundant."""
    draw = np.random.default_rng(seed)
    names = scfm.genes.protein_coding("human")["ensembl_id"].to_numpy()[:N_GENES]
    level = np.exp(draw.normal(0, 1.5, len(names)))
    # weighted draws without replacement, some cells at a time
    columns = np.concatenate(
        [
            np.sort(np.argsort(-(np.log(level) + draw.gumbel(size=(rows, len(names)))), axis=1)[:, :EXPRESSED])
            for rows in np.diff([*range(0, n, 1_000), n])
        ]
    )
    counts = 1 + draw.poisson(level[columns] / 4)
    x = sp.csr_matrix(
        (counts.ravel().astype(np.float32), columns.ravel(), np.arange(n + 1) * EXPRESSED), shape=(n, len(names))
    )
    adata = AnnData(x)
    adata.var_names = names
    return adata


def pca(adata: AnnData) -> None:
    """The plain pipeline."""
    import scanpy as sc

    plain = adata.copy()
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.highly_variable_genes(plain, n_top_genes=2000)
    sc.pp.pca(plain, n_comps=50)


def run() -> Iterator[Row]:
    """One row."""
    logging.getLogger("scfm").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    adata = make_cells()
    model = scfm.models.load("scfm-mini")

    def ours() -> None:
        scfm.tl.embed(adata, model, gene_embeddings=None, progress=False)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours()
            mine, theirs, ratio = interleaved(ours, lambda: pca(adata))
    finally:
        torch.set_num_threads(threads)
    n = adata.n_obs
    yield (
        f"scfm-mini, {n:,} cells of {EXPRESSED:,} genes, against scanpy's PCA",
        f"{n / mine:,.0f} cells/s",
        f"{n / theirs:,.0f} cells/s",
        ratio,
    )
