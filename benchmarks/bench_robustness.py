"""How fast are exact neighbours found, which a robustness report spends most of its time on? Against scikit-learn.

The report itself is timed by ``scripts/time_robustness.py``, on real cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from timing import Row, interleaved

from scfm.evaluation._neighbours import nearest

N_SEARCHED, K = 4_000, 45
WIDTHS = (50, 2_000)
"""Of PCA and of the variable genes."""


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


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<110} {ours:>10} {reference:>10} {ratio:8.2f}")
