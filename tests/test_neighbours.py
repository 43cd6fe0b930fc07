"""Exact neighbours: the same as by measuring every pair in double precision, whatever the vectors are like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scfm.evaluation._neighbours import nearest

N, K = 400, 20


def every_pair(reference: np.ndarray, query: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All distances, sorted; equal ones by number."""
    x = (reference if query is None else query).astype(np.float64)
    distances = np.linalg.norm(x[:, None] - reference.astype(np.float64), axis=2)
    if query is None:
        np.fill_diagonal(distances, np.inf)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


def around(centre: float, spread: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: centre + spread * rng.standard_normal((N, 60))


def with_an_outlier(rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((N, 60))
    x[7] *= 1e4
    return x


VECTORS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "around the origin": around(0, 1),
    "far from the origin and close together": around(1000, 0.05),
    "huge": around(0, 1e15),
    "tiny": around(0, 1e-12),
    "one outlier": with_an_outlier,
}


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("own", [True, False])
def test_neighbours_are_those_of_all_pairs_in_double_precision(kind: str, own: bool) -> None:
    rng = np.random.default_rng(0)
    x = VECTORS[kind](rng).astype(np.float32)
    query = (
        None if own else (x[rng.permutation(N)[:150]] * (1 + 1e-3 * rng.standard_normal((150, 1)))).astype(np.float32)
    )
    rows, distances = nearest(x, query, K)
    expected, far = every_pair(x, query, K)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, far, rtol=1e-6)


def test_of_cells_that_are_alike_the_first_come_first() -> None:
    x = np.repeat(np.eye(4, 9, dtype=np.float32), 5, axis=0)
    rows, distances = nearest(x, None, 6)
    assert rows[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert rows[12].tolist() == [10, 11, 13, 14, 0, 1]
    np.testing.assert_allclose(distances[12], [0, 0, 0, 0, np.sqrt(2), np.sqrt(2)])
    same = np.zeros((8, 3), dtype=np.float32)
    assert nearest(same, same, 2)[0].tolist() == [[0, 1]] * 8


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((N, 12)).astype(np.float32)
    whole = nearest(x, None, K)
    monkeypatch.setattr("scfm.evaluation._neighbours._BLOCK_VALUES", 7 * N)
    for a, b in zip(nearest(x, None, K), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_there_are_no_more_neighbours_than_cells() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    assert nearest(x, None, 9)[0].shape == (5, 4)
    assert nearest(x, x[:2], 9)[0].shape == (2, 5)
    assert nearest(x[:1], None, 9)[0].shape == (1, 0)
    assert nearest(x, x[:0], 9)[0].shape == (0, 5)
