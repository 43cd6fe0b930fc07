"""How is one thing timed against another? Side by side in one run, repeated, medians."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

REPEATS = 3

Row = tuple[str, str, str, float]
"""What was measured, our figure, the reference's figure, and their ratio."""


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(ours: Callable[[], object], reference: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of both and the median of their ratios, reference by ours, over turns taken in one run.

    Whatever else the machine does then touches both alike; call both once before, to warm them up.
    """
    turns = [(seconds(ours), seconds(reference)) for _ in range(REPEATS)]
    return (
        median(a for a, _ in turns),
        median(b for _, b in turns),
        median(b / a for a, b in turns),
    )
