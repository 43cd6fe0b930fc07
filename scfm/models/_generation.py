"""Which value would this gene have? Tokens that ask, for models that were trained to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.tokenizers import Tokens


def ask(tokens: Tokens, questions: Tokens, channels: Mapping[str, int]) -> Tokens:
    """Put questions behind the tokens of each cell.

    Parameters
    ----------
    tokens
        What is known of n cells.
    questions
        Genes to be predicted for the same cells; only their ids count.
    channels
        What a question holds in further channels, where the other tokens hold nothing (-1).

    Returns
    -------
    Tokens whose channel ``keys`` is False for the questions: they see the tokens of their cell and nobody sees them.
    They have no value (NaN).
    """
    known, asked = tokens.lengths, questions.lengths
    offsets = np.concatenate([[0], np.cumsum(known + asked)]).astype(np.int64)
    keys = np.repeat(np.tile([True, False], len(tokens)), np.column_stack([known, asked]).ravel())

    def merge(old: NDArray[Any], new: Any) -> NDArray[Any]:
        out = np.empty(len(keys), dtype=old.dtype)
        out[keys], out[~keys] = old, new
        return out

    def nothing(column: NDArray[Any]) -> float:
        return np.nan if column.dtype.kind == "f" else -1

    absent = np.full(tokens.n_tokens, -1, dtype=np.int64)
    return replace(
        tokens,
        ids=merge(tokens.ids, questions.ids),
        offsets=offsets,
        values=None if tokens.values is None else merge(tokens.values, np.nan),
        positions=None if tokens.positions is None else merge(tokens.positions, -1),
        channels={
            **{name: merge(column, nothing(column)) for name, column in tokens.channels.items()},
            **{name: merge(absent, value) for name, value in channels.items()},
            "keys": keys,
        },
    )


def same_for_all(ids: NDArray[np.integer[Any]], n_cells: int) -> Tokens:
    """The same list of genes for every cell."""
    offsets = np.arange(n_cells + 1, dtype=np.int64) * len(ids)
    return Tokens(ids=np.tile(np.asarray(ids, dtype=np.int32), n_cells), offsets=offsets)


def fill_up(tokens: Tokens, padding: int, length: int) -> Tokens:
    """Cells of ``length`` tokens: the missing ones are padding that nobody sees (see `ask`)."""
    n = np.maximum(length - tokens.lengths, 0)
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    return ask(tokens, Tokens(ids=np.full(offsets[-1], padding, dtype=np.int32), offsets=offsets), {})
