"""What is known of every cell before training? Its file, length, donor and labels, and whether it stands twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scfm.errors import ConfigError

ENOUGH_GENES = 25
"""Cells with fewer detected genes may be equal by chance and are no sign of a leak."""


@dataclass(frozen=True, eq=False)
class Column:
    """A text per cell, as codes."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str] | NDArray[np.str_]) -> Column:
        """From (n,) texts."""
        names, codes = np.unique(np.asarray(texts, dtype=np.str_), return_inverse=True)
        return cls(codes.astype(np.int32).ravel(), tuple(names.tolist()))

    def part(self, rows: slice) -> Column:
        """Some of the rows, with the names that they use."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Column(codes.astype(np.int32).ravel(), tuple(self.names[i] for i in used))

    @classmethod
    def join(cls, columns: Sequence[Column]) -> Column:
        """One after the other; names that no row has are dropped."""
        used = [np.unique(column.codes) for column in columns]
        names = sorted({c.names[i] for c, some in zip(columns, used, strict=True) for i in some})
        at = {name: i for i, name in enumerate(names)}
        codes = [np.array([at.get(n, -1) for n in c.names], dtype=np.int32)[c.codes] for c in columns]
        return cls(np.concatenate(codes), tuple(names))


@dataclass(frozen=True, eq=False)
class CellIndex:
    """One row per cell of a corpus.

    Parameters
    ----------
    file, row
        (n,) number of the file and row in it.
    length
        (n,) entries that are stored of the cell: tokens, or genes with counts.
    n_genes
        (n,) detected genes of the vocabulary.
    fingerprint
        (n,) uint64 of the (gene, count) pairs of the cell.
    columns
        ``donor``, ``dataset``, ``label``.
    measured
        (files, V) genes that each file has a column for.
    files
        Names of the files.
    """

    file: NDArray[np.int32]
    row: NDArray[np.int64]
    length: NDArray[np.int32]
    n_genes: NDArray[np.int32]
    fingerprint: NDArray[np.uint64]
    columns: Mapping[str, Column]
    measured: NDArray[np.bool_]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.file)

    def column(self, name: str) -> Column:
        """A column by name.

        Raises
        ------
        ConfigError
            If there is none.
        """
        if name == "file":
            return Column(self.file, self.files)
        if name not in self.columns:
            raise ConfigError(f"cells are known by file, {', '.join(self.columns)}, not by {name!r}")
        return self.columns[name]

    def name_of(self, cell: int) -> str:
        """A cell in words."""
        return f"row {int(self.row[cell]):,} of {self.files[self.file[cell]]}"


@dataclass(frozen=True, eq=False)
class Split:
    """Cells to train on and cells to validate on.

    Parameters
    ----------
    train, valid
        Numbers of cells, ascending.
    groups
        Names of the groups that are held out.
    """

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    groups: tuple[str, ...]


def split(
    index: CellIndex,
    *,
    by: str = "donor",
    share: float = 0.1,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Split:
    """Hold out whole groups of cells.

    Parameters
    ----------
    index
        Of the corpus.
    by
        ``donor``, ``dataset`` or ``file``.
    share
        Groups are drawn until they hold about this share of the cells; 0: none.
    groups
        Hold out these instead.
    seed
        Of the drawing.

    Raises
    ------
    ConfigError
        If there are too few groups, a name is unknown, nothing is left on one side, or a cell stands on both.
    """
    usable = index.length > 0
    if groups is None and share == 0:
        return Split(np.flatnonzero(usable), np.empty(0, np.int64), ())
    column = index.column(by)
    sizes = np.bincount(column.codes[usable], minlength=len(column.names))
    if groups is not None:
        unknown = [g for g in groups if g not in column.names]
        if unknown:
            raise ConfigError(
                f"the corpus has no {by} {unknown[0]!r} to hold out; it has {', '.join(column.names[:8])}"
                f"{', ...' if len(column.names) > 8 else ''}"
            )
        held = np.isin(np.arange(len(sizes)), [column.names.index(g) for g in groups])
    else:
        held = _drawn(sizes, share, seed, by)
    valid = usable & held[column.codes]
    train = usable & ~held[column.codes]
    if not train.any() or not valid.any():
        side = "train" if not train.any() else "validate"
        raise ConfigError(f"no cells are left to {side} on when {int(held.sum())} of {len(sizes)} groups are held out")
    out = Split(np.flatnonzero(train), np.flatnonzero(valid), tuple(np.array(column.names)[held].tolist()))
    check_leak(index, out, by)
    return out


def _drawn(sizes: NDArray[np.int64], share: float, seed: int, by: str) -> NDArray[np.bool_]:
    """Groups in random order, each taken if it brings the held-out cells nearer to the share."""
    there = np.flatnonzero(sizes)
    if len(there) < 2:
        raise ConfigError(
            f"validation holds out a whole {by}, but the corpus has one only; name another column with "
            "validation.by (donor, dataset or file), or set validation.share to 0"
        )
    if not 0 < share < 1:
        raise ConfigError(f"validation.share is {share}; it must be from 0 to below 1")
    wanted = share * sizes.sum()
    held = np.zeros(len(sizes), dtype=bool)
    total = 0
    for group in np.random.default_rng(seed).permutation(there):
        if abs(total + sizes[group] - wanted) < abs(total - wanted) and held.sum() < len(there) - 1:
            held[group] = True
            total += int(sizes[group])
    if not held.any():
        held[there[np.argmin(sizes[there])]] = True
    return held


def check_leak(index: CellIndex, parts: Split, by: str) -> None:
    """Raise if a cell's contents are among the training and the validation cells.

    Raises
    ------
    ConfigError
        With the number of such cells and an example.
    """
    sides = []
    for cells in (parts.train, parts.valid):
        telling = cells[index.n_genes[cells] >= ENOUGH_GENES]
        sides.append((telling, index.fingerprint[telling]))
    (train, seen), (valid, held) = sides
    leaked = np.isin(held, seen)
    if leaked.any():
        cell = int(valid[leaked][0])
        twin = int(train[np.flatnonzero(seen == index.fingerprint[cell])[0]])
        raise ConfigError(
            f"{int(leaked.sum()):,} of {len(parts.valid):,} validation cells have the very same counts as a training cell, "
            f"e.g. {index.name_of(cell)} and {index.name_of(twin)}: the {by} does not tell them apart. Drop one copy, or hold "
            "out both groups together with validation.groups"
        )
