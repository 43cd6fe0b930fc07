"""What do the numbers say? Three sentences by fixed rules, never nicer than the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scfm.evaluation._experiment import Outcome
from scfm.evaluation._table import Comparison, compare, pooled

AXES: Mapping[str, str] = {
    "kNN within": "telling cell types apart within a batch",
    "kNN transfer": "carrying labels from batch to batch",
    "same-batch neighbours": "mixing batches",
    "stressed kNN | depth 10 %": "shallow cells (10 % of the counts)",
    "stressed kNN | panel 500 genes": "small panels (500 genes)",
    "stressed kNN | dropout 30 %": "lost genes (30 %)",
    "stressed kNN | ambient 20 %": "ambient RNA (20 %)",
    "stressed kNN | doublets 50 %": "doublets (half a second cell)",
}
"""The scores that a verdict looks at, and what they are about."""
LEAKY = ("seen", "same study")


@dataclass(frozen=True)
class Against:
    """An embedding against the best baseline on one axis."""

    axis: str
    name: str
    baseline: str
    value: float
    best: float
    comparison: Comparison


def against_best(outcome: Outcome, subject: str) -> list[Against]:
    """One comparison per axis, with the baseline that scores best there."""
    baselines = [s for s, kind in outcome.kinds.items() if kind == "baseline" and s != subject]
    out = []
    for name, axis in AXES.items():
        found = [
            (b, c) for b in baselines if (c := compare(outcome, subject, b, name)) is not None and c.value == c.value
        ]
        if found:
            best, comparison = min(found, key=lambda pair: pair[1].value)
            values = [pooled(outcome.scores[s][name])[0] for s in (subject, best)]
            out.append(Against(axis, name, best, values[0], values[1], comparison))
    return out


def verdict(outcome: Outcome, subject: str, confounded: Sequence[str], leakage: str, *, people_known: bool) -> str:
    """Three sentences on one embedding.

    1. What cannot be told apart in these cells. 2. The axis on which the embedding lies furthest behind the best
    baseline of that axis, or leads by least. 3. How sure that is, on how many cells, and whether the model knows the data.

    Parameters
    ----------
    outcome
        Of the run.
    subject
        The embedding.
    confounded
        See `confounding`.
    leakage
        See `leakage`.
    people_known
        Whether a column says which person a cell is of.
    """
    compared = against_best(outcome, subject)
    if not compared:
        return (
            f"{_caveat(outcome, confounded, people_known)} No score of {subject} can be compared with that of a baseline. So "
            "nothing is said about it."
        )
    worst = min(compared, key=lambda a: a.comparison.value)
    numbers = f"{worst.value:.3f} against {worst.best:.3f}"
    if worst.comparison.value < 0:
        second = f"{subject} is weakest at {worst.axis}: {numbers} of {worst.baseline}, the best baseline there."
    else:
        second = (
            f"{subject} is behind no baseline on the {_axes(compared)} compared; its lead is smallest at "
            f"{worst.axis}: {numbers} of {worst.baseline}."
        )
    return f"{_caveat(outcome, confounded, people_known)} {second} {_sureness(outcome, worst, compared, leakage)}"


def _caveat(outcome: Outcome, confounded: Sequence[str], people_known: bool) -> str:
    if confounded:
        return "; ".join(s.rstrip(".") for s in confounded) + "."
    if outcome.design is not None and len(np.unique(outcome.design.batch)) == 1:
        return "All cells are of one batch, so nothing is said about other batches."
    if outcome.design is not None and len(np.unique(outcome.design.label)) == 1:
        return "All cells have one label, so nothing is said about biology."
    if people_known:
        return "Batch, label and person can be told apart in these cells."
    return "Batch and label can be told apart in these cells; which person a cell is of is not known."


def _sureness(outcome: Outcome, worst: Against, compared: Sequence[Against], leakage: str) -> str:
    c = worst.comparison
    n = min(m.n for m in outcome.scores[worst.baseline][worst.name])
    units = f"{n:,} cells" if outcome.over == "cells" else f"{outcome.n_units} groups with {n:,} cells"
    clear = "the 95 % interval excludes 0" if c.clear else "the 95 % interval includes 0, so this may be chance"
    ahead = sum(a.comparison.clear and a.comparison.value > 0 for a in compared)
    behind = sum(a.comparison.clear and a.comparison.value < 0 for a in compared)
    told = (
        f"The difference is {c.value:+z.3f} [{c.low:+z.3f}, {c.high:+z.3f}] over {units}: {clear}; of {_axes(compared)} it "
        f"is clearly ahead of the best baseline on {ahead} and clearly behind on {behind}"
    )
    if leakage in LEAKY:
        why = "these very data" if leakage == "seen" else "another part of the same study"
        return f"{told}, and since its corpus holds {why}, none of this is zero-shot."
    if leakage == "unknown":
        return f"{told}, and whether its corpus holds these data is unknown."
    return f"{told}."


def _axes(compared: Sequence[Against]) -> str:
    return f"{len(compared)} {'axis' if len(compared) == 1 else 'axes'}"
