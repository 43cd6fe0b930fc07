"""Does a model's perturbation say more than expression does? Null genes, a linear rival, p values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class LinearEffect:
    """The same edits in the space of principal components, as a rival that knows nothing but these cells.

    Parameters
    ----------
    expression
        (n, g) log-normalised expression.
    scores
        (n, k) coordinates of the cells.
    loadings
        (g, k) of the genes.
    """

    expression: csr_matrix
    scores: NDArray[np.float64]
    loadings: NDArray[np.float64]

    @classmethod
    def fit(cls, expression: csr_matrix, n_components: int = 50, seed: int = 0) -> LinearEffect:
        """Principal components of these cells, all genes, centred and not scaled."""
        from sklearn.decomposition import PCA

        k = min(n_components, min(expression.shape) - 1)
        if k < 1:
            empty = np.zeros((expression.shape[0], 0)), np.zeros((expression.shape[1], 0))
            return cls(expression, *empty)
        pca = PCA(k, svd_solver="arpack" if k < min(expression.shape) else "full", random_state=seed)
        scores = pca.fit_transform(expression)
        return cls(expression, np.asarray(scores, dtype=np.float64), np.asarray(pca.components_.T, dtype=np.float64))

    def cosine(
        self, cells: NDArray[np.integer[Any]], genes: NDArray[np.integer[Any]], kind: Literal["delete", "overexpress"]
    ) -> NDArray[np.float64]:
        """(m,) cosine of each cell's coordinates before and after: the genes at 0, or at the cell's highest value.

        NaN where there are no components.
        """
        rows = self.expression[cells]
        now = rows[:, genes].toarray()
        goal = 0.0 if kind == "delete" else rows.max(axis=1).toarray()
        before = self.scores[cells]
        after = before + (goal - now) @ self.loadings[genes]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(
                (before * after).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
            )


def matched_genes(
    mean: NDArray[np.floating[Any]], gene: int, n: int, exclude: NDArray[np.integer[Any]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Random genes that are expressed about as much as one.

    Parameters
    ----------
    mean
        (g,) mean expression of each gene; genes at 0 are never drawn.
    gene
        Number of the gene.
    n
        How many; they are drawn from the ``3 n`` genes that are nearest in mean expression.
    exclude
        Genes that are not drawn.
    rng
        Source of the draw.
    """
    candidates = np.flatnonzero(mean > 0)
    candidates = candidates[~np.isin(candidates, exclude) & (candidates != gene)]
    nearest = candidates[np.argsort(np.abs(mean[candidates] - mean[gene]), kind="stable")[: 3 * n]]
    return np.sort(rng.permutation(nearest)[:n])


def empirical_p(value: float, null: NDArray[np.floating[Any]]) -> float:
    """Share of null values that are as low or lower, the value itself counted: ``(1 + #{null <= value}) / (1 + n)``.

    Phipson and Smyth (2010). NaN without a null value, or for a value that is NaN.
    """
    null = null[~np.isnan(null)]
    return float((1 + np.count_nonzero(null <= value)) / (1 + len(null))) if len(null) and value == value else np.nan
