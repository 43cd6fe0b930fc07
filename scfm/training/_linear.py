"""What can be read off frozen vectors? Linear maps, neighbours and the best guess without looking, and their scores."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the L2 penalty on the weights of standardised axes that are tried."""
MOST_FITTED = 20_000
N_NEIGHBORS = 15
LEAST_SPREAD = 1e-6
"""Axes whose standard deviation is below this share of their mean are rounding, and left out."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """Outputs x W' + b.

    Parameters
    ----------
    weights
        (K, d)
    bias
        (K,)
    """

    weights: Floats
    bias: Floats

    def __call__(self, x: NDArray[np.floating[Any]]) -> Floats:
        """(n, d) -> (n, K) logits or numbers."""
        return np.asarray(x, dtype=np.float64) @ self.weights.T + self.bias


def fit_linear(
    x: NDArray[np.floating[Any]],
    y: NDArray[Any],
    n_classes: int | None,
    *,
    weights: NDArray[np.floating[Any]] | None = None,
    held_out: tuple[NDArray[np.floating[Any]], NDArray[Any]] | None = None,
    seed: int = 0,
) -> LinearMap:
    """Logistic or ridge regression on standardised axes, folded into one map of the vectors as they are.

    Parameters
    ----------
    x
        (n, d) vectors.
    y
        (n,) codes, or numbers.
    n_classes
        Number of classes; None: numbers.
    weights
        (K,) of the classes.
    held_out
        Vectors and answers by whose loss the penalty is chosen; None: 0.1.
    seed
        Of the sample, where there are more rows than `MOST_FITTED`.
    """
    rows = _sample(y, n_classes, seed)
    x, y = np.asarray(x, dtype=np.float64)[rows], y[rows]
    center, spread = x.mean(axis=0), x.std(axis=0)
    flat = spread <= np.maximum(LEAST_SPREAD * np.abs(center), 1e-30)
    inverse = np.where(flat, 0.0, 1 / np.where(flat, 1.0, spread))
    z = (x - center) * inverse
    fits = [_fit(z, y, n_classes, c, weights) for c in (PENALTIES if held_out is not None else PENALTIES[2:3])]
    folded = [LinearMap(f.weights * inverse, f.bias - (f.weights * inverse) @ center) for f in fits]
    if held_out is None:
        return folded[0]
    return min(folded, key=lambda f: mean_loss(f(held_out[0]), held_out[1], n_classes, weights))


def _sample(y: NDArray[Any], n_classes: int | None, seed: int) -> NDArray[np.int64]:
    """Rows that are fitted on; the rarest classes keep all theirs."""
    if len(y) <= MOST_FITTED:
        return np.arange(len(y))
    rng = np.random.default_rng([seed, 5])
    order = rng.permutation(len(y))
    if n_classes is not None:
        rank = np.empty(len(y))
        for code in range(n_classes):
            here = order[y[order] == code]
            # the first few of each class go first
            rank[here] = np.where(np.arange(len(here)) < 50, -1.0, rng.random(len(here)))
        order = np.argsort(rank, kind="stable")
    return np.sort(order[:MOST_FITTED])


def _fit(z: Floats, y: NDArray[Any], n_classes: int | None, c: float, weights: NDArray[Any] | None) -> LinearMap:
    if n_classes is None:
        # the penalty that counts the same per row as in the logistic regression
        a = np.column_stack([z, np.ones(len(z))])
        ridge = np.append(np.full(z.shape[1], 1 / c), 1e-9)
        solution = np.linalg.solve(a.T @ a + np.diag(ridge), a.T @ y)
        return LinearMap(solution[None, :-1], solution[-1:])
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    here = np.unique(y)
    out = LinearMap(np.zeros((n_classes, z.shape[1])), np.full(n_classes, -30.0))
    out.bias[here] = 0.0
    if len(here) < 2:
        return out
    each = None if weights is None else np.asarray(weights, dtype=np.float64)[y]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=c, max_iter=200, tol=1e-3).fit(z, y, sample_weight=each)
    two = len(here) == 2
    out.weights[here] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
    out.bias[here] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
    return out


def nearest(
    x: NDArray[np.floating[Any]],
    y: NDArray[Any],
    n_classes: int | None,
    query: NDArray[np.floating[Any]],
    seed: int = 0,
) -> Floats:
    """What the 15 nearest known vectors (by cosine) say: (q, K) logits of their shares, or (q, 1) mean numbers."""
    from sklearn.neighbors import NearestNeighbors

    rows = _sample(y, n_classes, seed)
    x, y = np.asarray(x, dtype=np.float64)[rows], y[rows]
    k = min(N_NEIGHBORS, len(x))
    near = NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors(query, return_distance=False)
    if n_classes is None:
        return np.asarray(y[near].mean(axis=1, keepdims=True))
    votes = np.zeros((len(query), n_classes))
    np.add.at(votes, (np.arange(len(query))[:, None], y[near]), 1.0)
    # half a vote is shared out between all classes
    return np.log((votes + 0.5 / n_classes) / (k + 0.5))


def mean_loss(
    outputs: Floats, y: NDArray[Any], n_classes: int | None, weights: NDArray[np.floating[Any]] | None = None
) -> float:
    """Weighted mean cross entropy, or mean squared error."""
    if not len(y):
        return float("nan")
    if n_classes is None:
        return float(np.square(outputs[:, 0] - y).mean())
    each = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)[y]
    cost = -log_softmax(np.asarray(outputs, dtype=np.float64), axis=1)[np.arange(len(y)), y]
    return float((cost * each).sum() / max(each.sum(), 1e-12))


def scores(outputs: Floats, y: NDArray[Any], kind: Literal["classes", "number"]) -> dict[str, float]:
    """How good outputs are.

    Parameters
    ----------
    outputs
        (n, K) logits, or (n, 1) numbers in the unit of ``y``.
    y
        (n,) codes, or numbers.
    kind
        What they are.

    Returns
    -------
    For classes ``accuracy``, ``macro_f1`` (mean over the classes that occur) and ``log_loss``; for numbers ``r2``,
    ``spearman`` and ``rmse``.
    """
    if kind == "number":
        error = np.square(outputs[:, 0] - y)
        spread = float(np.square(y - y.mean()).mean()) if len(y) else 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant input: the rank correlation is not defined
            ranks = float(spearmanr(outputs[:, 0], y).statistic) if len(y) > 2 else float("nan")
        return {
            "r2": 1 - float(error.mean()) / spread if spread else float("nan"),
            "spearman": ranks,
            "rmse": float(np.sqrt(error.mean())) if len(y) else float("nan"),
        }
    guess = outputs.argmax(axis=1)
    return {
        "accuracy": float((guess == y).mean()) if len(y) else float("nan"),
        "macro_f1": macro_f1(guess, y),
        "log_loss": mean_loss(outputs, y, outputs.shape[1]),
    }


def macro_f1(guess: NDArray[np.integer[Any]], y: NDArray[np.integer[Any]]) -> float:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    found = [2 * ((guess == c) & (y == c)).sum() / max((guess == c).sum() + (y == c).sum(), 1) for c in np.unique(y)]
    return float(np.mean(found)) if found else float("nan")


def probabilities(outputs: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(n, K) of logits."""
    return softmax(np.asarray(outputs, dtype=np.float64), axis=1).astype(np.float32)
