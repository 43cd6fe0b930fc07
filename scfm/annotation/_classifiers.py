"""Which class is likely? Two classifiers as plain arrays: nearest neighbours, and logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax

from scfm.errors import require

Codes = NDArray[np.int64]
Vectors = NDArray[np.float32]
N_NEIGHBORS = 15
EXACT = 100_000
"""Up to so many reference cells neighbours are searched exactly."""
MOST_FITTED = 20_000
"""Cells that a regression is fitted on; of a larger reference a stratified sample."""
ABSENT = np.float32(-1e4)
"""Log-odds of a class that a fold has no cell of."""


@dataclass(frozen=True, eq=False)
class Knn:
    """Label transfer from the nearest reference cells, closer ones counting more.

    A neighbour at distance d votes with exp(-(d / m)^2), m the mean distance of the cell's k neighbours.

    Parameters
    ----------
    vectors
        (n, d) of the reference.
    codes
        (n,) class of each.
    n_classes
        Number of classes.
    k
        Neighbours that vote.
    """

    kind: ClassVar[str] = "knn"
    vectors: Vectors
    codes: Codes
    n_classes: int
    k: int = N_NEIGHBORS
    _index: dict[str, Any] = field(default_factory=dict, repr=False)

    def proba(self, x: Vectors, fill: NDArray[np.float32] | None = None) -> Vectors:
        """(q, n_classes) share of the votes."""
        rows, distances = self._nearest(x)
        mean = np.maximum(distances.mean(axis=1, keepdims=True), 1e-12)
        votes = np.exp(-((distances / mean) ** 2))
        out = np.zeros((len(x), self.n_classes))
        np.add.at(out, (np.arange(len(x))[:, None], self.codes[rows]), votes)
        return (out / out.sum(axis=1, keepdims=True)).astype(np.float32)

    def _nearest(self, x: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        k = min(self.k, len(self.vectors))
        if len(self.vectors) > EXACT:
            rows, distances = self._approximate().query(x, k=k)
            return np.asarray(rows, dtype=np.int64), np.asarray(distances, dtype=np.float64)
        from sklearn.neighbors import NearestNeighbors

        if "exact" not in self._index:
            self._index["exact"] = NearestNeighbors(algorithm="brute").fit(self.vectors)
        distances, rows = self._index["exact"].kneighbors(x, n_neighbors=k)
        return rows, distances

    def _approximate(self) -> Any:
        require("pynndescent", f"more than {EXACT:,} reference cells need pynndescent", "annotate")
        from pynndescent import NNDescent

        if "approximate" not in self._index:
            self._index["approximate"] = NNDescent(self.vectors, n_neighbors=30, random_state=0)
        return self._index["approximate"]

    def restricted(self, kept: Codes) -> Knn:
        """With some of the classes, renumbered in the order of ``kept``."""
        place = np.full(self.n_classes, -1)
        place[kept] = np.arange(len(kept))
        codes = place[self.codes]
        return Knn(self.vectors[codes >= 0], codes[codes >= 0], len(kept), self.k)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` takes."""
        return {"vectors": self.vectors, "codes": self.codes, "shape": np.array([self.n_classes, self.k])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Knn:
        """The inverse of `arrays`."""
        n_classes, k = map(int, arrays["shape"])
        return cls(arrays["vectors"], arrays["codes"], n_classes, k)


@dataclass(frozen=True, eq=False)
class Linear:
    """Multinomial logistic regression.

    Parameters
    ----------
    weights
        (K, g)
    bias
        (K,)
    """

    kind: ClassVar[str] = "linear"
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(cls, x: Vectors | csr_matrix, codes: Codes, n_classes: int, c: float, seed: int) -> Linear:
        """With L2 penalty, by scikit-learn.

        Parameters
        ----------
        x
            (n, g) dense or sparse.
        codes
            (n,) classes; those that do not occur get no probability.
        n_classes
            Number of classes.
        c
            Inverse strength of the penalty.
        seed
            Of the sample, where there are more cells than `MOST_FITTED`.
        """
        from sklearn.linear_model import LogisticRegression

        rows = stratified(codes, MOST_FITTED, seed)
        here = np.unique(codes[rows])
        weights = np.zeros((n_classes, x.shape[1]), dtype=np.float32)
        bias = np.full(n_classes, ABSENT, dtype=np.float32)
        bias[here] = 0
        if len(here) > 1:
            model = LogisticRegression(C=c, max_iter=300, tol=1e-3).fit(x[rows], codes[rows])
            two = len(here) == 2
            weights[here[1:] if two else here] = model.coef_
            bias[here[1:] if two else here] = model.intercept_
        return cls(weights, bias)

    def proba(self, x: Vectors | csr_matrix, fill: NDArray[np.float32] | None = None) -> Vectors:
        """(q, K) probabilities; ``fill`` (g,) is added to every row of x."""
        logits = np.asarray(x @ self.weights.T) + self.bias
        if fill is not None:
            logits = logits + self.weights @ fill
        return softmax(logits.astype(np.float64), axis=1).astype(np.float32)

    def restricted(self, kept: Codes) -> Linear:
        """With some of the classes."""
        return replace(self, weights=self.weights[kept], bias=self.bias[kept])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` takes."""
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Linear:
        """The inverse of `arrays`."""
        return cls(arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32))


def stratified(codes: Codes, n: int, seed: int) -> NDArray[np.int64]:
    """Sorted rows of a sample that keeps the shares of the classes, and at least two cells of each; all if n suffices."""
    if len(codes) <= n:
        return np.arange(len(codes))
    rng = np.random.default_rng([seed, 3])
    rows = []
    for code in np.unique(codes):
        here = np.flatnonzero(codes == code)
        wanted = min(len(here), max(2, round(len(here) * n / len(codes))))
        rows.append(rng.choice(here, wanted, replace=False))
    return np.sort(np.concatenate(rows))
