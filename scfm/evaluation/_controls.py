"""Do the controls score as they must? If not, no other number of the report can be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scfm.evaluation._space import Design
from scfm.evaluation._transfer import MIN_CELLS

ORACLE = "oracle"
BLIND = ("shuffled rows", "random vectors")
LEAST_ORACLE = 0.99
WITHIN = ("kNN within", "kNN transfer")
MIXING = "same-batch neighbours"


def highest_blind(design: Design) -> float:
    """Highest macro F1 that vectors which know nothing of the labels may reach.

    A classifier that answers at random with the shares p of the labels expects F1 = p for each, on average 1 / labels;
    one that answers the most common label scores less. The fewest labels of a batch or a pair of batches count. Four
    standard deviations of a share among the rarest label's cells are added.
    """
    there = (design.table >= MIN_CELLS).astype(int)
    shared = there.T @ there
    n = int(shared[shared > 1].min()) if (shared > 1).any() else 1
    rarest = int(design.table[design.table >= MIN_CELLS].min()) if there.any() else 1
    return float(1 / n + 4 * np.sqrt(0.25 / rarest / n))


def failures(scores: Mapping[str, Mapping[str, float]], design: Design) -> list[str]:
    """Controls that do not score as they must, in words.

    Parameters
    ----------
    scores
        Per control, per metric: the value.
    design
        Of the cells.
    """
    found = []
    highest = highest_blind(design)
    sizes = design.table.sum(axis=0)
    # a share of same-batch neighbours wavers with the cells, not with the neighbours
    slack = 0.05 + 4 / np.sqrt(max(int(sizes[sizes > 0].min()), 1))
    for control, of in scores.items():
        for metric in WITHIN:
            value = of.get(metric, float("nan"))
            if control == ORACLE and value < LEAST_ORACLE:
                found.append(
                    f"the oracle has {metric} {value:.2f}, but it knows the labels: {LEAST_ORACLE} or more was expected"
                )
            if control in BLIND and value > highest:
                found.append(
                    f"{control} have {metric} {value:.2f}, but they know nothing of the labels: at most {highest:.2f} was expected"
                )
        value = of.get(MIXING, float("nan"))
        if abs(value) > slack:
            found.append(
                f"{control}: {MIXING} {value:+.2f}, but the batch plays no part in it: between -{slack:.2f} and {slack:.2f} "
                "was expected"
            )
    return found
