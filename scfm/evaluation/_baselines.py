"""What does one get without a foundation model? Baselines fitted on the very cells, and controls with a known score."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfm.evaluation._scores import Codes, Floats

N_GENES = 2000
N_AXES = 50
N_RANDOM = 192
RANDOM_TARGET = 300.0

Project = Callable[[sp.csr_matrix, "NDArray[np.bool_] | None"], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A baseline on the evaluated cells.

    Parameters
    ----------
    cells
        (n, d) float32.
    project
        Embeds other counts (m, g) without fitting again, given the (g,) genes that were measured (None: all); None
        where the method has no such way.
    note
        What a reader should know.
    """

    cells: NDArray[np.float32]
    project: Project | None = None
    note: str = ""


@dataclass(frozen=True)
class Baseline:
    """A row of the table of baselines.

    Parameters
    ----------
    title
        As in the report.
    fit
        Of (n, g) counts, (n,) batches, and a seed.
    needs
        Package beside scikit-learn and scanpy; empty: none.
    install
        Line that installs it.
    batches
        Whether it needs more than one batch.
    knows
        Word for the leakage column.
    """

    title: str
    fit: Callable[[sp.csr_matrix, Codes, int], Fitted]
    needs: str = ""
    install: str = ""
    batches: bool = False
    knows: str = "fitted here"

    @property
    def is_here(self) -> bool:
        """Whether the package is installed."""
        return not self.needs or find_spec(self.needs) is not None


def log_values(counts: sp.csr_matrix, target: float = 1e4) -> sp.csr_matrix:
    """(n, g) log1p of counts per ``target``; cells without counts stay 0."""
    values = counts.astype(np.float64)
    total = np.asarray(values.sum(axis=1)).ravel()
    values.data = np.log1p(values.data * np.repeat(target / np.maximum(total, 1e-12), np.diff(values.indptr)))
    return values


def variable_genes(counts: sp.csr_matrix, n_genes: int = N_GENES) -> NDArray[np.int64]:
    """Columns of the highly variable genes (scanpy's default, on log1p of counts per 10,000)."""
    import anndata
    import scanpy as sc

    expressed = np.flatnonzero(counts.getnnz(axis=0) > 0)
    if len(expressed) <= n_genes:
        return expressed
    adata = anndata.AnnData(log_values(counts)[:, expressed].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
    return expressed[np.flatnonzero(adata.var["highly_variable"].to_numpy())]


def _centred(counts: sp.csr_matrix, columns: NDArray[np.int64], mean: Floats, kept: Any) -> Floats:
    """(n, c) log values of some genes minus their means; genes that were not measured are at their mean."""
    values = log_values(counts)[:, columns].toarray() - mean
    if kept is not None:
        values[:, ~kept[columns]] = 0
    return values


def fit_genes(counts: sp.csr_matrix, _batch: Codes, _seed: int) -> Fitted:
    """2,000 highly variable genes, log1p of counts per 10,000, centred."""
    columns = variable_genes(counts)
    mean = np.asarray(log_values(counts)[:, columns].mean(axis=0)).ravel()

    def project(other: sp.csr_matrix, kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        return _or_nan(_centred(other, columns, mean, kept), other)

    return Fitted(project(counts), project, f"{len(columns):,} genes")


def fit_pca(counts: sp.csr_matrix, _batch: Codes, seed: int) -> Fitted:
    """50 principal components of the 2,000 highly variable genes."""
    from sklearn.decomposition import PCA

    columns = variable_genes(counts)
    mean = np.asarray(log_values(counts)[:, columns].mean(axis=0)).ravel()
    values = _centred(counts, columns, mean, None)
    n_axes = min(N_AXES, len(columns), len(values) - 1)
    pca = PCA(n_axes, svd_solver="covariance_eigh", random_state=seed).fit(values)
    axes = np.asarray(pca.components_.T)

    def project(other: sp.csr_matrix, kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        return _or_nan(_centred(other, columns, mean, kept) @ axes, other)

    return Fitted(project(counts), project, f"{n_axes} axes of {len(columns):,} genes")


def _or_nan(x: Floats, counts: sp.csr_matrix) -> NDArray[np.float32]:
    """Vectors; NaN for cells without any count."""
    out = np.asarray(x, dtype=np.float32)
    out[np.asarray(counts.sum(axis=1)).ravel() == 0] = np.nan
    return out


def harmony(x: NDArray[Any], batch: Codes, seed: int) -> NDArray[np.float32]:
    """Vectors corrected by Harmony (Korsunsky et al. 2019) in the implementation of harmonypy.

    Parameters
    ----------
    x
        (n, d) without NaN.
    batch
        (n,) codes.
    seed
        Of its clusters.
    """
    import harmonypy
    import pandas as pd

    about = pd.DataFrame({"batch": pd.Categorical(batch.astype(str))})
    with _quietly("harmonypy"):
        found = harmonypy.run_harmony(np.asarray(x, dtype=np.float64), about, ["batch"], random_state=seed)
    corrected = np.asarray(found.Z_corr, dtype=np.float32)
    # before version 2 axes x cells
    return corrected if corrected.shape == x.shape else np.ascontiguousarray(corrected.T)


@contextmanager
def _quietly(*loggers: str) -> Iterator[None]:
    """Without the messages and warnings of some libraries, which have loggers of these names."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def fit_harmony(counts: sp.csr_matrix, batch: Codes, seed: int) -> Fitted:
    """PCA, corrected by Harmony; other cells cannot be added without fitting again."""
    fitted = fit_pca(counts, batch, seed)
    return Fitted(harmony(fitted.cells, batch, seed), None, fitted.note)


def fit_scvi(counts: sp.csr_matrix, batch: Codes, seed: int) -> Fitted:
    """ScVI (Lopez et al. 2018) on the highly variable genes, with the batch, at its defaults; NaN for cells without any."""
    import anndata
    import scvi

    columns = variable_genes(counts)
    values = counts[:, columns]
    there = np.flatnonzero(np.asarray(values.sum(axis=1)).ravel() > 0)
    adata = anndata.AnnData(values[there], obs={"batch": batch[there].astype(str)})
    with _quietly("lightning.pytorch", "lightning.fabric", "scvi"):
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata)
        model.train(enable_progress_bar=False, logger=False)
        found = model.get_latent_representation()
    out = np.full((len(batch), found.shape[1]), np.nan, dtype=np.float32)
    out[there] = found
    return Fitted(out, None, f"{len(columns):,} genes")


def fit_random(counts: sp.csr_matrix, _batch: Codes, seed: int) -> Fitted:
    """log1p of counts per 300 times a random matrix: what linear algebra without any data does."""
    axes = np.random.default_rng([seed, 5]).standard_normal((counts.shape[1], N_RANDOM))

    def project(other: sp.csr_matrix, _kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        return _or_nan(log_values(other, RANDOM_TARGET) @ axes, other)

    return Fitted(project(counts), project, f"{N_RANDOM} axes")


BASELINES: Mapping[str, Baseline] = {
    "pca": Baseline("PCA-50", fit_pca),
    "hvg": Baseline("HVG-2000", fit_genes),
    "harmony": Baseline("PCA-50 + Harmony", fit_harmony, "harmonypy", "pip install 'scfm[harmony]'", batches=True),
    "scvi": Baseline("scVI", fit_scvi, "scvi", "pip install 'scfm[scvi]'"),
    "random-projection": Baseline("random projection", fit_random, knows="no training"),
}
"""By name, as ``baselines=`` takes them. ``scfm-mini``, the linear zero-shot baseline, is a model and joins them there."""
ANCHOR = BASELINES["pca"].title
"""What everything is compared with."""


def controls(anchor: NDArray[np.float32], label: Codes, seed: int) -> dict[str, NDArray[np.float32]]:
    """Embeddings whose scores are known beforehand.

    Parameters
    ----------
    anchor
        (n, d) an embedding of the cells.
    label
        (n,) codes.
    seed
        Of what is random.

    Returns
    -------
    ``shuffled rows`` of the embedding and ``random vectors`` know nothing of labels and batches; the ``oracle`` knows
    the labels, and nothing else.
    """
    rng = np.random.default_rng([seed, 6])
    one_hot = np.eye(int(label.max()) + 1, dtype=np.float32)[label]
    # a little noise in every direction: among cells of one label, neighbours are then random
    noise = rng.normal(scale=0.02, size=(len(label), one_hot.shape[1] + 8)).astype(np.float32)
    oracle = np.hstack([one_hot, np.zeros((len(label), 8), dtype=np.float32)]) + noise
    return {
        "shuffled rows": anchor[rng.permutation(len(anchor))],
        "random vectors": rng.standard_normal((len(label), N_AXES)).astype(np.float32),
        "oracle": oracle,
    }
