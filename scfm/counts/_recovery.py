"""Can counts be had back from normalised values?

A normalised value is ``count * scale``, with one scale per cell (target sum divided by the cell's total), often
behind a logarithm. Values are stored with a known precision, so each is known to lie in a small interval. If one
scale makes all values of a cell whole multiples within these intervals, the multiples are the counts, up to a factor
common to the whole cell; that the smallest value is the smallest possible count settles the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.counts._evidence import canonical, row_sums
from scfm.counts._kernels import recover_counts
from scfm.counts._readers import Rows

ENOUGH_DIGITS = 12.0
"""Chance must be excluded to 1 in 10 to this, over all sampled cells together."""
_COMPUTED = 5e-7
"""Relative error of a float32 normalisation before the logarithm."""


@dataclass(frozen=True)
class Scale:
    """How values were made from normalised ones.

    Parameters
    ----------
    name
        Short.
    phrase
        What the values are.
    base
        Base of the logarithm of (1 + x); None: no logarithm.
    """

    name: str
    phrase: str
    base: float | None

    def undo(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normalised values."""
        return values if self.base is None else np.expm1(values * np.log(self.base))


LOG_SCALES = (
    Scale("log1p", "log1p of normalised counts", np.e),
    Scale("log2(x + 1)", "log2(x + 1) of normalised counts", 2.0),
    Scale("log10(x + 1)", "log10(x + 1) of normalised counts", 10.0),
)
LINEAR = Scale("normalised", "normalised counts", None)


@dataclass(frozen=True)
class Precision:
    """How exactly values are stored.

    Parameters
    ----------
    absolute, relative
        Bounds of the error of a stored value.
    name
        In words.
    """

    absolute: float
    relative: float
    name: str

    @classmethod
    def of(cls, values: NDArray[Any], decimals: int | None) -> Precision:
        """The coarsest precision that all values have."""
        if decimals is not None:
            return cls(0.5 * 10.0**-decimals, 2.0**-22, f"rounded to {decimals} decimals")
        with np.errstate(over="ignore"):
            if bool(np.all(values == values.astype(np.float16))):
                return cls(2.0**-25, 2.0**-11, "float16")
        return cls(0.0, 2.0**-22, "float32" if bool(np.all(values == values.astype(np.float32))) else "float64")

    def bounds(self, values: NDArray[Any], scale: Scale) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest normalised value behind each stored one, as (nnz,) arrays."""
        exact = values.astype(np.float64)
        error = self.absolute + self.relative * exact
        return np.maximum(scale.undo(exact - error), 1e-300) * (1 - _COMPUTED), scale.undo(exact + error) * (
            1 + _COMPUTED
        )


@dataclass(frozen=True)
class Recovered:
    """Counts of some cells.

    Parameters
    ----------
    rows
        The cells; ``data`` float64 whole numbers.
    scales
        (n,) normalised value of one count; 0 for empty cells.
    scale_bounds
        (n, 2) scales that agree with all values.
    digits
        (n,) decimal digits by which chance is excluded.
    unsure
        (n,) values that agree with counts further apart than `HARMLESS`.
    fits
        (n,) whether one scale makes whole numbers of all values.
    bounds
        Two (nnz,) arrays: least and greatest normalised value of each entry.
    """

    rows: Rows
    scales: NDArray[np.float64]
    scale_bounds: NDArray[np.float64]
    digits: NDArray[np.float64]
    unsure: NDArray[np.int64]
    fits: NDArray[np.bool_]
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """(n,) whether every value of the cell has one count."""
        return self.fits & (self.unsure == 0)

    @property
    def proven(self) -> bool:
        """Whether all cells are exact, and not by chance."""
        return bool(self.exact.all()) and float(self.digits.sum()) >= ENOUGH_DIGITS


@dataclass(frozen=True)
class Recovery:
    """A proven way back to counts, applied to each cell by itself.

    Parameters
    ----------
    scale, precision
        How the values were made and stored.
    known_scale
        Normalised value of one count in all cells, 0: found per cell.
    target_sum
        What each cell was normalised to; None: unknown, totals are the sums of the rows.
    complete
        The matrix holds all genes that the cells were normalised over: totals are the sums of the rows.
    """

    scale: Scale
    precision: Precision
    known_scale: float = 0.0
    target_sum: float | None = None
    complete: bool = False

    def __call__(self, rows: Rows, n_columns: int) -> Recovered:
        """Counts of some cells; any order and repeats of entries are allowed."""
        rows = canonical(rows, n_columns)
        n = len(rows.indptr) - 1
        counts, scales = np.zeros(len(rows.data)), np.zeros(n)
        scale_bounds, digits = np.zeros((n, 2)), np.zeros(n)
        unsure, fits = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        values = self.scale.undo(rows.data.astype(np.float64))
        low, high = self.precision.bounds(rows.data, self.scale)
        recover_counts(
            rows.indptr, values, low, high, self.known_scale, counts, scales, scale_bounds, digits, unsure, fits
        )
        return Recovered(rows._replace(data=counts), scales, scale_bounds, digits, unsure, fits, (low, high))

    def totals(self, recovered: Recovered) -> NDArray[np.float64]:
        """(n,) true totals: target sum divided by the value of one count, or the sum of the row."""
        if self.target_sum is None or self.complete:
            return row_sums(recovered.rows.indptr, recovered.rows.data)
        filled = recovered.scales > 0
        return np.divide(self.target_sum, recovered.scales, out=np.zeros(len(filled)), where=filled)
