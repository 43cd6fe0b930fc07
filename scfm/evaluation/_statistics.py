"""How sure is a score? Bootstrap over people or cells, paired differences, correction for many comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfm.evaluation._scores import Codes, Floats, Score

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Resampling:
    """Which units are drawn how often.

    Parameters
    ----------
    unit
        (n,) unit of each cell: the cell itself, or its group.
    weights
        (B, units) how often each unit occurs in each replicate.
    over
        What a unit is.
    """

    unit: Codes
    weights: NDArray[np.float32]
    over: Literal["cells", "groups"]

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.weights.shape[1]

    def replicates(self, score: Score) -> Floats:
        """(B,) values of a score; the same replicates for every score, so that differences are paired."""
        sums = score.cells
        if self.over == "groups":
            n = len(self.unit)
            join = sp.csr_matrix((np.ones(n), (self.unit, np.arange(n))), shape=(self.n_units, n))
            sums = join @ sums
        return np.asarray(score.reduce(np.asarray(self.weights @ sums, dtype=np.float64)))


def resample_cells(stratum: Codes, n_boot: int, seed: int) -> Resampling:
    """Draw cells with replacement within strata.

    Parameters
    ----------
    stratum
        (n,) codes, such as label x batch.
    n_boot
        Replicates.
    seed
        Of the draws.
    """
    return Resampling(np.arange(len(stratum)), _draws(stratum, n_boot, seed), "cells")


def resample_groups(group: Codes, stratum: Codes, n_boot: int, seed: int) -> Resampling:
    """Draw whole groups (people, batches) with replacement, within strata where several groups share one.

    Parameters
    ----------
    group
        (n,) codes.
    stratum
        (n,) codes. Where every group lies in one stratum and no stratum has a single group, groups are drawn within
        strata; otherwise freely.
    n_boot, seed
        See `resample_cells`.
    """
    names, unit = np.unique(group, return_inverse=True)
    pairs = np.unique(np.stack([unit, stratum]), axis=1)
    nested = pairs.shape[1] == len(names) and bool((np.bincount(pairs[1])[np.unique(pairs[1])] > 1).all())
    of_unit = pairs[1] if nested else np.zeros(len(names), dtype=np.int64)
    return Resampling(unit.ravel(), _draws(of_unit, n_boot, seed), "groups")


def _draws(stratum: Codes, n_boot: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, 1])
    weights = np.zeros((n_boot, len(stratum)), dtype=np.float32)
    for code in np.unique(stratum):
        units = np.flatnonzero(stratum == code)
        picked = rng.integers(0, len(units), (n_boot, len(units)))
        for replicate, which in enumerate(picked):
            weights[replicate, units] = np.bincount(which, minlength=len(units))
    return weights


def interval(replicates: Floats, n_units: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval, widened for few units.

    The tails are cut at Phi(-sqrt(n / (n - 1)) t), with t the quantile of Student's distribution with n - 1 degrees of
    freedom: the expanded percentile interval (Hesterberg 2015, The American Statistician 69:371, section 5.3). With
    three people that is the whole range of the replicates.

    Parameters
    ----------
    replicates
        (B,)
    n_units
        Number of units that were drawn.
    level
        Nominal coverage.

    Returns
    -------
    Ends; NaN with fewer than two units or no finite replicate.
    """
    from scipy.stats import t

    finite = replicates[np.isfinite(replicates)]
    if n_units < 2 or not len(finite):
        return float("nan"), float("nan")
    z = float(np.sqrt(n_units / (n_units - 1)) * t.ppf((1 + level) / 2, n_units - 1))
    tail = NormalDist().cdf(-z)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def p_value(differences: Floats) -> float:
    """Two-sided: how rarely the replicates of a difference fall on the other side of 0, at least 2 / (B + 1).

    Differences of 0 count as both sides.
    """
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        return float("nan")
    least = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (1 + least) / (1 + len(finite))))


def holm(p: Floats) -> Floats:
    """Holm's step-down correction (Holm 1979, Scand. J. Statist. 6:65); NaN stays, and does not count."""
    out = np.full(len(p), np.nan)
    there = np.flatnonzero(np.isfinite(p))
    order = there[np.argsort(p[there], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0) if len(order) else out[order]
    return out


def subsample(strata: Codes, n: int, seed: Any) -> NDArray[np.int64]:
    """Sorted rows of a stratified draw without replacement: shares of the strata kept, at least one cell of each.

    Parameters
    ----------
    strata
        (N,) codes.
    n
        Cells wanted; all if there are no more.
    seed
        Of the draw.
    """
    if n >= len(strata):
        return np.arange(len(strata))
    rng = np.random.default_rng(seed)
    names, codes, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    exact = sizes * n / len(strata)
    wanted = np.maximum(np.floor(exact).astype(int), 1)
    spare = n - int(wanted.sum())
    for code in np.argsort(np.floor(exact) - exact, kind="stable")[: max(spare, 0)]:
        wanted[code] += wanted[code] < sizes[code]
    rows = [rng.choice(np.flatnonzero(codes.ravel() == c), wanted[c], replace=False) for c in range(len(names))]
    return np.sort(np.concatenate(rows))
