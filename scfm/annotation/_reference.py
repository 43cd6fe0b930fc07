"""Which cells of a reference are learnt from, and what are they called?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scfm import counts
from scfm.annotation._choose import RARE
from scfm.annotation._classifiers import Codes, stratified
from scfm.annotation._decide import UNKNOWN
from scfm.errors import ConfigError

log = logging.getLogger("scfm")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels of a reference.

    Parameters
    ----------
    rows
        (m,) sorted cells that are learnt from.
    codes
        (m,) class of each.
    classes
        K names, sorted.
    groups
        (m,) donor or batch of each; None: not given.
    facts
        Numbers of cells that were used and left out.
    """

    rows: NDArray[np.int64]
    codes: Codes
    classes: tuple[str, ...]
    groups: NDArray[Any] | None
    facts: Mapping[str, Any]


def opened(cells: AnnData | str | Path, what: str) -> AnnData:
    """An AnnData, or the file that holds one."""
    if isinstance(cells, AnnData):
        return cells
    if isinstance(cells, str | Path):
        return counts.read(cells)
    raise ConfigError(f"the {what} is a {type(cells).__name__}; expected an AnnData object or the path of a file")


def labelled(obs: pd.DataFrame, label_key: str, batch_key: str | None, max_cells: int, seed: int) -> Labelled:
    """The cells with a label.

    Parameters
    ----------
    obs
        Of the reference.
    label_key, batch_key
        Columns.
    max_cells
        Of more cells a stratified sample is taken.
    seed
        Of the sample.

    Raises
    ------
    ConfigError
        If a column is missing, no cell or one class has a label, or a label is ``"unknown"``.
    """
    for column_name in (label_key, batch_key):
        if column_name is not None and column_name not in obs:
            there = ", ".join(map(repr, obs.columns[:10])) or "none"
            raise ConfigError(f"obs of the reference has no column {column_name!r}; its columns are {there}")
    column = obs[label_key]
    filled = column.notna().to_numpy() & (column.astype(str).str.strip() != "").to_numpy()
    labelled_rows = np.flatnonzero(filled)
    n_without = len(obs) - len(labelled_rows)
    if not len(labelled_rows):
        raise ConfigError(f"no cell of the reference has a label in obs[{label_key!r}]")
    names, codes = np.unique(column.iloc[labelled_rows].astype(str).to_numpy(), return_inverse=True)
    if len(names) < 2:
        raise ConfigError(
            f"all {len(labelled_rows):,} labels in obs[{label_key!r}] are {str(names[0])!r}; two classes or more are needed"
        )
    if UNKNOWN in names:
        raise ConfigError(
            f"obs[{label_key!r}] holds the label {UNKNOWN!r}, which scfm writes for cells that fit no class; set these "
            "labels to NaN to leave the cells out, or rename them"
        )
    kept = stratified(codes.ravel(), max_cells, seed)
    rows, codes = labelled_rows[kept], codes.ravel()[kept].astype(np.int64)
    sizes = np.bincount(codes, minlength=len(names))
    if n_without:
        log.warning("%d cells of the reference have no label in obs[%r] and are left out", n_without, label_key)
    rare = [str(n) for n, size in zip(names, sizes, strict=True) if size < RARE]
    if rare:
        log.warning(
            "classes with fewer than %d cells are learnt but cannot be held out: %s", RARE, ", ".join(rare[:10])
        )
    groups = None if batch_key is None else obs[batch_key].astype(str).to_numpy()[rows]
    facts = {
        "label_key": label_key,
        "batch_key": batch_key,
        "n_cells": len(rows),
        "n_without_label": n_without,
        "n_not_sampled": len(labelled_rows) - len(rows),
        "rare_classes": rare,
    }
    return Labelled(rows, codes, tuple(map(str, names)), groups, facts)
