"""What if this gene were absent, or the strongest of the cell? Changes to finished tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.errors import TokenizerError
from scfm.tokenizers._tokens import Tokens


def select(tokens: Tokens, keep: NDArray[np.bool_]) -> Tokens:
    """Some of the tokens of each cell.

    Parameters
    ----------
    tokens
        Of n cells.
    keep
        (T,) which of them stay.
    """
    return replace(
        tokens,
        ids=tokens.ids[keep],
        offsets=np.concatenate([[0], np.cumsum(keep)])[tokens.offsets].astype(np.int64),
        values=None if tokens.values is None else tokens.values[keep],
        positions=None if tokens.positions is None else tokens.positions[keep],
        channels={name: column[keep] for name, column in tokens.channels.items()},
    )


def remove(tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
    """The cells without these genes, in their further lists too; what stood behind moves up."""
    kept = select(tokens, ~np.isin(tokens.ids, genes))
    return replace(kept, parts={name: remove(part, genes) for name, part in tokens.parts.items()})


def put_in_front(
    tokens: Tokens, genes: NDArray[np.integer[Any]], is_gene: NDArray[np.bool_], limit: int | None = None
) -> Tokens:
    """The cells with these genes before all others, after the special tokens, at the highest value of the cell.

    Parameters
    ----------
    tokens
        Of n cells.
    genes
        Ids, in the order wanted; where a cell has them already, they leave their place.
    is_gene
        (V,) which ids of the vocabulary are genes.
    limit
        Most tokens of a cell; the last genes make room. None: no limit.

    Raises
    ------
    TokenizerError
        If the tokens have positions or channels, which a new one would lack.
    """
    if tokens.positions is not None or tokens.channels:
        raise TokenizerError("tokens with positions or further channels of their own have no place for another gene")
    rest = remove(tokens, genes)
    k, n = len(genes), len(tokens)
    places = np.repeat(rest.offsets[:-1] + _leading(tokens, is_gene), k)
    out = replace(
        rest,
        ids=np.insert(rest.ids, places, np.tile(genes, n)),
        offsets=rest.offsets + k * np.arange(n + 1),
        values=None if rest.values is None else np.insert(rest.values, places, np.repeat(highest(tokens, is_gene), k)),
    )
    return out if limit is None else cut(out, limit, is_gene)


def last_first(tokens: Tokens, is_gene: NDArray[np.bool_]) -> Tokens:
    """The genes of each cell by falling id; special tokens stay behind them."""
    cells = np.repeat(np.arange(len(tokens)), tokens.lengths)
    order = np.lexsort((np.where(is_gene[tokens.ids], -tokens.ids, 0), cells))
    return replace(tokens, ids=tokens.ids[order], values=None if tokens.values is None else tokens.values[order])


def set_values(tokens: Tokens, genes: NDArray[np.integer[Any]], values: NDArray[np.float32] | float) -> Tokens:
    """The cells with one value (n,) for these genes, which must be among their tokens already."""
    if tokens.values is None:
        raise TokenizerError("these tokens have no values; a gene is taken out of them with remove()")
    each = np.repeat(np.broadcast_to(np.asarray(values, dtype=np.float32), len(tokens)), tokens.lengths)
    return replace(tokens, values=np.where(np.isin(tokens.ids, genes), each, tokens.values))


def highest(tokens: Tokens, is_gene: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n,) highest value of a gene in each cell; 0 where there is none."""
    if tokens.values is None:
        raise TokenizerError("these tokens have no values, and so no highest one")
    of_gene = is_gene[tokens.ids]
    cells = np.repeat(np.arange(len(tokens)), tokens.lengths)
    top = np.zeros(len(tokens), dtype=np.float32)
    np.maximum.at(top, cells[of_gene], np.nan_to_num(tokens.values[of_gene]))
    return top


def cut(tokens: Tokens, limit: int | NDArray[np.integer[Any]], is_gene: NDArray[np.bool_]) -> Tokens:
    """At most ``limit`` tokens per cell: the last genes go, special tokens behind them stay."""
    rank = np.arange(tokens.n_tokens) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    over = np.maximum(tokens.lengths - limit, 0)
    if not over.any():
        return tokens
    end = tokens.lengths - _trailing(tokens, is_gene)
    gone = (rank >= np.repeat(end - over, tokens.lengths)) & (rank < np.repeat(end, tokens.lengths))
    return select(tokens, ~gone)


def _leading(tokens: Tokens, is_gene: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) special tokens before the first gene; all of them where a cell has none."""
    genes = np.concatenate([[0], np.cumsum(is_gene[tokens.ids])])
    before = genes[:-1] == np.repeat(genes[tokens.offsets[:-1]], tokens.lengths)
    n = np.concatenate([[0], np.cumsum(before & ~is_gene[tokens.ids])])
    return (n[tokens.offsets[1:]] - n[tokens.offsets[:-1]]).astype(np.int64)


def _trailing(tokens: Tokens, is_gene: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) special tokens behind the last gene; none where a cell has no gene."""
    genes = np.concatenate([[0], np.cumsum(is_gene[tokens.ids])])
    total = genes[tokens.offsets[1:]]
    behind = (genes[1:] == np.repeat(total, tokens.lengths)) & ~is_gene[tokens.ids]
    n = np.concatenate([[0], np.cumsum(behind)])
    counted = n[tokens.offsets[1:]] - n[tokens.offsets[:-1]]
    return np.where(total > genes[tokens.offsets[:-1]], counted, 0).astype(np.int64)
