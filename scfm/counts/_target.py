"""What were the cells normalised to? The target sum, where the data can tell it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.counts._evidence import share
from scfm.counts._recovery import ENOUGH_DIGITS, Recovered

COMMON = (1e4, 1e6, 1e5, 1e3)
"""Target sums that are tried first; the first is what is assumed when nothing tells."""
TOTAL_COLUMNS = (
    "n_counts", "total_counts", "ncount_rna", "n_umi", "n_umis", "numi", "numis", "umis", "umi_count", "umi_counts",
    "total_umis", "nreads", "library_size", "libsize",
)  # fmt: skip
"""Names (in lower case) of obs columns that usually hold a cell's total count."""
_SAME = 2e-3
"""Relative distance within which a total computed from rounded values equals one that was counted."""
_HIGHEST = 1_000_000
_SIEVE = 64
_NEARLY = 1e-4


@dataclass(frozen=True)
class Target:
    """A target sum and how it is known.

    Parameters
    ----------
    value
        None: unknown.
    complete
        All genes that were normalised over are there.
    how
        In words.
    certain
        False: assumed.
    """

    value: float | None
    complete: bool
    how: str
    certain: bool = True


def constant(low: NDArray[np.float64], high: NDArray[np.float64], slack: float = 1e-5) -> float | None:
    """The one value that the sums of all rows can have, if there is one.

    Parameters
    ----------
    low, high
        (n,) bounds of the sum of each row.
    slack
        Relative error of a sum besides.
    """
    if not len(low):
        return None
    least, most = float(low.max()) * (1 - slack), float(high.min()) * (1 + slack)
    if least > most:
        return None
    middle = 0.5 * (least + most)
    nice = [t for t in (*COMMON, round(middle), round(2 * middle) / 2) if least <= t <= most]
    return nice[0] if nice and (len(low) > 2 or nice[0] in COMMON) else middle if len(low) > 2 else None


def find_target(recovered: Recovered, low: NDArray[np.float64], high: NDArray[np.float64], obs: pd.DataFrame) -> Target:
    """The target sum of cells whose counts were recovered.

    Parameters
    ----------
    recovered
        Sampled cells, all of which fit.
    low, high
        (n,) bounds of the sum of the normalised values of each cell.
    obs
        Annotation of the same cells.
    """
    filled = np.flatnonzero(recovered.scales > 0)
    low, high, bounds = low[filled], high[filled], recovered.scale_bounds[filled]
    whole = constant(low, high)
    if whole is not None:
        return Target(whole, True, f"every cell's normalised values sum to {whole:,.6g}, so no gene is missing")
    missing = f"genes are missing (the normalised values of a cell sum to {low.min():,.6g} ... {high.max():,.6g})"
    from_obs = _from_obs(recovered.scales[filled], bounds, obs.iloc[filled])
    if from_obs is not None:
        return Target(from_obs.value, False, f"{missing}; {from_obs.how}")
    least = float(low.max())
    proven = _least_whole(least, bounds)
    if proven is not None:
        return Target(
            proven, False, f"{missing}; {proven:,.6g} is the least that makes every cell's total a whole number"
        )
    nothing = "nothing in the data tells the target sum"
    if COMMON[0] >= least and _digits_of_whole(COMMON[0], bounds) is not None:
        return Target(COMMON[0], False, f"{missing}; {nothing}", certain=False)
    return Target(None, False, f"{missing}; {COMMON[0]:,.6g} does not fit and {nothing}", certain=False)


def _from_obs(scales: NDArray[np.float64], bounds: NDArray[np.float64], obs: pd.DataFrame) -> Target | None:
    """The target sum by which a column of totals agrees with the scales."""
    for name in obs.columns:
        if str(name).lower() not in TOTAL_COLUMNS or not pd.api.types.is_numeric_dtype(obs[name]):
            continue
        totals = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
        products = totals * scales
        middle = float(np.nanmedian(products)) if np.isfinite(products).any() else 0.0
        near = [t for t in COMMON if abs(t - middle) <= _SAME * t]
        varies = np.nanmax(totals) - np.nanmin(totals) > _SAME * np.nanmax(totals) if middle > 0 else False
        if not (varies or near):
            continue
        agree = np.abs(products - middle) <= _SAME * middle
        if agree.mean() >= 0.9:
            exact = constant(totals[agree] * bounds[agree, 0], totals[agree] * bounds[agree, 1])
            value = exact or (near[0] if near else middle)
            says = f"obs[{name!r}] x the value of one count = {value:,.6g} in {share(agree.mean())} of the cells"
            return Target(value, False, says)
    return None


def _digits_of_whole(target: float, bounds: NDArray[np.float64]) -> float | None:
    """Decimal digits by which chance is excluded that all totals are whole numbers; None: they are not."""
    low, high = target / bounds[:, 1] * (1 - 1e-9), target / bounds[:, 0] * (1 + 1e-9)
    if bool((np.floor(high) < np.ceil(low)).any()):
        return None
    return float(-np.log10(np.clip(high - low, 1e-9, 1.0)).sum())


def _least_whole(least: float, bounds: NDArray[np.float64]) -> float | None:
    """The least target sum that makes all totals whole numbers beyond chance.

    Whole and half numbers are tried (the median of the totals is often the target), and the common target sums.
    Multiples of the true one would do as well; smaller ones would not.
    """
    widths = least / bounds[:, 0] - least / bounds[:, 1]
    if -np.log10(np.clip(widths, 1e-9, 1.0)).sum() < ENOUGH_DIGITS:
        return None
    tried = np.arange(np.ceil(2 * least), 2 * _HIGHEST) / 2
    tried = np.union1d(tried, [t for t in COMMON if t >= least])
    for low, high in bounds[np.argsort(widths)[:_SIEVE]]:
        tried = tried[np.floor(tried / low * (1 + 1e-9)) >= np.ceil(tried / high * (1 - 1e-9))]
    whole = next((float(t) for t in tried if (_digits_of_whole(t, bounds) or 0.0) >= ENOUGH_DIGITS), None)
    if whole is None:
        return None
    common = (t for t in COMMON if abs(t - whole) <= _NEARLY * t and _digits_of_whole(t, bounds) is not None)
    return next(common, whole)
