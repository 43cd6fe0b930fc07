"""Which genes does the cell express, and how much of each? One token per cell with a bag of all its genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneVocabulary
from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._cells import Slots, gather, keys
from scfm.tokenizers._context import resolve_context
from scfm.tokenizers._edits import put_in_front
from scfm.tokenizers._layout import special_ids, statistics
from scfm.tokenizers._tokens import Tokens

if TYPE_CHECKING:
    from scfm.genes import GeneMatch

_REMEMBERED = 64


@dataclass(frozen=True, eq=False, repr=False)
class BagTokenizer(Tokenizer):
    """A cell as its own token and, beside it, the bag of all its expressed genes in vocabulary order.

    The value of a gene is log1p of its counts per ``target_sum`` of the cell's counts over the vocabulary genes
    (of its true total where the stored genes are only a part of the cell).

    Parameters
    ----------
    vocabulary
        Token names, with the role ``"cls"``.
    target_sum
        Counts per cell after normalisation.
    usual
        (V,) value of each gene that is nothing special; None: there is no list of genes above it.
    few_counts, least
        What a gene must be above its usual value by, at least: the value of so many counts of the cell, so that no gene
        stands out by a count or two, and this value.
    max_length
        Tokens of a cell: its own, and behind it those of the genes whose values are furthest above the usual ones
        (the highest where ``usual`` is None).
    """

    vocabulary: GeneVocabulary
    target_sum: float = 10_000.0
    usual: NDArray[np.float32] | None = None
    few_counts: float = 2.0
    least: float = 0.5
    max_length: int = 1

    def __post_init__(self) -> None:
        special_ids(self.vocabulary, {"cls": 0.0})
        if not self.target_sum > 0:
            raise TokenizerError(f"target_sum is {self.target_sum}, expected a number of counts above 0")
        if self.max_length < 1:
            raise TokenizerError(f"max_length is {self.max_length}, expected at least 1 for the token of the cell")
        if self.usual is None:
            return
        object.__setattr__(self, "usual", np.asarray(self.usual, dtype=np.float32))
        if np.shape(self.usual) != (len(self.vocabulary),):
            raise TokenizerError(
                f"usual has the shape {np.shape(self.usual)}, the vocabulary {len(self.vocabulary)} names; one value each is "
                "needed"
            )

    def __repr__(self) -> str:
        return f"BagTokenizer({int(self.vocabulary.is_gene.sum()):,} genes, log1p of counts per {self.target_sum:,g})"

    def tokenize_block(
        self,
        block: CountBlock,
        match: GeneMatch,
        *,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        draws: Mapping[str, NDArray[Any]] | None = None,
    ) -> Tokens:
        """Tokens of the cells of one block; nothing is random (see `Tokenizer.tokenize_block`).

        ``parts["bag"]`` holds the expressed genes of each cell and their values, ``parts["excess"]`` those of them above
        their usual value, and by how much; ``per_cell["fingerprint"]`` a number (uint64) made of its pairs of gene and
        count, by which a cell is known again.
        """
        resolve_context({}, context or {}, block.n_cells)
        slots = Slots.of(match, self.vocabulary)
        cells = gather(block, slots)
        bag = Tokens(
            ids=slots.genes[cells.slots],
            offsets=cells.offsets,
            values=_log_values(cells.offsets, cells.counts, cells.depth, self.target_sum),
            vocabulary=self.vocabulary,
        )
        ids, _ = special_ids(self.vocabulary, {"cls": 0.0})
        made = Tokens(
            ids=np.repeat(ids, block.n_cells),
            offsets=np.arange(block.n_cells + 1, dtype=np.int64),
            per_cell={
                **statistics(cells, cells.lengths, np.zeros(block.n_cells)),
                "depth": cells.depth.astype(np.float64),
                "fingerprint": keys(cells, bag.ids, 0),
            },
            vocabulary=self.vocabulary,
        )
        return self._with(made, bag)

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes at the highest value of the cell."""
        return self._with(tokens, put_in_front(tokens.parts["bag"], genes, self.vocabulary.is_gene))

    def _with(self, tokens: Tokens, bag: Tokens) -> Tokens:
        """The tokens with these genes as their bag, and with those of them that are above their usual value."""
        tokens = tokens if self.max_length == 1 else self._first_genes(tokens, bag)
        if self.usual is None:
            return replace(tokens, parts={"bag": bag})
        few = np.log1p(self.target_sum * self.few_counts / np.maximum(tokens.per_cell["depth"], 1.0))
        least = np.maximum(few, self.least).astype(np.float32)
        offsets, ids, values = _above(bag.offsets, bag.ids, bag.values, self.usual, least)
        above = Tokens(ids=ids, offsets=offsets, values=values, vocabulary=self.vocabulary)
        return replace(tokens, parts={"bag": bag, "excess": above})

    def _first_genes(self, tokens: Tokens, bag: Tokens) -> Tokens:
        """The token of each cell, which has no value, and the foremost genes of its bag behind it."""
        values = np.asarray(bag.values)
        above = values if self.usual is None else values - self.usual[bag.ids]
        cell = np.repeat(np.arange(len(bag)), bag.lengths)
        order = np.lexsort((-above, cell))
        order = order[np.arange(len(order)) - bag.offsets[cell] < self.max_length - 1]
        first = np.searchsorted(cell[order], np.arange(len(bag) + 1))
        return replace(
            tokens,
            ids=np.insert(bag.ids[order], first[:-1], self.vocabulary.specials["cls"]).astype(bag.ids.dtype),
            values=np.insert(values[order], first[:-1], np.nan),
            offsets=first + np.arange(len(bag) + 1, dtype=np.int64),
        )


@njit(nogil=True, cache=True)
def _log_values(offsets, counts, depth, target_sum):  # type: ignore[no-untyped-def]
    """(E,) float32 log1p(target_sum * x / depth), rounded once; small whole counts are computed once per cell."""
    values = np.empty(len(counts), np.float32)
    known = np.empty(_REMEMBERED, np.float32)
    for i in range(len(offsets) - 1):
        known[:] = -1.0
        for k in range(offsets[i], offsets[i + 1]):
            x = counts[k]
            if x < _REMEMBERED and x == np.floor(x):
                small = np.uint32(x)
                if known[small] < 0:
                    known[small] = np.log1p(target_sum * x / depth[i])
                values[k] = known[small]
            else:
                values[k] = np.log1p(target_sum * x / depth[i])
    return values


@njit(nogil=True, cache=True)
def _above(offsets, ids, values, usual, least):  # type: ignore[no-untyped-def]
    """Genes above their usual value and what their cell asks for beyond: offsets, ids, and float32 by how much."""
    begins = np.zeros(len(offsets), np.int64)
    genes, excess = np.empty(len(ids), np.int32), np.empty(len(ids), np.float32)
    n = 0
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            x = values[k] - usual[ids[k]] - least[i]
            if x > 0:
                genes[n], excess[n] = ids[k], x
                n += 1
        begins[i + 1] = n
    # copies, so that the long arrays can go
    return begins, genes[:n].copy(), excess[:n].copy()
