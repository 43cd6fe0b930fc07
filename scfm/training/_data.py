"""From numbers of batches to packed batches: what the loader's workers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from scfm.training._cells import Cells
from scfm.training._draws import CellDraws
from scfm.training._sampler import BatchPlan
from scfm.training.objectives import CellBatch, Example, Objective, Reference

VALIDATION, FITTING = -1, -2
"""Numbers of epochs whose draws belong to validation and to the fit of the reference."""


@dataclass(frozen=True, eq=False)
class Batches(Dataset[Example]):
    """The batches of one process, in order: batch j of the process is batch j x processes + rank of the plan.

    All processes together so see the plan's batches in its order, whatever their number, each the same number of them.

    Parameters
    ----------
    cells, plan, objective
        What is read, which cells are together, and what is made of them.
    n_batches
        Of this process.
    channels
        Names of the arrays per cell that the model reads.
    seed
        Of the draws.
    per_step
        Batches of this process per optimizer step.
    rank, world
        Number of this process, and of all.
    epoch
        Whose draws are used; None: that of the batch.
    reference
        Scored on each batch; None: not.
    """

    cells: Cells
    plan: BatchPlan
    objective: Objective
    n_batches: int
    channels: frozenset[str]
    seed: int = 0
    per_step: int = 1
    rank: int = 0
    world: int = 1
    epoch: int | None = None
    reference: Reference | None = None

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, number: int) -> Example:
        epoch, cells = self.plan[number * self.world + self.rank]
        return self.make(cells, epoch if self.epoch is None else self.epoch, number // self.per_step)

    def make(self, cells: NDArray[np.int64], epoch: int, step: int = 0) -> Example:
        """The example of some cells."""
        index = self.cells.index
        batch = CellBatch(
            kept=self.cells.read(cells),
            cells=cells,
            files=index.file[cells],
            draws=CellDraws(self.seed, epoch, cells),
            encoder=self.cells.encoder,
            measured=index.measured,
            channels=self.channels,
            step=step,
        )
        example = self.objective.examples(batch)
        return example if self.reference is None else replace(example, reference=self.reference.score(example))


def loader(batches: Batches, num_workers: int = 0) -> DataLoader[Example]:
    """A loader whose items are whole batches, in order; it draws no random number that training would see."""
    return DataLoader(
        batches,
        batch_sampler=_OneByOne(len(batches)),
        collate_fn=_only,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=False,
    )


class _OneByOne(torch.utils.data.Sampler[list[int]]):
    """0, 1, 2, ... as batches of one."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[list[int]]:
        return ([i] for i in range(self.n))

    def __len__(self) -> int:
        return self.n


def _only(items: Sequence[Example]) -> Example:
    return items[0]
