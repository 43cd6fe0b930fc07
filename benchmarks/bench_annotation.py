"""How fast are cells named? A fitted annotator against scanpy's ingest and CellTypist, on the same cells in one process.

All three are fitted before the clock starts, on the same cells with the same labels; what is timed is what a user does with
new cells whose counts are in memory. What is not installed is named and skipped: CellTypist 1.7 needs scikit-learn below
1.8, scanpy's ingest pynndescent below 0.6.
"""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from packaging.version import Version
from timing import Row, interleaved, seconds

from scfm import genes
from scfm.annotation import Annotator

N_TYPES, N_GENES, N_MARKERS = 8, 12_000, 100
N_REFERENCE, N_QUERY = 2_000, 2_000
N_STORED, WIDTH = 100_000, 192
COUNTS = 4_000
RIGHT = 0.8
"""Share of the cells that both have to name rightly before anything is timed."""


def cells(n: int, seed: int) -> anndata.AnnData:
    """Made-up cells of types that differ in their markers, about 2,000 of 12,000 genes expressed."""
    always, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    base = always.lognormal(0, 2, N_GENES)
    rates = np.tile(base, (N_TYPES, 1))
    for row in rates:
        row[always.choice(N_GENES, N_MARKERS, replace=False)] *= 8
    codes = rng.integers(0, N_TYPES, n)
    counts = [rng.poisson(COUNTS * rates[code] / rates[code].sum()).astype(np.float32) for code in codes]
    obs = pd.DataFrame({"label": pd.Categorical([f"type {code}" for code in codes])}, index=[f"c{i}" for i in range(n)])
    table = genes.protein_coding("human")
    symbols = table.loc[table["symbol"] != "", "symbol"].drop_duplicates()[:N_GENES]
    return anndata.AnnData(sp.csr_matrix(np.stack(counts)), obs=obs, var=pd.DataFrame(index=[*symbols]))


def logged(adata: anndata.AnnData) -> anndata.AnnData:
    """A copy with log values per 10,000 counts, as scanpy and CellTypist want them."""
    import scanpy as sc

    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def by_scfm(reference: anndata.AnnData) -> Any:
    """Embeds the cells and names them with the two regressions."""
    fitted = Annotator.fit(reference, "label", method="linear")
    return lambda query: fitted.annotate(query, reject=False, use_rep=False).labels


def by_ingest(reference: anndata.AnnData) -> Any:
    """Scanpy's ingest without UMAP: principal components of the reference, and its nearest neighbours."""
    import scanpy as sc

    reference = logged(reference)
    sc.pp.pca(reference, 50)
    sc.pp.neighbors(reference)

    def named(query: anndata.AnnData) -> Any:
        mapped = logged(query)
        sc.tl.ingest(mapped, reference, obs="label", embedding_method="pca")
        return mapped.obs["label"].astype(str).to_numpy()

    return named


def runs_ingest() -> bool:
    """Whether scanpy finds the function of pynndescent that it calls: its arguments are others from 0.6 on."""
    return find_spec("pynndescent") is not None and Version(version("pynndescent")) < Version("0.6")


def by_celltypist(reference: anndata.AnnData) -> Any:
    """CellTypist with its defaults."""
    import celltypist

    model = celltypist.train(logged(reference), labels="label", check_expression=False, n_jobs=1)
    return lambda query: (
        celltypist.annotate(logged(query), model=model).predicted_labels["predicted_labels"].astype(str).to_numpy()
    )


@contextlib.contextmanager
def quiet() -> Any:
    """Without what the others print."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)
        yield
        logging.disable(logging.NOTSET)


def against(rivals: Sequence[tuple[str, Any]]) -> Iterator[Row]:
    """Cells named per second by scfm and by each other, after both have been found right."""
    with quiet():
        reference, query = cells(N_REFERENCE, 0), cells(N_QUERY, 1)
        ours = by_scfm(reference)
    truth = query.obs["label"].astype(str).to_numpy()
    for name, fit in rivals:
        with quiet():
            theirs = fit(reference)
            right = [float((way(query) == truth).mean()) for way in (ours, theirs)]
            if min(right) < RIGHT:
                raise AssertionError(f"not all cells are named rightly: scfm {right[0]:.3f}, {name} {right[1]:.3f}")
            own, other, ratio = interleaved(lambda: ours(query), lambda way=theirs: way(query))
        what = f"naming {N_QUERY:,} cells with counts in memory, against {name} (right: {right[0]:.2f}, {right[1]:.2f})"
        yield what, f"{N_QUERY / own:,.0f} cells/s", f"{N_QUERY / other:,.0f} cells/s", ratio


def stored(method: str) -> Row:
    """100,000 cells that bring their vectors along; the aim is 20 s, the ratio is what is left of it."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N_TYPES, WIDTH))

    def make(n: int) -> anndata.AnnData:
        codes = rng.integers(0, N_TYPES, n)
        vectors = (centres[codes] + rng.standard_normal((n, WIDTH))).astype(np.float32)
        obs = pd.DataFrame({"label": [f"type {code}" for code in codes]}, index=[f"c{i}" for i in range(n)])
        return anndata.AnnData(None, obs=obs, obsm={"X_v": vectors}, shape=(n, 0))

    with quiet():
        fitted = Annotator.fit(make(N_REFERENCE), "label", model=None, use_rep="X_v", method=method)
        query = make(N_STORED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = seconds(lambda: fitted.annotate(query))
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    what = f"naming {N_STORED:,} cells by stored vectors, {method} ({more:.0f} MB more), against 20 s"
    return what, f"{took:.1f} s", "20 s", 20 / took


def run() -> Iterator[Row]:
    """Rows of (name, ours, reference, ratio), as they come."""
    rivals = [
        ("scanpy's ingest", by_ingest, "pynndescent below 0.6", runs_ingest()),
        ("CellTypist", by_celltypist, "celltypist", find_spec("celltypist") is not None),
    ]
    yield from against([(name, way) for name, way, _needs, there in rivals if there])
    for name, _way, needs, there in rivals:
        if not there:
            yield f"naming cells against {name}: skipped, needs {needs}", "", "", float("nan")
    yield stored("embedding-linear")
    yield stored("knn")


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<90} {ours:>16} {reference:>16} {ratio:8.2f}")
