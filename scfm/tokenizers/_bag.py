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
    """A cell as a single token and, beside it, the bag of all its expressed genes in vocabulary order.

    The value of a gene is log1p of its counts per ``target_sum`` of the cell's counts over the vocabulary genes
    (of its true total where the stored genes are only a part of the cell).

    Parameters
    ----------
    vocabulary
        Token names, with the role ``"cls"``.
    target_sum
        Counts per cell after normalisation.
    """

    vocabulary: GeneVocabulary
    target_sum: float = 10_000.0

    def __post_init__(self) -> None:
        special_ids(self.vocabulary, {"cls": 0.0})
        if not self.target_sum > 0:
            raise TokenizerError(f"target_sum is {self.target_sum}, expected a number of counts above 0")

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

        ``parts["bag"]`` holds the expressed genes of each cell and their values, ``per_cell["fingerprint"]`` a number
        (uint64) made of its pairs of gene and count, by which a cell is known again.
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
        return Tokens(
            ids=np.repeat(ids, block.n_cells),
            offsets=np.arange(block.n_cells + 1, dtype=np.int64),
            per_cell={
                **statistics(cells, cells.lengths, np.zeros(block.n_cells)),
                "fingerprint": keys(cells, bag.ids, 0),
            },
            parts={"bag": bag},
            vocabulary=self.vocabulary,
        )

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes at the highest value of the cell."""
        bag = put_in_front(tokens.parts["bag"], genes, self.vocabulary.is_gene)
        return replace(tokens, parts={**tokens.parts, "bag": bag})


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
