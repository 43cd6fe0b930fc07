"""Which tokens of a cell are kept, and where do the special ones stand?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.errors import TokenizerError
from scfm.genes import GeneVocabulary
from scfm.tokenizers._cells import Cells
from scfm.tokenizers._kernels import N_COUNTERS, sort_descending, uniform

Zeros = Literal["never", "measured", "all"]


def statistics(cells: Cells, n_detected: NDArray[Any], n_dropped: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The per-cell arrays that every tokenizer reports."""
    return {
        "n_detected": n_detected.astype(np.int32),
        "n_dropped": n_dropped.astype(np.int32),
        "total": cells.total,
        "total_matched": cells.total_matched,
    }


def special_ids(
    vocabulary: GeneVocabulary, roles: Mapping[str, float]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids and values of special tokens given by role.

    Raises
    ------
    TokenizerError
        If the vocabulary has no token of a role.
    """
    missing = [role for role in roles if role not in vocabulary.specials]
    if missing:
        known = ", ".join(map(repr, vocabulary.specials)) or "none"
        raise TokenizerError(f"the vocabulary has no special token {', '.join(map(repr, missing))}; it has {known}")
    ids = np.array([vocabulary.specials[role] for role in roles], dtype=np.int32)
    return ids, np.array(list(roles.values()), dtype=np.float32)


def cut(
    offsets: NDArray[np.int64],
    genes: NDArray[np.int32],
    weights: NDArray[np.float64],
    room: int,
    *,
    stream: NDArray[np.uint64] | None,
    order: NDArray[Any] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which entries of each cell are kept when at most ``room`` fit.

    Parameters
    ----------
    offsets, genes, weights
        Borders of the cells, (E,) vocabulary ids and (E,) weights of the entries.
    room
        Largest number of entries of a cell.
    stream
        (n,) random stream per cell: a sample without replacement; None: the heaviest entries.
        Both leave the entries in their order.
    order
        (n, room or more) recorded positions for the cells that are cut, used as they stand.

    Returns
    -------
    (n + 1,) new borders, and the indices of the kept entries.

    Raises
    ------
    TokenizerError
        If recorded positions are too few or lie outside a cell.
    """
    lengths = np.diff(offsets)
    if not (lengths > room).any():
        return offsets, np.arange(offsets[-1])
    if order is not None:
        cut_cells = lengths > room
        if order.shape[1] < room:
            raise TokenizerError(f"draws['order'] holds {order.shape[1]} positions per cell, {room} are needed")
        used = order[cut_cells, :room]
        if (used < 0).any() or (used >= lengths[cut_cells, None]).any():
            raise TokenizerError("draws['order'] holds positions outside a cell that is cut")
    none = np.empty((len(lengths), 0), dtype=np.int64)
    kept: tuple[NDArray[np.int64], NDArray[np.int64]] = _cut(
        offsets,
        genes,
        weights,
        room,
        np.empty(0, np.uint64) if stream is None else stream,
        none if order is None else np.ascontiguousarray(order, dtype=np.int64),
    )
    return kept


@njit(nogil=True, cache=True)
def _cut(offsets, genes, weights, room, stream, recorded):  # type: ignore[no-untyped-def]
    n_cells = len(offsets) - 1
    longest = 0
    bound = 0
    for i in range(n_cells):
        n = offsets[i + 1] - offsets[i]
        longest = max(longest, n)
        bound += min(n, room)
    ranked = np.empty(longest, np.float64)
    order = np.empty(longest, np.int32)
    spare = np.empty(longest, np.uint32)
    sort_keys = np.empty(longest, np.uint32)
    low = np.empty(N_COUNTERS, np.int32)
    high = np.empty(N_COUNTERS, np.int32)
    chosen = np.zeros(longest, np.bool_)
    borders = np.zeros(n_cells + 1, np.int64)
    kept = np.empty(bound, np.int64)
    at = 0
    for i in range(n_cells):
        start = offsets[i]
        n = offsets[i + 1] - start
        if n <= room:
            for j in range(n):
                kept[at + j] = start + j
        elif recorded.shape[1] > 0:
            for j in range(room):
                kept[at + j] = start + recorded[i, j]
        else:
            for j in range(n):
                ranked[j] = uniform(~stream[i], genes[start + j]) if len(stream) > 0 else weights[start + j]
            sort_descending(ranked, n, order, spare, sort_keys, low, high)
            for j in range(room):
                chosen[order[j]] = True
            at_here = at
            for j in range(n):
                if chosen[j]:
                    kept[at_here] = start + j
                    at_here += 1
                    chosen[j] = False
        at += min(n, room)
        borders[i + 1] = at
    return borders, kept


@njit(nogil=True, cache=True)
def assemble(offsets, ids, values, first_ids, first_values, last_ids, last_values, reverse):  # type: ignore[no-untyped-def]
    """Put special tokens around every cell: (offsets, ids, values) of the whole lists.

    ``first_values`` and ``last_values`` are (n or 1, number of specials): one row for all cells, or one each.
    """
    n_cells = len(offsets) - 1
    n_first, n_last = len(first_ids), len(last_ids)
    size = offsets[-1] + n_cells * (n_first + n_last)
    out_offsets = np.empty(n_cells + 1, np.int64)
    out_ids = np.empty(size, np.int32)
    out_values = np.empty(size, np.float32)
    out_offsets[0] = 0
    at = 0
    for i in range(n_cells):
        for j in range(n_first):
            out_ids[at + j] = first_ids[j]
            out_values[at + j] = first_values[min(i, len(first_values) - 1), j]
        at += n_first
        n = offsets[i + 1] - offsets[i]
        for j in range(n):
            source = offsets[i + 1] - 1 - j if reverse else offsets[i] + j
            out_ids[at + j] = ids[source]
            out_values[at + j] = values[source]
        at += n
        for j in range(n_last):
            out_ids[at + j] = last_ids[j]
            out_values[at + j] = last_values[min(i, len(last_values) - 1), j]
        at += n_last
        out_offsets[i + 1] = at
    return out_offsets, out_ids, out_values
