"""What happens to a cell that is measured worse? Alterations of counts whose truth is known.

Every alteration works on a block of cells on its way to the tokenizer or projection: no altered copy of the matrix is
made. A cell's draws depend on the seed, the alteration and the cell's place only, not on the other cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import ConfigError
from scfm.evaluation._cells import BLOCK_ROWS, Part
from scfm.evaluation._scores import Codes, Floats
from scfm.evaluation._space import prepared

EXPRESSED_IN = 25
"""Genes of a random panel are expressed in more cells than this, where there are enough."""


@dataclass(frozen=True)
class Stress:
    """One alteration at one level.

    Parameters
    ----------
    kind
        See `LEVELS`.
    level
        Share of counts kept (depth), number of genes (panel), share of detected genes lost (dropout), share of counts
        from the ambient profile (ambient), share of a second cell's counts added (doublets).
    """

    kind: str
    level: float

    def __str__(self) -> str:
        return f"{self.level:,.0f} genes" if self.kind == "panel" else f"{100 * self.level:g} %"


LEVELS: Mapping[str, tuple[float, ...]] = {
    "depth": (0.5, 0.2, 0.1, 0.05),
    "panel": (5000, 1000, 500, 300),
    "dropout": (0.1, 0.3, 0.5),
    "ambient": (0.05, 0.1, 0.2),
    "doublets": (0.25, 0.5, 1.0),
}
"""From mild to hard. Panels of 300 to 500, 1,000 and 5,000 genes are usual sizes of imaging assays."""
MEANING: Mapping[str, str] = {
    "depth": "counts kept, binomially thinned",
    "panel": "random genes measured",
    "dropout": "detected genes lost",
    "ambient": "counts replaced by the mean profile of the batch",
    "doublets": "counts of a second cell of the batch added",
}


def stresses(kinds: Sequence[str]) -> list[Stress]:
    """All levels of some kinds.

    Raises
    ------
    ConfigError
        If there is no such kind.
    """
    unknown = [k for k in kinds if k not in LEVELS]
    if unknown:
        raise ConfigError(f"stress={unknown[0]!r} is none of {', '.join(LEVELS)}")
    return [Stress(kind, level) for kind in kinds for level in LEVELS[kind]]


@dataclass(frozen=True, eq=False)
class Setting:
    """What alterations need to know of all evaluated cells.

    Parameters
    ----------
    parts
        The cells.
    batch
        (n,) code of each cell.
    ambient
        Per part: (batches, columns) cumulated mean profile of each batch, the last column 1 (0: no such cells).
    expressed
        (g,) number of evaluated cells that express each common gene.
    seed
        Of all draws.
    """

    parts: Sequence[Part]
    batch: Codes
    ambient: Sequence[Floats]
    expressed: NDArray[np.int64]
    seed: int


def setting(parts: Sequence[Part], batch: Codes, seed: int) -> Setting:
    """Look at all cells once."""
    n_batches = int(batch.max()) + 1
    expressed = np.zeros(len(parts[0].common), dtype=np.int64)
    profiles = []
    for part in parts:
        sums = np.zeros((n_batches, part.source.shape[1]))
        for block in part.source.blocks(BLOCK_ROWS):
            cells = part.rows[block.start : block.start + block.n_cells]
            of_entry = np.repeat(batch[cells], np.diff(block.indptr))
            np.add.at(sums, (of_entry, block.indices), block.data)
            expressed += part.shared_counts(block).getnnz(axis=0)
        total = np.cumsum(sums, axis=1)
        profiles.append(total / np.maximum(total[:, -1:], 1e-300))
    return Setting(parts, batch, profiles, expressed, seed)


def possible(stress: Stress, found: Setting) -> bool:
    """Whether there are enough genes for a panel."""
    return stress.kind != "panel" or stress.level < (found.expressed > 0).sum()


def kept_genes(stress: Stress, found: Setting, draw: int) -> NDArray[np.bool_] | None:
    """(g,) common genes that a panel keeps; None where the alteration keeps all."""
    if stress.kind != "panel":
        return None
    # those that enough cells express in random order, then the others: a small panel is part of a larger one
    order = np.random.default_rng([found.seed, 2, draw]).permutation(len(found.expressed))
    order = order[np.argsort(found.expressed[order] <= EXPRESSED_IN, kind="stable")]
    order = order[found.expressed[order] > 0]
    kept = np.zeros(len(found.expressed), dtype=bool)
    kept[order[: int(stress.level)]] = True
    return kept


def altered_blocks(stress: Stress, found: Setting, number: int, draw: int) -> Iterator[CountBlock]:
    """The cells of one part, altered, block by block.

    Parameters
    ----------
    stress
        The alteration.
    found
        Of all evaluated cells.
    number
        Which part.
    draw
        Draws of different numbers are independent.

    Yields
    ------
    Blocks with the columns of the part; those outside a panel have no entries.
    """
    part = found.parts[number]
    if stress.kind == "doublets":
        yield from _doublets(stress, found, number, draw)
        return
    kept = kept_genes(stress, found, draw)
    columns = None if kept is None else _columns(part, kept)
    for block in part.source.blocks(BLOCK_ROWS):
        if columns is not None:
            yield _restricted(block, columns)
            continue
        change = CHANGES[stress.kind]
        yield _rebuilt(
            block,
            [
                change(stress.level, rng, *row, found, number, int(cell))
                for rng, row, cell in zip(
                    _draws(stress, found, part, block, draw), _cells(block), _rows(part, block), strict=True
                )
            ],
        )


def _columns(part: Part, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(columns,) True for the columns of a part that belong to a panel."""
    columns = np.zeros(part.source.shape[1], dtype=bool)
    columns[part.common[kept]] = True
    return columns


def _rows(part: Part, block: CountBlock) -> NDArray[np.int64]:
    return part.rows[block.start : block.start + block.n_cells]


def _draws(stress: Stress, found: Setting, part: Part, block: CountBlock, draw: int) -> Iterator[np.random.Generator]:
    key = [found.seed, 3, list(LEVELS).index(stress.kind), round(1000 * stress.level), draw]
    return (np.random.Generator(np.random.SFC64(np.random.SeedSequence([*key, int(r)]))) for r in _rows(part, block))


Cell = tuple[NDArray[np.int32], NDArray[np.int64], int]
"""Columns, whole counts, and counts of genes that are not among the columns."""


def _cells(block: CountBlock) -> Iterator[Cell]:
    counts = np.rint(block.data).astype(np.int64)
    for i in range(block.n_cells):
        a, b = block.indptr[i], block.indptr[i + 1]
        outside = 0 if block.totals is None else max(0, round(float(block.totals[i] - counts[a:b].sum())))
        yield block.indices[a:b], counts[a:b], outside


def _thin(level: float, rng: Any, columns: Any, counts: Any, outside: int, *_: Any) -> Cell:
    return columns, rng.binomial(counts, level), int(rng.binomial(outside, level))


def _drop(level: float, rng: Any, columns: Any, counts: Any, outside: int, *_: Any) -> Cell:
    return columns, np.where(rng.random(len(counts)) < level, 0, counts), outside


def _contaminate(
    level: float, rng: Any, columns: Any, counts: Any, outside: int, found: Setting, number: int, cell: int
) -> Cell:
    own = rng.binomial(counts, 1 - level)
    profile = found.ambient[number][found.batch[cell]]
    drawn = np.searchsorted(profile, rng.random(int(counts.sum() - own.sum())), side="right")
    drawn = np.minimum(drawn, len(profile) - 1).astype(np.int32)
    return np.concatenate([columns, drawn]), np.concatenate([own, np.ones(len(drawn), dtype=np.int64)]), outside


CHANGES: Mapping[str, Callable[..., Cell]] = {"depth": _thin, "dropout": _drop, "ambient": _contaminate}


def _doublets(stress: Stress, found: Setting, number: int, draw: int) -> Iterator[CountBlock]:
    part = found.parts[number]
    partners = part.source.only(_partners(found, part, draw))
    for block, other in zip(part.source.blocks(BLOCK_ROWS), partners.blocks(BLOCK_ROWS), strict=True):
        cells = []
        for rng, mine, theirs in zip(
            _draws(stress, found, part, block, draw), _cells(block), _cells(other), strict=True
        ):
            added = _thin(stress.level, rng, *theirs)
            cells.append((np.concatenate([mine[0], added[0]]), np.concatenate([mine[1], added[1]]), mine[2] + added[2]))
        yield _rebuilt(block, cells)


def _partners(found: Setting, part: Part, draw: int) -> NDArray[np.int64]:
    """(n,) another cell of the same batch for each cell of a part; the cell itself where it is alone."""
    rng = np.random.default_rng([found.seed, 4, draw])
    batch = found.batch[part.rows]
    out = np.arange(len(batch))
    for code in np.unique(batch):
        here = rng.permutation(np.flatnonzero(batch == code))
        out[here] = np.roll(here, 1)
    return out


def _rebuilt(block: CountBlock, cells: Sequence[Cell]) -> CountBlock:
    """A block of altered cells: repeats added up, zeros left out."""
    lengths = [len(columns) for columns, _counts, _outside in cells]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices = np.concatenate([columns for columns, _counts, _outside in cells])
    data = np.concatenate([counts for _columns, counts, _outside in cells]).astype(block.data.dtype)
    x = sp.csr_matrix((data, indices, indptr), shape=(len(cells), block.n_columns))
    x.sum_duplicates()
    x.eliminate_zeros()
    indptr = x.indptr.astype(np.int64)
    totals = None
    if block.totals is not None:
        sums = np.asarray(x.sum(axis=1), dtype=np.float64).ravel()
        totals = sums + np.array([outside for _columns, _counts, outside in cells])
    return replace(block, indptr=indptr, indices=x.indices.astype(np.int32), data=x.data, totals=totals)


def _restricted(block: CountBlock, columns: NDArray[np.bool_]) -> CountBlock:
    """The entries of some columns; what is not measured adds nothing to the totals."""
    kept = columns[block.indices]
    indptr = np.concatenate([[0], np.cumsum(kept)])[block.indptr].astype(np.int64)
    return replace(block, indptr=indptr, indices=block.indices[kept], data=block.data[kept], totals=None)


def drift(before: NDArray[np.float32], after: NDArray[np.float32]) -> Floats:
    """How far cells have moved.

    Parameters
    ----------
    before, after
        (n, d) vectors of the same cells, unaltered and altered; NaN rows (nothing left of a cell) count as 1.

    Returns
    -------
    (n,) cosine distance between a cell's two vectors, in units of the mean cosine distance between two different cells,
    after the mean of all cells is subtracted: 0 unmoved, 1 as far away as any other cell.
    """
    n = len(before)
    mean = before.mean(axis=0)
    a = prepared(before - mean)
    # the mean cosine of all pairs of different cells, from the length of the summed unit vectors
    between = 1 - (float((a.sum(axis=0, dtype=np.float64) ** 2).sum()) - n) / max(n * (n - 1), 1)
    moved = (1 - (a * prepared(after - mean)).sum(axis=1, dtype=np.float64)) / max(between, 1e-12)
    return np.asarray(np.where(np.isnan(moved), 1.0, moved), dtype=np.float64)


def changed_neighbours(
    rows: NDArray[np.int64], first: NDArray[np.int64], there: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Whether the nearest other cell is another one than before.

    Parameters
    ----------
    rows
        (m, k) nearest unaltered cells of the altered cells ``there``.
    first
        (n,) nearest other cell of each cell, unaltered.
    there
        (m,) altered cells that have a vector; the others count as changed.
    """
    out = np.ones(len(first))
    nearest_other = np.where(rows[:, 0] == there, rows[:, 1], rows[:, 0])
    out[there] = nearest_other != first[there]
    return out
