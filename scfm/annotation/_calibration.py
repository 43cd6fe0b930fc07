"""When is 90 % right in 9 of 10 cases? A temperature, and the one score by which cells are rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.annotation._classifiers import Codes

FLOOR = 1e-6
"""Least probability before the temperature is applied."""
GRID = np.linspace(0, 1, 201)
"""Levels at which scores of reference cells are kept."""
MIN_CELLS = 20
"""Classes with fewer held-out cells share the threshold of all."""
Floats = NDArray[np.float64]


def tempered(p: Floats, temperature: float) -> Floats:
    """Probabilities (n, K) as p^(1/T) / sum p^(1/T) (Guo et al. 2017, arXiv:1706.04599)."""
    logits = np.log(np.maximum(p, FLOOR)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    out = np.exp(logits)
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def fit_temperature(p: Floats, codes: Codes) -> float:
    """The temperature that makes held-out classes (n,) likeliest under probabilities (n, K)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(codes))

    def loss(log_t: float) -> float:
        return float(-np.log(np.maximum(tempered(p, np.exp(log_t))[rows, codes], 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


@dataclass(frozen=True, eq=False)
class Rejection:
    """One score of how little a cell looks like a known one, and the scores of held-out reference cells.

    ``score = (1 - p) + d / 2``: p the calibrated probability of the likeliest class, d the distance from the reference
    as a multiple of the distance that 95 % of held-out reference cells stay below, the mean over views.

    Parameters
    ----------
    scales
        That 95 % distance by view.
    quantiles
        (K + 1, 201) quantiles of the score of held-out cells by their predicted class; the last row is of all.
    """

    scales: Mapping[str, float]
    quantiles: Floats

    @classmethod
    def fit(cls, p: Floats, novelty: Mapping[str, Floats]) -> Rejection:
        """From calibrated probabilities (n, K) and distances (n,) of held-out reference cells."""
        scales = {view: max(float(np.quantile(d, 0.95)), 1e-9) for view, d in novelty.items()}
        bare = cls(scales, np.zeros((0, 0)))
        scores = (1 - p.max(axis=1)) + bare.far(novelty, len(p)) / 2
        predicted = p.argmax(axis=1)
        rows = [scores[predicted == code] for code in range(p.shape[1])]
        quantiles = [np.quantile(own if len(own) >= MIN_CELLS else scores, GRID) for own in (*rows, scores)]
        return cls(scales, np.stack(quantiles))

    def far(self, novelty: Mapping[str, Floats], n: int) -> Floats:
        """(n,) distance from the reference: 1 at the edge of what its own cells reach."""
        if not self.scales:
            return np.zeros(n)
        return np.asarray(np.mean([novelty[view] / scale for view, scale in self.scales.items()], axis=0))

    def thresholds(self, false_rejection: float, tolerance: float) -> Floats:
        """(K + 1,) score above which a cell is rejected, by its likeliest class.

        Parameters
        ----------
        false_rejection
            Share of cells of a known class, measured like the reference, that may be rejected.
        tolerance
            No cell with a lower score is rejected. 0: the share above is exhausted; 1: a cell of another assay whose
            class is certain may lie at twice the distance of the reference's edge before it is unknown.
        """
        level = np.array([np.interp(1 - false_rejection, GRID, row) for row in self.quantiles])
        return np.maximum(level, tolerance)

    def restricted(self, kept: Sequence[int] | Codes) -> Rejection:
        """To some of the classes."""
        return Rejection(self.scales, self.quantiles[[*kept, -1]])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` takes, with the scales elsewhere."""
        return {"quantiles": self.quantiles.astype(np.float32)}
