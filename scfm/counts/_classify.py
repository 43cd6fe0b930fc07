"""Raw counts, fractions, logarithms, scaled values: what is this matrix?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from scfm.counts._evidence import SAMPLE_ROWS, Evidence, canonical, describe, row_sums, sampled_rows, share
from scfm.counts._readers import RowReader, Rows, reading
from scfm.counts._recovery import LINEAR, LOG_SCALES, Precision, Recovered, Recovery
from scfm.counts._report import Candidate
from scfm.counts._target import constant, find_target

LARGEST_LOGARITHM = 30.0
"""No logarithm of normalised counts reaches this; larger values are on a linear scale."""
SOME_INTEGERS = 0.05
"""Fractional counts leave at least this share of whole numbers or have values no logarithm reaches."""
CHECKED_ENTRIES = 10_000_000
"""Of normalised matrices in memory with no more entries every cell is checked at once, not only the sample."""
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
    with reading(where):
        rows = canonical(reader.take(numbers), reader.shape[1])
    evidence = describe(rows, reader)
    kind, found, recovery = _kind(rows, evidence, obs.iloc[numbers])
    if recovery is not None and evidence.n_sampled < evidence.n_cells:
        n_entries = evidence.n_values / evidence.n_sampled * evidence.n_cells
        if not (reader.on_disk or reader.is_dask) and n_entries <= CHECKED_ENTRIES:
            exact = _share_exact(recovery, reader)
            if exact < 1.0:
                kind = "normalised, not counts" if recovery.scale is LINEAR else "log-normalised"
                found = [f"{share(exact)} of all cells hold exact {recovery.scale.phrase}, the others do not"]
                recovery = None
            else:
                found.append("all cells were checked")
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
    scales = [s for s in (*LOG_SCALES, LINEAR) if s is LINEAR or evidence.largest <= LARGEST_LOGARITHM]
    nearly = ""
    for scale in scales:
        for known in (0.0,) if scale is LINEAR else (1.0, 0.0):
            recovery = Recovery(scale, precision, known)
            recovered = _try(recovery, rows, evidence.n_columns)
            if recovered is None or (scale is LINEAR and _is_unit(recovered, evidence)):
                continue
            if recovered.proven:
                return _way_back(recovery, recovered, obs)
            nearly = nearly or _almost(recovery, recovered)
    for scale in scales:
        low, high = (row_sums(rows.indptr, v) for v in precision.bounds(rows.data, scale))
        filled = np.diff(rows.indptr) > 0
        whole = constant(low[filled], high[filled], slack=1e-3)
        if whole is not None:
            undone = "values" if scale is LINEAR else f"{scale.name} undone, values"
            kind = "normalised, not counts" if scale is LINEAR else "log-normalised"
            return kind, [f"{undone} sum to {whole:,.6g} in every cell", *filter(None, [nearly])], None
    if nearly and scales == [LINEAR]:
        return "normalised, not counts", [nearly], None
    if evidence.largest > LARGEST_LOGARITHM or _has_integers(evidence):
        return "fractional counts", [], None
    return ("log-normalised", [nearly], None) if nearly else ("unclear", [], None)


def _has_integers(evidence: Evidence) -> bool:
    """Whether there are more whole numbers than values with few decimal places have by chance."""
    by_chance = 0.0 if evidence.decimals is None else 10.0**-evidence.decimals
    return evidence.share_integers >= max(SOME_INTEGERS, 2 * by_chance)


def _oddities(rows: Rows, evidence: Evidence) -> list[str]:
    """What is strange about whole numbers."""
    found = []
    if evidence.n_values and evidence.largest == 1.0:
        found.append("all values are 0 or 1: binarised?")
    sums = evidence.row_sums
    if evidence.n_sampled - evidence.n_empty > 2 and sums[0] == sums[2]:
        found.append(f"every cell sums to {sums[0]:,.6g}: downsampled, or normalised and rounded?")
    return found


def _share_exact(recovery: Recovery, reader: RowReader) -> float:
    """Share of all cells whose counts come back exactly."""
    n_cells, n_columns = reader.shape
    spans = reader.spans(0, n_cells, SAMPLE_ROWS)
    return sum(int(recovery(reader.rows(a, b), n_columns).exact.sum()) for a, b in spans) / n_cells


def _try(recovery: Recovery, rows: Rows, n_columns: int) -> Recovered | None:
    """Counts of the sampled rows; None if the first few already say that there are none."""
    n = len(rows.indptr) - 1
    if n > _FIRST and recovery(rows.cut(0, _FIRST), n_columns).fits.mean() <= _MANY:
        return None
    return recovery(rows, n_columns)


def _is_unit(recovered: Recovered, evidence: Evidence) -> bool:
    """Whether counts with a unit (halves, say) fit as well: one scale in all cells, or many whole numbers."""
    scales = recovered.scales[recovered.scales > 0]
    return not len(scales) or bool(np.ptp(scales) <= 1e-6 * scales.max()) or _has_integers(evidence)


def _almost(recovery: Recovery, recovered: Recovered) -> str:
    """Why counts that seem to be there are not taken."""
    fits, exact, is_linear = float(recovered.fits.mean()), float(recovered.exact.mean()), recovery.scale is LINEAR
    what, stored = recovery.scale.phrase, recovery.precision.name
    if fits == 1.0:
        too_coarse = f"are too coarse ({stored}) to tell one count from the next in {share(1 - exact)} of the cells"
        why = f"are too few or too coarse ({stored}) to prove it" if exact == 1.0 else too_coarse
        return "" if is_linear else f"this could be {what}, but the values {why}"
    return (
        f"{share(fits)} of the cells looked at hold {what}, the others no multiples of a count" if fits > _MANY else ""
    )


def _way_back(recovery: Recovery, recovered: Recovered, obs: pd.DataFrame) -> tuple[str, list[str], Recovery]:
    """Kind, findings and the finished way back."""
    n, digits = int((recovered.scales > 0).sum()), float(recovered.digits.sum())
    found = [
        f"counts computed back: one scale makes whole numbers of all values in {n:,} of {n:,} cells, within the stored "
        f"precision ({recovery.precision.name}); largest {recovered.rows.data.max(initial=0):,.0f}; chance would do that "
        f"once in 10^{digits:.0f}"
    ]
    name = recovery.scale.name
    if recovery.known_scale:
        return (
            name,
            [*found, "not normalised before: totals are the sums of the rows"],
            replace(recovery, complete=True),
        )
    low, high = (row_sums(recovered.rows.indptr, v) for v in recovered.bounds)
    target = find_target(recovered, low, high, obs)
    if target.value is None:
        found.append(f"total counts unknown, the sums of the genes present stand for them: {target.how}")
    else:
        totals = "the sums of the rows" if target.complete else f"{target.value:,.6g} / the value of one count"
        assumed = "" if target.certain else " ASSUMED"
        found.append(f"target sum {target.value:,.6g}{assumed}: {target.how}; totals are {totals}")
    return name, found, replace(recovery, target_sum=target.value, complete=target.complete)
