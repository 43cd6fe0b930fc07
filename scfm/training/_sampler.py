"""Which cells are a batch? Blocks of rows in random order, batches of a number of tokens, the same on every machine."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scfm.errors import ConfigError
from scfm.training._draws import CellDraws, stream
from scfm.training._index import CellIndex

_KEPT_POOLS = 4
_KEPT_EPOCHS = 2
_REPEATS, _BLOCKS, _POOL = 11, 12, 13


@dataclass(frozen=True)
class Sampling:
    """How batches are made.

    Parameters
    ----------
    batch_tokens
        Most tokens of a batch; a longer cell is a batch alone.
    block_rows
        Neighbouring rows of a file that are read together.
    pool_blocks
        Blocks whose cells are mixed: batches are drawn from a pool of them.
    within
        ``file``, ``dataset`` or ``donor``: a batch holds cells of one only.
    weights_by
        ``file``, ``dataset``, ``donor`` or ``label``: cells are drawn by the weights of these groups.
    weights
        Weight per cell by name of the group (1 for the others); empty: every group has the same chance.
    seed
        Of everything random.
    """

    batch_tokens: int = 8192
    block_rows: int = 256
    pool_blocks: int = 16
    within: str | None = None
    weights_by: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "block_rows", "pool_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name} is {getattr(self, name)}; at least 1 is needed")
        if self.weights and self.weights_by is None:
            raise ConfigError("sampling.weights needs sampling.weights_by, the column that its names are of")


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The pools of one epoch: cells in blocks order, borders of the pools, first batch of each pool."""

    cells: NDArray[np.int64]
    borders: NDArray[np.int64]
    first_batch: NDArray[np.int64]


class BatchPlan:
    """The batches of all epochs, numbered from 0 without end; any of them is found without making the others.

    Parameters
    ----------
    index
        Of all cells.
    cells
        The cells that are trained on.
    sampling
        How batches are made.
    lengths
        (N,) tokens that each cell of the index is counted with.
    """

    def __init__(
        self, index: CellIndex, cells: NDArray[np.int64], sampling: Sampling, lengths: NDArray[np.integer]
    ) -> None:
        if not len(cells):
            raise ConfigError("there are no cells to make batches of")
        self.index, self.cells, self.sampling = index, np.sort(cells), sampling
        self.lengths = lengths
        self._weight = self._weights()
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._pools: OrderedDict[tuple[int, int], list[NDArray[np.int64]]] = OrderedDict()
        self._starts = [0]

    def __getitem__(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch and the cells of a batch."""
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        while epoch == len(self._starts) - 1:
            self._starts.append(self._starts[-1] + self.n_batches(epoch))
            if number < self._starts[-1]:
                break
            epoch += 1
        made = self._epoch(epoch)
        inside = number - self._starts[epoch]
        pool = int(np.searchsorted(made.first_batch, inside, side="right")) - 1
        return epoch, self._pool(epoch, pool)[inside - int(made.first_batch[pool])]

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return int(self._epoch(epoch).first_batch[-1])

    def _weights(self) -> NDArray[np.float64] | None:
        """(n,) mean number of times that each cell comes in an epoch; None: once."""
        by = self.sampling.weights_by
        if by is None:
            return None
        column = self.index.column(by)
        codes = column.codes[self.cells]
        sizes = np.bincount(codes, minlength=len(column.names))
        unknown = sorted(set(self.sampling.weights) - set(column.names))
        if unknown:
            raise ConfigError(f"sampling.weights names {unknown[0]!r}, which is no {by} of the corpus")
        if self.sampling.weights:
            each = np.array([float(self.sampling.weights.get(name, 1.0)) for name in column.names])
        else:
            each = 1 / np.maximum(sizes, 1)
        if not (np.isfinite(each).all() and (each >= 0).all() and each[codes].any()):
            raise ConfigError("sampling.weights must be numbers from 0 on, and some must be above 0")
        return each[codes] * (len(codes) / each[codes].sum())

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._make_epoch(epoch)
            if len(self._epochs) > _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> _Epoch:
        cells = self.cells
        if self._weight is not None:
            # each cell comes its mean number of times, rounded up or down at random
            draws = CellDraws(self.sampling.seed, epoch, cells).per_cell(_REPEATS)
            cells = np.repeat(cells, np.floor(self._weight + draws).astype(np.int64))
        index, settings = self.index, self.sampling
        block = index.row[cells] // settings.block_rows
        kept_apart = None if settings.within is None else index.column(settings.within).codes[cells]
        group = np.zeros(len(cells), np.int32) if kept_apart is None else kept_apart
        change = (np.diff(index.file[cells]) != 0) | (np.diff(block) != 0)
        if kept_apart is not None:
            # a block may hold cells of several groups: it is read once for each
            order = np.lexsort((np.arange(len(cells)), block, index.file[cells], group))
            cells, block, group = cells[order], block[order], group[order]
            change = (np.diff(index.file[cells]) != 0) | (np.diff(block) != 0) | (np.diff(group) != 0)
        starts = np.concatenate([[0], np.flatnonzero(change) + 1, [len(cells)]])
        rng = np.random.default_rng(int(stream(settings.seed, epoch, _BLOCKS)))
        order = rng.permutation(len(starts) - 1)
        if kept_apart is not None:
            order = order[np.argsort(group[starts[order]], kind="stable")]
        sizes = np.diff(starts)[order]
        take = np.repeat(starts[order] - np.cumsum(sizes) + sizes, sizes) + np.arange(len(cells))
        cells = cells[take]
        of_block = group[starts[order]]
        number = np.arange(len(order))
        first_of_group = np.concatenate([[True], np.diff(of_block) != 0])
        within_group = number - np.maximum.accumulate(np.where(first_of_group, number, 0))
        new_pool = within_group % settings.pool_blocks == 0
        borders = np.concatenate([np.concatenate([[0], np.cumsum(sizes)])[:-1][new_pool], [len(cells)]])
        if kept_apart is not None:
            # groups take turns
            turn = rng.permutation(len(borders) - 1)
            pieces = [cells[borders[p] : borders[p + 1]] for p in turn]
            cells = np.concatenate(pieces)
            borders = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
        counts = [
            len(cut(np.sort(self.lengths[cells[a:b]], kind="stable"), settings.batch_tokens)) - 1
            for a, b in itertools.pairwise(borders)
        ]
        return _Epoch(cells, borders.astype(np.int64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def _pool(self, epoch: int, pool: int) -> list[NDArray[np.int64]]:
        key = (epoch, pool)
        if key not in self._pools:
            made = self._epoch(epoch)
            rng = np.random.default_rng(int(stream(self.sampling.seed, epoch, _POOL, pool)))
            cells = rng.permutation(made.cells[made.borders[pool] : made.borders[pool + 1]])
            cells = cells[np.argsort(self.lengths[cells], kind="stable")]
            borders = cut(self.lengths[cells], self.sampling.batch_tokens)
            batches = [cells[a:b] for a, b in itertools.pairwise(borders)]
            self._pools[key] = [batches[i] for i in rng.permutation(len(batches))]
            if len(self._pools) > _KEPT_POOLS:
                self._pools.popitem(last=False)
        self._pools.move_to_end(key)
        return self._pools[key]


def cut(lengths: NDArray[np.integer], budget: int) -> NDArray[np.int64]:
    """Borders of runs of neighbours with at most ``budget`` tokens each, and at least one cell."""
    total = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    borders = [0]
    while borders[-1] < len(lengths):
        start = borders[-1]
        stop = int(np.searchsorted(total, total[start] + budget, side="right")) - 1
        borders.append(max(stop, start + 1))
    return np.array(borders, dtype=np.int64)
