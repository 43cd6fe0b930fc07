"""How far is a cell from everything in the reference? Mahalanobis distance to the nearest class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.annotation._classifiers import Codes, Vectors

SHRINK = 0.1
"""Share of a round covariance in the one that is used."""


@dataclass(frozen=True, eq=False)
class Distance:
    """Mahalanobis distance to the nearest class centre, with one covariance for all classes.

    The root of Lee et al. 2018 (arXiv:1807.03888), eq. 1; the covariance within classes is shrunk towards a multiple of
    the identity. The root, because cells of another batch or assay lie beside the reference's by some vector: the
    distance grows with its length, the square with the square of it, and known cells look new.

    Parameters
    ----------
    centres
        (K, r) class means, whitened; NaN for classes without a cell.
    whitening
        (d, r)
    """

    centres: NDArray[np.float32]
    whitening: NDArray[np.float32]

    @classmethod
    def fit(cls, x: Vectors, codes: Codes, n_classes: int) -> Distance:
        """From vectors (n, d) and classes (n,) of a reference."""
        wide = x.astype(np.float64)
        centres = np.full((n_classes, x.shape[1]), np.nan)
        for code in np.unique(codes):
            centres[code] = wide[codes == code].mean(axis=0)
        rest = wide - centres[codes]
        covariance = rest.T @ rest / len(x)
        mean = max(float(np.trace(covariance)) / len(covariance), 1e-12)
        values, axes = np.linalg.eigh((1 - SHRINK) * covariance + SHRINK * mean * np.eye(len(covariance)))
        whitening = axes / np.sqrt(values)
        return cls((centres @ whitening).astype(np.float32), whitening.astype(np.float32))

    def __call__(self, x: Vectors) -> NDArray[np.float64]:
        """(q,) distance of vectors (q, d)."""
        white = (x @ self.whitening).astype(np.float64)
        centres = self.centres[~np.isnan(self.centres).any(axis=1)].astype(np.float64)
        squares = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T + (centres**2).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0)))

    def restricted(self, kept: Codes) -> Distance:
        """To some of the classes."""
        return replace(self, centres=self.centres[kept])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` takes."""
        return {"centres": self.centres, "whitening": self.whitening}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Distance:
        """The inverse of `arrays`."""
        return cls(arrays["centres"].astype(np.float32), arrays["whitening"].astype(np.float32))
