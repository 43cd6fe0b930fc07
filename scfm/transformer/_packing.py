"""Ragged cells on one long axis: the only batch layout of the package. There is no padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each cell's tokens lie on the packed axis.

    Parameters
    ----------
    offsets
        (n + 1,) int64 on the host.
    device
        Where the device copies are made.
    """

    offsets: NDArray[np.int64]
    device: torch.device

    @cached_property
    def bounds(self) -> list[int]:
        """The offsets as Python integers."""
        return [int(o) for o in self.offsets]

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(n + 1,) int32 on the device."""
        return torch.as_tensor(self.offsets, dtype=torch.int32).to(self.device)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens per cell."""
        return np.diff(self.offsets)

    @cached_property
    def max_seqlen(self) -> int:
        """Tokens of the longest cell."""
        return int(self.lengths.max(initial=0))

    @cached_property
    def cell(self) -> Tensor:
        """(T,) int64 number of the cell each token belongs to."""
        return torch.as_tensor(np.repeat(np.arange(len(self.lengths)), self.lengths)).to(self.device)

    @cached_property
    def rank(self) -> Tensor:
        """(T,) int64 place of each token in its cell."""
        ranks = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)
        return torch.as_tensor(ranks).to(self.device)

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """First token of each cell that has one, and the number of that cell; both int64."""
        cells = np.flatnonzero(self.lengths)
        return torch.as_tensor(self.offsets[cells]).to(self.device), torch.as_tensor(cells).to(self.device)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbouring cells of equal length, as (first cell, number of cells, length)."""
        runs: list[tuple[int, int, int]] = []
        for i, length in enumerate(self.lengths.tolist()):
            if runs and runs[-1][2] == length:
                first, n, _ = runs[-1]
                runs[-1] = (first, n + 1, length)
            else:
                runs.append((i, 1, length))
        return runs

    def select(self, keep: NDArray[np.bool_]) -> Segments:
        """The segments that are left when only some tokens of the axis are kept."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Segments(kept[self.offsets].astype(np.int64), self.device)


class Bag(NamedTuple):
    """Genes (E,) of all cells with their values (E,), and the first of each cell in ``offsets`` (n + 1,)."""

    ids: Tensor
    values: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Tokens of several cells on one axis.

    Parameters
    ----------
    channels
        (T,) arrays by name: ``ids``, ``values``, ``positions`` and whatever else terms read.
    segments
        Which tokens belong to which cell.
    per_cell
        (n, ...) arrays by name, e.g. the domain of each cell; ``prompt`` (n, width) takes the place of hidden state 0
        of each cell's first token.
    keys
        (T,) bool, False = the token is a query only: it sees its cell and nobody sees it. None: all are keys.
    bags
        Further ragged lists of genes over the same cells, by name.
    measured
        (V,) bool, vocabulary genes that the data set measured.
    """

    channels: Mapping[str, Tensor]
    segments: Segments
    per_cell: Mapping[str, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    bags: Mapping[str, Bag] = field(default_factory=dict)
    measured: Tensor | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.segments.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.segments.offsets[-1])

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.segments.device

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        device = torch.device(device)
        if device == self.device:
            return self

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(
            self,
            channels={k: move(v) for k, v in self.channels.items()},
            segments=Segments(self.segments.offsets, device),
            per_cell={k: move(v) for k, v in self.per_cell.items()},
            keys=None if self.keys is None else move(self.keys),
            bags={name: Bag(*map(move, bag)) for name, bag in self.bags.items()},
            measured=None if self.measured is None else move(self.measured),
        )


def pack(
    channels: Mapping[str, NDArray[Any] | None],
    offsets: NDArray[np.integer[Any]],
    *,
    per_cell: Mapping[str, NDArray[Any]] | None = None,
    keys: NDArray[np.bool_] | None = None,
    bags: Mapping[str, tuple[NDArray[Any], NDArray[Any], NDArray[np.integer[Any]]]] | None = None,
    measured: NDArray[np.bool_] | None = None,
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Make a `PackedBatch` of numpy arrays.

    Parameters
    ----------
    channels
        (T,) arrays by name; None entries are left out.
    offsets
        (n + 1,) first token of each cell, and the end.
    per_cell, keys, measured
        See `PackedBatch`.
    bags
        Ids, values and offsets of further ragged lists over the same cells, by name.
    device
        Where the tensors go.
    """
    device = torch.device(device)
    host = torch.device("cpu")
    batch = PackedBatch(
        channels={k: torch.as_tensor(v) for k, v in channels.items() if v is not None},
        segments=Segments(np.asarray(offsets, dtype=np.int64), host),
        per_cell={k: torch.as_tensor(v) for k, v in (per_cell or {}).items()},
        keys=None if keys is None else torch.as_tensor(keys),
        bags={
            name: Bag(
                torch.as_tensor(ids), torch.as_tensor(values), torch.as_tensor(np.asarray(starts, dtype=np.int64))
            )
            for name, (ids, values, starts) in (bags or {}).items()
        },
        measured=None if measured is None else torch.as_tensor(measured),
    )
    return batch.to(device)
