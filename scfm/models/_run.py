"""How do many cells get through the model? Batches by a token budget, results in the order asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from scfm.tokenizers import Tokens
from scfm.transformer import PackedBatch, pack

log = logging.getLogger("scfm")

CPU_BUDGET = 8192
"""Tokens per batch on the CPU: large enough to fill the cores, small enough to stay in cache."""

T = TypeVar("T")


def plan(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Which cells go together: cells of like length, at most ``budget`` tokens, at least one cell.

    Parameters
    ----------
    lengths
        (n,) tokens per cell.
    budget
        Tokens per batch.

    Returns
    -------
    Cell numbers per batch, shortest cells first.
    """
    order = np.argsort(lengths, kind="stable")
    batches: list[NDArray[np.int64]] = []
    start, used = 0, 0
    for i, cell in enumerate(order):
        length = int(lengths[cell])
        if i > start and used + length > budget:
            batches.append(order[start:i])
            start, used = i, 0
        used += length
    if start < len(order):
        batches.append(order[start:])
    return batches


def to_batch(
    tokens: Tokens, device: torch.device | str = "cpu", per_cell: Collection[str] = frozenset()
) -> PackedBatch:
    """Tokens as one packed batch, with those arrays per cell that the model reads."""
    channels = {k: v for k, v in tokens.channels.items() if k != "keys"}
    return pack(
        {"ids": tokens.ids, "values": tokens.values, "positions": tokens.positions, **channels},
        tokens.offsets,
        per_cell={k: v for k, v in tokens.per_cell.items() if k in per_cell},
        keys=tokens.channels.get("keys"),
        bags={k: (v.ids, v.values, v.offsets) for k, v in tokens.parts.items() if v.values is not None},
        measured=tokens.measured,
        device=device,
    )


class Budget:
    """A number of tokens per batch that shrinks when the device runs out of memory."""

    def __init__(self, tokens: int | str, device: torch.device) -> None:
        self.tokens = self._automatic(device) if tokens == "auto" else int(tokens)

    @staticmethod
    def _automatic(device: torch.device) -> int:
        if device.type != "cuda":
            return CPU_BUDGET
        free, _total = torch.cuda.mem_get_info(device)
        # about 64 kB of activations a token at width 768; half of the free memory is left alone
        return int(np.clip(free // 2 // 65536, CPU_BUDGET, 32 * CPU_BUDGET))

    def halve(self) -> bool:
        """Half the tokens; False where that is no longer possible."""
        if self.tokens <= 256:
            return False
        self.tokens //= 2
        log.warning("the device ran out of memory; going on with %d tokens per batch", self.tokens)
        return True


def run(
    tokens: Tokens,
    function: Callable[[PackedBatch], T],
    budget: Budget,
    device: torch.device,
    per_cell: Collection[str] = frozenset(),
    extra: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Tokens, T]]:
    """Apply a function to batches of cells.

    Parameters
    ----------
    tokens
        Of all cells.
    function
        Of a packed batch.
    budget
        Tokens per batch; halved where the device runs out of memory.
    device
        Where the batches go.
    per_cell
        Names of the arrays per cell that go along.
    extra
        Further tokens of each cell that the function makes: they count for the budget.

    Yields
    ------
    The cell numbers of a batch, its tokens, and the result. Cells without any token are left out.
    """
    lengths = tokens.lengths
    todo = [np.flatnonzero(lengths > 0)]
    while todo:
        pending = todo.pop()
        batches = [pending[b] for b in plan(lengths[pending] + extra, budget.tokens)]
        for i, cells in enumerate(batches):
            part = tokens[cells]
            try:
                with torch.inference_mode():
                    result = function(to_batch(part, device, per_cell))
            except torch.OutOfMemoryError:
                if len(cells) == 1 or not budget.halve():
                    raise
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                todo.append(np.concatenate(batches[i:]))
                break
            yield cells, part, result


def to_numpy(x: torch.Tensor) -> NDArray[Any]:
    """A float32 array on the host."""
    return x.detach().float().cpu().numpy()
