"""Who is nearest? Candidates by products in single precision, decided in double precision.

For a query x, the cells y are ordered by h(y) = |y|^2 / 2 - x.y, whose products a BLAS computes fast in single precision,
off by at most some delta whatever the order of summation (Higham 2002, Accuracy and Stability of Numerical Algorithms,
section 3.1). Let t be the k-th smallest of these values. Then k cells truly lie below t + delta, so each of the k nearest
was computed to lie below t + 2 delta: only those few are measured again, in double precision. The result is exact.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.evaluation._scores import Floats

_BLOCK_VALUES = 1 << 22
"""Values of h that are held at once by each thread: 16 MiB."""


def nearest(
    reference: NDArray[np.float32], query: NDArray[np.float32] | None, k: int
) -> tuple[NDArray[np.int64], Floats]:
    """Exact nearest neighbours.

    Parameters
    ----------
    reference
        (r, d) without NaN.
    query
        (q, d) without NaN; None: the reference itself, without each cell as its own neighbour.
    k
        Neighbours; fewer where the reference has no more.

    Returns
    -------
    (q, k) rows of the reference, nearest first (of equally near ones the first), and (q, k) Euclidean distances.
    """
    from threadpoolctl import threadpool_limits

    own = query is None
    y = np.ascontiguousarray(reference, dtype=np.float32)
    x = y if query is None else np.ascontiguousarray(query, dtype=np.float32)
    k = min(k, len(y) - own)
    rows, distances = np.zeros((len(x), k), dtype=np.int64), np.full((len(x), k), np.inf)
    if not k or not len(x):
        return rows, distances
    x_near, y_near, half, delta = _in_unit_ball(x, y)
    step = max(1, _BLOCK_VALUES // len(y))

    def work(start: int) -> None:
        here = slice(start, start + step)
        h = x_near[here] @ y_near.T
        np.subtract(half, h, out=h)
        t = np.partition(h, k - 1 + own, axis=1)[:, k - 1 + own]
        limit = np.nextafter(t + np.float32(2 * delta), np.float32(np.inf))
        _decide(h, limit, x[here], y, start if own else -1, rows[here], distances[here])

    # each thread has a block of queries of its own, so the products need no threads of theirs
    with threadpool_limits(1, "blas") as limited:
        threads = limited.get_original_num_threads()["blas"] or 1
        with ThreadPoolExecutor(threads) as pool:
            for _done in pool.map(work, range(0, len(x), step)):
                pass
    return rows, np.sqrt(distances, out=distances)


def _in_unit_ball(
    x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], float]:
    """Both moved and scaled alike, into the unit ball; half the squared norms of y; and delta.

    The move and the scale, a power of two, may be any: they change no order. In units of the roundoff u, delta is d for
    the product and less than 8 for rounding the moved coordinates, half the norm and the difference; twice that is taken.
    """
    middle = y.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_y = y - middle
    moved_x = moved_y if x is y else x - middle
    squares = np.einsum("ij,ij->i", moved_y, moved_y, dtype=np.float64)
    longest = max(squares.max(), np.einsum("ij,ij->i", moved_x, moved_x, dtype=np.float64).max())
    scale = np.float32(2.0 ** -np.ceil(np.log2(longest) / 2)) if longest > 0 else np.float32(1)
    moved_y *= scale
    if moved_x is not moved_y:
        moved_x *= scale
    delta = 2 * (x.shape[1] + 8) * float(np.finfo(np.float32).eps) / 2
    return moved_x, moved_y, (squares * float(scale) ** 2 / 2).astype(np.float32), delta


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _decide(h, limit, x, y, own, rows, squares):  # type: ignore[no-untyped-def]
    """Sort the k nearest of the cells below the limit into each row, by squared distance, equal ones by number.

    Parameters
    ----------
    h
        (q, r) values that order the cells.
    limit
        (q,) highest value of a candidate.
    x, y
        (q, d) queries and (r, d) cells.
    own
        Number of the first query among the cells, if they are the same; otherwise -1.
    rows, squares
        (q, k) to be filled; squares are infinite before.
    """
    k = rows.shape[1]
    for i in range(len(h)):
        for j in range(h.shape[1]):
            if h[i, j] > limit[i] or (own >= 0 and j == own + i):
                continue
            square = 0.0
            for axis in range(x.shape[1]):
                step = np.float64(x[i, axis]) - np.float64(y[j, axis])
                square += step * step
            place = k
            while place > 0 and square < squares[i, place - 1]:
                place -= 1
            if place < k:
                rows[i, place + 1 :] = rows[i, place:-1].copy()
                squares[i, place + 1 :] = squares[i, place:-1].copy()
                rows[i, place], squares[i, place] = j, square
