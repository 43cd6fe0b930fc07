"""Which numbers stand in the report? One row per embedding and score, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scfm.evaluation._baselines import ANCHOR
from scfm.evaluation._experiment import Measured, Outcome
from scfm.evaluation._metrics import METRICS
from scfm.evaluation._scores import Floats
from scfm.evaluation._statistics import holm, interval, p_value

COLUMNS = (
    "embedding", "kind", "axis", "metric", "detail", "better", "value", "low", "high", "difference", "difference_low",
    "difference_high", "p", "p_holm", "n_cells", "n_units", "n_subsamples", "leakage",
)  # fmt: skip
"""Of the tidy table. ``difference`` is to PCA-50 on the same cells and replicates; positive is better."""


@dataclass(frozen=True)
class Comparison:
    """A paired difference between two embeddings; positive: the first is better.

    Parameters
    ----------
    value, low, high
        Difference and ends of its interval.
    p
        Two-sided bootstrap p-value.
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return bool(self.low > 0 or self.high < 0)


def split(name: str) -> tuple[str, str]:
    """Metric and detail of the name of a score."""
    metric, _bar, detail = name.partition(" | ")
    return metric, detail


def pooled(measured: Sequence[Measured]) -> tuple[float, Floats | None]:
    """Mean over subsamples, and the replicates of all of them together.

    An interval of the pooled replicates is that of one subsample, widened by how far the subsamples lie apart.
    """
    value = float(np.nanmean([m.value for m in measured])) if not _all_nan(measured) else float("nan")
    if any(m.replicates is None for m in measured):
        return value, None
    return value, np.concatenate([m.replicates for m in measured if m.replicates is not None])


def _all_nan(measured: Sequence[Measured]) -> bool:
    return all(np.isnan(m.value) for m in measured)


def compare(outcome: Outcome, first: str, second: str, name: str) -> Comparison | None:
    """How much better one embedding is than another in one score; None where one of them lacks it."""
    a, b = (outcome.scores.get(s, {}).get(name) for s in (first, second))
    if not a or not b or len(a) != len(b):
        return None
    sign = 1.0 if METRICS[split(name)[0]].better == "higher" else -1.0
    value_a, all_a = pooled(a)
    value_b, all_b = pooled(b)
    value = sign * (value_a - value_b)
    if all_a is None or all_b is None:
        return Comparison(value, float("nan"), float("nan"), float("nan"))
    differences = sign * (all_a - all_b)
    return Comparison(value, *interval(differences, outcome.n_units), p_value(differences))


def tidy(outcome: Outcome, leakage: Mapping[str, str]) -> pd.DataFrame:
    """The table of all scores.

    Parameters
    ----------
    outcome
        Of the run.
    leakage
        Per embedding, one word.

    Returns
    -------
    Columns as in `COLUMNS`; text columns hold ``""`` and number columns NaN where there is nothing to say.
    """
    rows = []
    for subject, scores in outcome.scores.items():
        for name, measured in scores.items():
            metric, detail = split(name)
            value, replicates = pooled(measured)
            low, high = (np.nan, np.nan) if replicates is None else interval(replicates, outcome.n_units)
            versus = None if subject == ANCHOR else compare(outcome, subject, ANCHOR, name)
            rows.append(
                {
                    "embedding": subject,
                    "kind": outcome.kinds[subject],
                    "axis": METRICS[metric].axis,
                    "metric": metric,
                    "detail": detail,
                    "better": METRICS[metric].better,
                    "value": value,
                    "low": low,
                    "high": high,
                    "difference": np.nan if versus is None else versus.value,
                    "difference_low": np.nan if versus is None else versus.low,
                    "difference_high": np.nan if versus is None else versus.high,
                    "p": np.nan if versus is None else versus.p,
                    "p_holm": np.nan,
                    "n_cells": int(min(m.n for m in measured)),
                    "n_units": outcome.n_units,
                    "n_subsamples": len(measured),
                    "leakage": leakage.get(subject, "unknown"),
                }
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    compared = table[~table["kind"].isin(["control"])]
    for _key, of in compared.groupby(["metric", "detail"], sort=False):
        table.loc[of.index, "p_holm"] = holm(of["p"].to_numpy(dtype=float))
    return table
