"""How long does a robustness report take? The whole report on some made-up cells, and the search behind most of it.

The aim of 600 s for 8,000 cells is scaled by the number of cells. The part that grows with their square, neighbours and
silhouettes, is smaller among few cells, and the part that does not grow larger: the figures for 8,000 real cells stand in
``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import anndata
import numpy as np
from bench_annotation import cells, quiet
from timing import Row, interleaved, seconds

import scfm
from scfm.evaluation._neighbours import nearest

N_CELLS, N_BATCHES = 1_500, 4
AIM = 600 / 8_000
N_SEARCHED, K = 4_000, 45
WIDTHS = (50, 2_000)
"""Of PCA and of the variable genes."""


def measured(n: int) -> anndata.AnnData:
    """Made-up cells in batches of different depth."""
    adata = cells(n, 0)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, N_BATCHES, n)
    kept = np.repeat((1 - 0.15 * batch), np.diff(adata.X.indptr))
    adata.X.data = rng.binomial(adata.X.data.astype(np.int64), kept).astype(np.float32)
    adata.X.eliminate_zeros()
    adata.obs["batch"] = [f"batch {code}" for code in batch]
    return adata


def report(n: int) -> Row:
    """Every metric, baseline, control and alteration for one model and its centred vectors."""
    adata = measured(n)

    def whole() -> scfm.evaluation.RobustnessReport:
        return scfm.tl.robustness(adata, batch_key="batch", label_key="label", progress=False)

    with quiet():
        took = seconds(whole)
    n_embeddings = len(adata.uns["scfm_robustness"]["costs"]["embedding"])
    what = f"robustness report of {n:,} cells, {n_embeddings} embeddings, all metrics and alterations, against the aim"
    return what, f"{took:.0f} s", f"{AIM * n:.0f} s", AIM * n / took


def search(width: int) -> Row:
    """Exact neighbours against those of scikit-learn, which are compared first."""
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    x = rng.standard_normal((N_SEARCHED, 20)) @ rng.standard_normal((20, width)) + rng.standard_normal(
        (N_SEARCHED, width)
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    query = x + rng.normal(scale=0.01, size=x.shape).astype(np.float32)

    def theirs() -> np.ndarray:
        return NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x).kneighbors(query, return_distance=False)

    if (nearest(x, query, K)[0] != theirs()).any():
        raise AssertionError(f"other neighbours than scikit-learn's at {width} axes")
    ours, other, ratio = interleaved(lambda: nearest(x, query, K), theirs)
    what = f"exact {K} neighbours of {N_SEARCHED:,} cells with {width:,} axes, against scikit-learn"
    return what, f"{ours:.2f} s", f"{other:.2f} s", ratio


def run() -> Iterator[Row]:
    """Rows of (name, ours, reference, ratio), as they come."""
    for width in WIDTHS:
        yield search(width)
    yield report(N_CELLS)


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<110} {ours:>10} {reference:>10} {ratio:8.2f}")
