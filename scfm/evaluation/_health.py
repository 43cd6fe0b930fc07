"""Is this embedding alive? A few figures that show a collapse at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLLAPSED_COSINE = 0.999
COLLAPSED_RANK = 2.0


@dataclass(frozen=True)
class Health:
    """Figures of an embedding.

    Parameters
    ----------
    n_cells, n_empty
        Cells, and those without a vector (NaN rows).
    mean_cosine
        Mean cosine between random pairs of cells; near 1: all cells look alike.
    effective_rank
        Exponential of the entropy of the normalised singular values of the centred embedding (Roy and
        Vetterli 2007, EUSIPCO): how many directions are in use.
    """

    n_cells: int
    n_empty: int
    mean_cosine: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether the cells can hardly be told apart."""
        enough = self.n_cells - self.n_empty >= 10
        return enough and (self.mean_cosine > COLLAPSED_COSINE or self.effective_rank < COLLAPSED_RANK)

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


def health(x: NDArray[np.floating[Any]], n_sample: int = 2000, seed: int = 0) -> Health:
    """Figures of an embedding.

    Parameters
    ----------
    x
        (n, d) vectors; NaN rows are cells without one.
    n_sample
        Cells and pairs that are looked at.
    seed
        Of their choice.
    """
    x = np.asarray(x)
    there = np.flatnonzero(~np.isnan(x).any(axis=1))
    empty = len(x) - len(there)
    if len(there) < 2:
        return Health(len(x), empty, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    rows = there if len(there) <= n_sample else rng.choice(there, n_sample, replace=False)
    sample = x[rows].astype(np.float64)
    unit = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
    first = rng.integers(0, len(rows), n_sample)
    second = (first + rng.integers(1, len(rows), n_sample)) % len(rows)
    cosine = float((unit[first] * unit[second]).sum(axis=1).mean())
    singular = np.linalg.svd(sample - sample.mean(axis=0), compute_uv=False)
    total = singular.sum()
    share = singular[singular > 0] / total if total > 0 else np.ones(1)
    return Health(len(x), empty, cosine, float(np.exp(-(share * np.log(share)).sum())))
