"""Raw counts, fractions, logarithms, scaled values: what is this matrix?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scfm.counts._evidence import Evidence, canonical, describe, row_sums, sampled_rows, share
from scfm.counts._readers import RowReader, Rows
from scfm.counts._recovery import LINEAR, LOG_SCALES, Precision, Recovered, Recovery
from scfm.counts._report import Candidate
from scfm.counts._target import constant, find_target

LARGEST_LOGARITHM = 30.0
"""No logarithm of normalised counts reaches this; larger values are on a linear scale."""
SOME_INTEGERS = 0.05
"""Fractional counts leave at least this share of whole numbers or have values no logarithm reaches."""
FEW_UNSURE = 0.01
"""Share of the values that may be stored too coarsely for one whole number."""
_MANY = 0.5
_FIRST = 32


def examine(where: str, reader: RowReader, obs: pd.DataFrame) -> tuple[Candidate, Recovery | None]:
    """Look at a sample of a matrix.

    Parameters
    ----------
    where
        Name of the matrix.
    reader
        Of its rows.
    obs
        Annotation of its cells: a column of totals can tell the target sum.

    Returns
    -------
    What it holds, and the way back to counts where one is needed and proven.
    """
    numbers = sampled_rows(reader)
    rows = canonical(reader.take(numbers), reader.shape[1])
    evidence = describe(rows, reader)
    kind, found, recovery = _kind(rows, evidence, obs.iloc[numbers])
    return Candidate(where, kind, f"{reader.storage}, {reader.dtype}", evidence, tuple(found)), recovery


def _kind(rows: Rows, evidence: Evidence, obs: pd.DataFrame) -> tuple[str, list[str], Recovery | None]:
    if not evidence.n_values:
        return "empty", [], None
    if evidence.n_nan or evidence.n_inf:
        return "not finite", [], None
    if evidence.n_negative:
        return "scaled", [], None
    if evidence.share_integers == 1.0:
        return "counts", _oddities(rows, evidence), None
    precision = Precision.of(rows.data, evidence.decimals)
    nearly: list[str] = []
    for scale in (*LOG_SCALES, LINEAR):
        if scale is LINEAR and evidence.share_integers >= SOME_INTEGERS:
            continue
        if scale is not LINEAR and evidence.largest > LARGEST_LOGARITHM:
            continue
        for known in (1.0, 0.0) if scale is not LINEAR else (0.0,):
            recovery = Recovery(scale, precision, known)
            recovered = _try(recovery, rows, evidence.n_columns)
            if recovered is None or (scale is LINEAR and _one_scale(recovered)):
                continue
            unsure = recovered.unsure.sum() / evidence.n_values
            if recovered.proven and unsure <= FEW_UNSURE:
                return _recovered(recovery, recovered, obs)
            fitting = float(recovered.fits.mean())
            if fitting == 1.0:
                nearly.append(
                    f"{scale.name} of counts would fit, but values {precision.name} are too few or too coarse to prove it"
                )
            elif fitting > _MANY:
                nearly.append(f"{scale.name} of counts would fit {share(fitting)} of the cells looked at, not all")
    for scale in (*LOG_SCALES, LINEAR):
        if scale is not LINEAR and evidence.largest > LARGEST_LOGARITHM:
            continue
        sums = row_sums(rows.indptr, scale.undo(rows.data.astype(np.float64)))
        whole = constant(sums[np.diff(rows.indptr) > 0])
        if whole is not None:
            says = (
                f"{'values' if scale is LINEAR else scale.name + ' undone, values'} sum to {whole:,.6g} in every cell"
            )
            return ("normalised, not counts" if scale is LINEAR else "log-normalised"), [says, *nearly], None
    if evidence.largest > LARGEST_LOGARITHM or evidence.share_integers >= SOME_INTEGERS:
        return "fractional counts", nearly, None
    return ("log-normalised" if nearly else "unclear"), nearly, None


def _oddities(rows: Rows, evidence: Evidence) -> list[str]:
    """What is strange about whole numbers."""
    found = []
    if evidence.n_values and evidence.largest == 1.0:
        found.append("all values are 0 or 1: binarised?")
    sums = evidence.row_sums
    if evidence.n_sampled - evidence.n_empty > 2 and sums[0] == sums[2]:
        found.append(f"every cell sums to {sums[0]:,.6g}: downsampled, or normalised and rounded?")
    return found


def _try(recovery: Recovery, rows: Rows, n_columns: int) -> Recovered | None:
    """Counts of the sampled rows; None if the first few already say that there are none."""
    n = len(rows.indptr) - 1
    if n > _FIRST and recovery(rows.cut(0, _FIRST), n_columns).fits.mean() <= _MANY:
        return None
    return recovery(rows, n_columns)


def _one_scale(recovered: Recovered) -> bool:
    """Whether all cells have the same scale: then it is a unit, not a normalisation."""
    scales = recovered.scales[recovered.scales > 0]
    return bool(np.ptp(scales) <= 1e-6 * scales.max()) if len(scales) else True


def _recovered(recovery: Recovery, recovered: Recovered, obs: pd.DataFrame) -> tuple[str, list[str], Recovery]:
    """Kind, findings and the finished way back."""
    filled = np.diff(recovered.rows.indptr) > 0
    n, digits = int(filled.sum()), float(recovered.digits.sum())
    largest = recovered.rows.data.max(initial=0)
    precision = recovery.precision.name
    found = [
        f"counts computed back: whole numbers in {n:,} of {n:,} cells within the stored precision ({precision}), "
        f"largest {largest:,.0f}; chance would do that once in 10^{min(digits, 9999):.0f}"
    ]
    unsure = int(recovered.unsure.sum())
    if unsure:
        found.append(
            f"{share(unsure / len(recovered.rows.data))} of the values are too coarse for one whole number; the nearest is taken"
        )
    name = recovery.scale.name
    if recovery.known_scale:
        return (
            name,
            [*found, "not normalised: the row sums are the totals"],
            Recovery(recovery.scale, recovery.precision, recovery.known_scale, None, True),
        )
    target = find_target(recovered, obs)
    if target.value is None:
        found.append(f"total counts unknown, the sums of the genes present stand for them: {target.how}")
    else:
        totals = "row sums" if target.complete else f"{target.value:,.6g} / the value of one count"
        found.append(
            f"target sum {target.value:,.6g}{'' if target.certain else ' ASSUMED'}: {target.how}; totals are {totals}"
        )
    return name, found, Recovery(recovery.scale, recovery.precision, 0.0, target.value, target.complete)
