"""Can the question be answered with these cells at all? What cannot be told apart is found before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.evaluation._scores import Codes, normalised_mutual_information, table_score
from scfm.evaluation._space import Design

PEOPLE = ("donor", "donor_id", "patient", "patient_id", "individual", "subject", "sample", "sample_id")
"""Names of columns (in lower case) that may hold what was sampled."""
UNEVEN = 0.2
"""Mean total variation distance between the label shares of two batches above which composition differs."""


def confounding(design: Design, others: Mapping[str, Any] | None = None) -> list[str]:
    """What cannot be told apart from the batch, each in one sentence, the worst first.

    Parameters
    ----------
    design
        Of the cells.
    others
        Further columns (people, samples) by name, one value per cell.
    """
    found = []
    table = design.table
    several = (table > 0).sum(axis=1) > 1
    if len(design.batches) > 1 and len(design.labels) > 1:
        agreement = table_score(design.label, design.batch, normalised_mutual_information).value
        if not several.any():
            found.append(
                "Label and batch are confounded: no label occurs in two batches, so nothing here can tell biology from "
                "the batch."
            )
        elif table[several].sum() < table.sum() / 2 or agreement > 0.5:
            found.append(
                f"Label and batch are partly confounded: only {table[several].sum() / table.sum():.0%} of the cells have a "
                "label that occurs in two batches."
            )
    if len(design.batches) > 1:
        found += [f"{name} and batch are confounded: {why}" for name, why in _nested(design.batch, others or {})]
    return found


def _nested(batch: Codes, others: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Columns of which every value lies within one batch."""
    out = []
    for name, values in others.items():
        codes, names = pd.factorize(pd.Series(np.asarray(values)).astype(str))
        if len(names) < 2:
            continue
        pairs = np.unique(np.stack([codes, batch]), axis=1).shape[1]
        if pairs == len(names):
            out.append(
                (
                    name,
                    f"each of the {len(names)} lies within one batch, so a difference between batches may be one of them.",
                )
            )
    return out


def columns_of_people(obs: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Columns that say which person or sample a cell is of, by their usual names."""
    return {str(c): obs[c].astype(str).to_numpy() for c in obs.columns if str(c).lower() in PEOPLE}


def composition_distance(design: Design) -> float:
    """Mean total variation distance between the label shares of two batches: 0 alike, 1 nothing in common."""
    shares = design.table / np.maximum(design.table.sum(axis=0), 1)
    n = shares.shape[1]
    distances = [np.abs(shares[:, a] - shares[:, b]).sum() / 2 for a in range(n) for b in range(a + 1, n)]
    return float(np.mean(distances)) if distances else 0.0


def duplicated(keys: NDArray[np.uint64], batch: Codes) -> int:
    """Number of cells whose counts occur, value by value, in another batch too.

    Parameters
    ----------
    keys
        (n,) hash of the counts of each cell; 0 for cells without any.
    batch
        (n,) codes.
    """
    order = np.lexsort((batch, keys))
    sorted_keys, sorted_batch = keys[order], batch[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    n = 0
    for a, b in zip(starts, np.append(starts[1:], len(keys)), strict=True):
        if b - a > 1 and sorted_keys[a] != 0 and sorted_batch[a] != sorted_batch[b - 1]:
            n += int(b - a)
    return n
