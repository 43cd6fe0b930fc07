"""What were the cells normalised to? The target sum, where the data can tell it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.counts._evidence import row_sums, share
from scfm.counts._recovery import ENOUGH_DIGITS, Recovered

COMMON = (1e4, 1e6, 1e5, 1e3)
"""Target sums that are tried first; the first is what is assumed when nothing tells."""
TOTAL_COLUMNS = (
    "n_counts", "total_counts", "ncount_rna", "n_umi", "n_umis", "numi", "numis", "umis", "umi_count", "umi_counts",
    "total_umis", "nreads", "library_size", "libsize",
)  # fmt: skip
"""Names (in lower case) of obs columns that usually hold a cell's total count."""
_SAME = 2e-3
"""Relative distance within which sums of rounded values are equal."""
_HIGHEST_MEDIAN = 200_000


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


def constant(sums: NDArray[np.float64]) -> float | None:
    """The value that all row sums have, if they have one."""
    if not len(sums):
        return None
    middle = float(np.median(sums))
    same = float(np.abs(sums - middle).max()) <= _SAME * middle
    return _rounded(middle) if same and (len(sums) > 2 or _rounded(middle) in COMMON) else None


def find_target(recovered: Recovered, obs: pd.DataFrame) -> Target:
    """The target sum of cells whose counts were recovered.

    Parameters
    ----------
    recovered
        Sampled cells, all of which fit.
    obs
        Annotation of the same cells.
    """
    filled = np.flatnonzero(recovered.scales > 0)
    scales = recovered.scales[filled]
    present = row_sums(recovered.rows.indptr, recovered.rows.data)[filled]
    normalised = present * scales
    whole = constant(normalised)
    if whole is not None:
        return Target(whole, True, f"every cell's normalised values sum to {whole:,.6g}, so no gene is missing")
    from_obs = _from_obs(scales, obs.iloc[filled])
    if from_obs is not None:
        return from_obs
    least = float(normalised.max()) * (1 - _SAME)
    missing = f"genes are missing (the normalised values of a cell sum to {normalised.min():,.6g} ... {normalised.max():,.6g})"
    bounds = recovered.scale_bounds[filled]
    likely = [t for t in COMMON if t >= least]
    for target in likely:
        if _whole_totals(target, bounds) == "all":
            return Target(target, False, f"{missing}; {target:,.6g} makes every cell's total a whole number")
    median = _whole_median(least, bounds)
    if median is not None:
        return Target(
            median, False, f"{missing}; {median:,.6g} is the least that makes every cell's total a whole number"
        )
    if COMMON[0] in likely and _whole_totals(COMMON[0], bounds) != "none":
        return Target(COMMON[0], False, f"{missing}; nothing in the data tells the target sum", certain=False)
    return Target(
        None, False, f"{missing}; {COMMON[0]:,.6g} does not fit and nothing tells the target sum", certain=False
    )


def _from_obs(scales: NDArray[np.float64], obs: pd.DataFrame) -> Target | None:
    """The target sum by which a column of totals agrees with the scales."""
    for name in obs.columns:
        if str(name).lower() not in TOTAL_COLUMNS or not pd.api.types.is_numeric_dtype(obs[name]):
            continue
        totals = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
        products = totals * scales
        middle = float(np.nanmedian(products)) if np.isfinite(products).any() else 0.0
        if middle <= 0 or np.ptp(totals[np.isfinite(totals)]) <= _SAME * np.nanmedian(totals):
            continue
        agree = np.abs(products - middle) <= _SAME * middle
        if agree.mean() >= 0.9:
            value = _rounded(middle)
            return Target(
                value,
                False,
                f"obs[{name!r}] x the value of one count = {value:,.6g} in {share(agree.mean())} of the cells",
            )
    return None


def _whole_totals(target: float, bounds: NDArray[np.float64]) -> str:
    """Whether all cells' totals can be whole numbers: "all" beyond chance, "some" (cannot tell), or "none"."""
    low, high = target / bounds[:, 1] * (1 - 1e-9), target / bounds[:, 0] * (1 + 1e-9)
    if bool((np.floor(high) < np.ceil(low)).any()):
        return "none"
    digits = -np.log10(np.clip(high - low, 1e-9, 1.0)).sum()
    return "all" if digits >= ENOUGH_DIGITS else "some"


def _whole_median(least: float, bounds: NDArray[np.float64]) -> float | None:
    """The least whole or half number (a median of totals) that makes all totals whole numbers beyond chance."""
    left = np.arange(int(2 * least), 2 * _HIGHEST_MEDIAN) / 2
    for low, high in bounds:
        left = left[np.floor(left / low * (1 + 1e-9)) >= np.ceil(left / high * (1 - 1e-9))]
    for target in left[:1]:
        if _whole_totals(float(target), bounds) == "all":
            return float(target)
    return None


def _rounded(value: float) -> float:
    """The common target sum that a measured one stands for, or the value itself."""
    near = [t for t in COMMON if abs(t - value) <= _SAME * t]
    return near[0] if near else value
