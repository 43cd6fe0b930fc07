"""Nearest genes of some markers by the vectors of scfm-mini, beside a plain co-expression PCA of the same cells.

    python scripts/nearest_genes.py DATA

DATA holds ``corpus/``. The PCA: 50 axes of log1p counts per 10,000 of all corpus cells together, loadings times singular
values. Genes in fewer than 50 cells are left out of both lists. Last column: genes among the 50 nearest of both.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from choose_mini import corpus
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

import scfm
from scfm import genes
from scfm.evaluation._baselines import log_values
from scfm.evaluation._space import prepared

MARKERS = [
    "CD3E",
    "MS4A1",
    "NKG7",
    "CD14",
    "FCGR3A",
    "PPBP",
    "HBB",
    "COL1A1",
    "EPCAM",
    "PECAM1",
    "INS",
    "GAD1",
    "TNNT2",
    "MKI67",
    "IFIT1",
    "KRT14",
]
AT_LEAST, SHOWN, COMPARED = 50, 6, 50


def loadings(x: sp.csr_matrix, n_axes: int = 50) -> NDArray[Any]:
    """(V, n_axes) right singular vectors of the centred matrix, times the singular values."""
    mean = np.asarray(x.mean(axis=0)).ravel()
    centred = LinearOperator(
        x.shape,
        lambda b: x @ b.ravel() - mean @ b.ravel(),
        rmatvec=lambda b: x.T @ b.ravel() - mean * b.sum(),
        dtype=np.float64,
    )
    _, singular, axes = svds(centred, k=n_axes, random_state=0)
    return axes.T * singular


def nearest(vectors: NDArray[Any], gene: int, allowed: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """The n genes of the highest cosine."""
    cosine = np.where(allowed & (np.abs(vectors).sum(axis=1) > 0), vectors @ vectors[gene], -2)
    cosine[gene] = -2
    return np.argsort(-cosine, kind="stable")[:n]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with corpus/")
    data = parser.parse_args().data
    model = scfm.models.load("scfm-mini")
    known = genes.table("human").set_index("ensembl_id")["symbol"]
    ids = np.array(model.vocabulary.names)[model.vocabulary.is_gene]
    symbols = np.array([known.get(name) or name for name in ids])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        files = corpus(data, model.vocabulary)
    x = sp.vstack([log_values(cells.counts, 1e4) for cells, _ in files.values()]).tocsr()
    expressed = x.getnnz(axis=0) >= AT_LEAST
    ours = prepared(model.embed_genes(kind="input").vectors[model.vocabulary.is_gene])
    plain = prepared(loadings(x).astype(np.float32))
    print("| gene | scfm-mini | co-expression PCA | shared |\n| --- | --- | --- | ---: |")
    for marker in MARKERS:
        at = int(np.flatnonzero(symbols == marker)[0])
        lists = [nearest(v, at, expressed, COMPARED) for v in (ours, plain)]
        names = (", ".join(symbols[found[:SHOWN]]) for found in lists)
        print(f"| {marker} |", " | ".join(names), f"| {len(np.intersect1d(*lists))} |")


if __name__ == "__main__":
    main()
