"""From annotated data to a plan: what is checked before anything long begins, and what has to be said first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.counts import CountSource
from scfm.errors import ConfigError
from scfm.evaluation._cells import Part, common_genes, hashes
from scfm.evaluation._confounding import columns_of_people, confounding, duplicated
from scfm.evaluation._space import Design

LEAST_CELLS = 30


@dataclass(frozen=True, eq=False)
class Measurement:
    """Cells measured on the same genes, with what is known of them.

    Parameters
    ----------
    name
        Of the data set.
    source
        Their counts.
    obs
        (n,) annotation of the cells.
    study
        Publication, as far as known.
    """

    name: str
    source: CountSource
    obs: pd.DataFrame
    study: str = ""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of which cells.

    Parameters
    ----------
    parts
        All cells.
    design
        Of all cells; unusable ones have any code.
    usable
        (n,) cells that take part.
    confounded
        What cannot be told apart, the worst first.
    people_known
        Whether a column says which person a cell is of.
    notes
        What a reader should know.
    """

    parts: list[Part]
    design: Design
    usable: NDArray[np.bool_]
    confounded: list[str]
    people_known: bool
    notes: list[str]


def question(
    data: Sequence[Measurement],
    batch_key: str | None,
    label_key: str,
    group_key: str | None,
    min_cells: int,
    species: str | None = None,
) -> Question:
    """Put the cells together and look at what they can tell.

    Parameters
    ----------
    data
        One measurement, or several with genes of their own.
    batch_key, label_key, group_key
        Columns of ``obs``; where there are several measurements and one lacks the batch, its name is the batch.
        A batch of None: all cells are one batch.
    min_cells
        Cells of rarer labels are left out.
    species
        See `common_genes`.

    Raises
    ------
    ConfigError
        If a column is missing, too few cells have a label, or every batch is tiny.
    GeneMatchError
        If the measurements have no gene in common.
    """
    notes: list[str] = []
    label = np.concatenate([_column(m, label_key, "label_key") for m in data])
    batch = np.concatenate([_batch(m, batch_key, several=len(data) > 1) for m in data])
    group = None if group_key is None else np.concatenate([_column(m, group_key, "group_key") for m in data])
    usable = np.asarray(~(pd.isna(label) | pd.isna(batch)))
    if (~usable).any():
        notes.append(f"{(~usable).sum():,} cells without a label or a batch were left out.")
    names, codes, sizes = np.unique(label[usable].astype(str), return_inverse=True, return_counts=True)
    rare = sizes < min_cells
    if rare.any():
        shown = ", ".join(f"{n} ({k})" for n, k in zip(names[rare], sizes[rare], strict=True))
        notes.append(f"Labels with fewer than {min_cells} cells were left out: {shown}.")
        usable[np.flatnonzero(usable)[rare[codes.ravel()]]] = False
    if usable.sum() < LEAST_CELLS:
        raise ConfigError(
            f"only {usable.sum():,} of {len(usable):,} cells have a batch and a label in {label_key!r} with at least "
            f"{min_cells} cells; at least {LEAST_CELLS} are needed. Choose other columns, or a smaller min_cells="
        )
    design = _design(label, batch, group, usable)
    largest = int(np.bincount(design.batch[usable]).max())
    if largest < min_cells:
        raise ConfigError(
            f"batch_key={batch_key!r} has {len(design.batches):,} values, none of them on more than {largest:,} cells; name a "
            f"column of assays or batches of {min_cells} cells or more, or None for one batch"
        )
    notes += _few(design, batch_key)
    columns = common_genes([m.source.var for m in data], species)
    if len(data) > 1:
        notes.append(
            f"Baselines use the {len(columns[0]):,} genes that all {len(data)} data sets have; models read each set's own "
            "genes, and what was not measured is never counted as zero."
        )
    parts, start = [], 0
    for number, (m, common) in enumerate(zip(data, columns, strict=True)):
        n = len(m.obs)
        parts.append(Part(m.name, m.source, common, np.arange(start, start + n), number))
        start += n
    others = _people(data, usable, (batch_key, label_key), group_key)
    within = Design.of(np.asarray(label)[usable].astype(str), np.asarray(batch)[usable].astype(str))
    found = confounding(within, others)
    if len(design.batches) > 1:
        n = duplicated(np.concatenate([k for part in parts for k in hashes(part)]), _codes(batch))
        notes.append(
            f"{n:,} cells have the very counts of a cell of another batch: batches overlap, and scores across them are too high."
            if n
            else "No cell has the very counts of a cell of another batch."
        )
    return Question(parts, design, usable, found, bool(others) or group is not None, notes)


def _column(m: Measurement, key: str, argument: str) -> NDArray[Any]:
    if key not in m.obs:
        there = ", ".join(map(repr, m.obs.columns[:12])) or "no columns"
        raise ConfigError(f"{argument}={key!r} is not a column of obs of {m.name}; there are {there}")
    return np.asarray(m.obs[key].astype(object))


def _batch(m: Measurement, key: str | None, *, several: bool) -> NDArray[Any]:
    if key is None or (several and key not in m.obs):
        return np.full(len(m.obs), m.name if several else "all cells", dtype=object)
    return _column(m, key, "batch_key")


def _design(label: NDArray[Any], batch: NDArray[Any], group: Any, usable: NDArray[np.bool_]) -> Design:
    """Codes of the usable cells' names; the others get code 0."""
    inner = Design.of(label[usable], batch[usable], None if group is None else group[usable])

    def spread(codes: NDArray[np.int64]) -> NDArray[np.int64]:
        out = np.zeros(len(usable), dtype=np.int64)
        out[usable] = codes
        return out

    groups = None if inner.group is None else spread(inner.group)
    return Design(spread(inner.label), spread(inner.batch), inner.labels, inner.batches, groups)


def _codes(batch: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(batch.astype(str), return_inverse=True)[1].ravel()


def _few(design: Design, batch_key: str | None) -> list[str]:
    notes = []
    if len(design.batches) == 1:
        which = f"{batch_key!r} holds one value" if batch_key is not None else "no batch column was named"
        notes.append(
            f"One batch only ({which}): nothing is said about mixing, or about labels carried between batches."
        )
    if len(design.labels) == 1:
        notes.append(
            f"One label only ({design.labels[0]}): nothing is said about biology kept, or about labels carried over."
        )
    return notes


def _people(
    data: Sequence[Measurement], usable: NDArray[np.bool_], not_these: Sequence[str | None], group_key: str | None
) -> dict[str, NDArray[Any]]:
    """Columns that say which person a cell is of, of the usable cells."""
    each = [columns_of_people(m.obs.drop(columns=[k for k in not_these if k in m.obs])) for m in data]
    names = [n for n in each[0] if all(n in e for e in each)]
    found = {n: np.concatenate([e[n] for e in each])[usable] for n in names}
    if group_key is not None and group_key not in (*not_these, *found):
        found[group_key] = np.concatenate([m.obs[group_key].astype(str).to_numpy() for m in data])[usable]
    return found


def versions() -> dict[str, str]:
    """Of the libraries that compute the scores, as far as they are installed."""
    names = ("scfm", "scikit-learn", "scib-metrics", "harmonypy", "scanpy", "igraph", "torch")
    found = {}
    for name in names:
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            found[name.replace("-", "_")] = "not installed"
    return found
