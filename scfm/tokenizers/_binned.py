"""How much of each gene? Tokens of genes with a binned value.

scGPT (Cui et al. 2024), scBERT (Yang et al. 2022) and scMulan (Bian et al. 2024): one road, three rows of constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._bins import QuantileBins, ValueRule
from scfm.tokenizers._cells import Cells, Slots, gather, keys, recorded
from scfm.tokenizers._context import ContextOption, resolve_context
from scfm.tokenizers._edits import highest, last_first, put_in_front, remove, set_values
from scfm.tokenizers._layout import Zeros, assemble, cut, special_ids, statistics
from scfm.tokenizers._tokens import Tokens


@dataclass(frozen=True, eq=False, repr=False)
class BinnedTokenizer(Tokenizer):
    """A cell as its genes in vocabulary order, each with a value made from its count.

    Parameters
    ----------
    vocabulary
        Token names.
    bins
        How a count becomes a value.
    max_length
        Longest list of tokens, special ones included; None: no limit. Bins are made before the cut.
    selection
        What a cut keeps: a ``"sample"`` without replacement, keyed by (seed, the cell's own counts), or the
        genes with the highest counts (``"top"``).
    zeros
        Genes without counts become tokens of value 0: ``"never"``, those that the data has a column for
        (``"measured"``), or ``"all"`` of the vocabulary.
    order
        Genes in ``"vocabulary"`` order, or ``"reversed"``.
    first, last
        Special tokens in front and behind, by role, with their values.
    n_words
        Genes of the vocabulary from this id on count for the total of a cell, but are no tokens.
    context
        Facts about each cell that a model reads beside the tokens; they go into ``Tokens.per_cell`` as numbers.
    """

    vocabulary: GeneVocabulary
    bins: ValueRule = field(default_factory=QuantileBins)
    max_length: int | None = None
    selection: Literal["sample", "top"] = "sample"
    zeros: Zeros = "never"
    order: Literal["vocabulary", "reversed"] = "vocabulary"
    first: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    n_words: int | None = None
    context: Mapping[str, ContextOption] = field(default_factory=dict)

    def __post_init__(self) -> None:
        special_ids(self.vocabulary, {**self.first, **self.last})
        if self.max_length is not None and self._room <= 0:
            raise TokenizerError(f"max_length {self.max_length} leaves no place for genes beside the special tokens")

    @property
    def _room(self) -> int:
        return np.iinfo(np.int64).max if self.max_length is None else self.max_length - len(self.first) - len(self.last)

    @property
    def context_options(self) -> Mapping[str, ContextOption]:
        """The facts that go along with the tokens."""
        return self.context

    @property
    def n_ids(self) -> int:
        """All ids of tokens are below this number."""
        return len(self.vocabulary) if self.n_words is None else self.n_words

    def __repr__(self) -> str:
        limit = "any length" if self.max_length is None else f"up to {self.max_length:,} tokens"
        return f"BinnedTokenizer({int(self.vocabulary.is_gene[: self.n_words].sum()):,} genes, {self.bins}, {limit})"

    def tokenize_block(
        self,
        block: CountBlock,
        match: GeneMatch,
        *,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        draws: Mapping[str, NDArray[Any]] | None = None,
    ) -> Tokens:
        """Tokens of the cells of one block (see `Tokenizer.tokenize_block`).

        Recorded draws: ``"ties"`` (n, longest cell) in [0, 1) for the entries in order; ``"order"``
        (n, places) positions within the cell that are kept where a cell is cut.
        """
        facts = resolve_context(self.context, context or {}, block.n_cells)
        slots = Slots.of(match, self.vocabulary)
        everything = gather(block, slots)
        cells = everything if self.n_words is None else _below(everything, slots.genes, self.n_words)
        values = self.bins.values(cells, slots.genes[cells.slots], seed=seed, draws=draws)
        offsets, at, values, weights = self._with_zeros(cells, slots, values)
        genes = slots.genes[at]
        lengths = np.diff(offsets)
        if lengths.max(initial=0) > self._room:
            order = recorded(draws, "order", block.n_cells)
            sample = self.selection == "sample" and order is None
            stream = keys(everything, slots.genes[everything.slots], seed) if sample else None
            offsets, kept = cut(offsets, genes, weights, self._room, stream=stream, order=order)
            genes, values = genes[kept], values[kept]
        n_dropped = lengths - np.diff(offsets)
        first, first_values = special_ids(self.vocabulary, self.first)
        last, last_values = special_ids(self.vocabulary, self.last)
        offsets, ids, values = assemble(
            offsets, genes, values, first, first_values[None], last, last_values[None], self.order == "reversed"
        )
        return Tokens(
            ids=ids,
            offsets=offsets,
            values=values,
            per_cell={
                **statistics(everything, cells.lengths, n_dropped),
                **{name: self.context[name].tokens(values) for name, values in facts.items()},
            },
            vocabulary=self.vocabulary,
        )

    def delete(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes taken out, or at the value 0 where genes without counts are tokens too."""
        return remove(tokens, genes) if self.zeros == "never" else set_values(tokens, genes, 0.0)

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes at the highest value of the cell; the last others make room where a cell is full."""
        is_gene = self.vocabulary.is_gene
        if self.zeros == "never":
            changed = put_in_front(tokens, genes, is_gene, self.max_length)
            return last_first(changed, is_gene) if self.order == "reversed" else changed
        return set_values(tokens, genes, highest(tokens, is_gene))

    def _with_zeros(
        self, cells: Cells, slots: Slots, values: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.float64]]:
        """Borders, slots, values and counts of all tokens, those of absent genes included where they are wanted."""
        if self.zeros == "never":
            return cells.offsets, cells.slots, values, cells.counts
        if self.zeros == "all" and len(slots.genes) != len(self.vocabulary):
            raise TokenizerError(
                "zeros='all' needs one place per gene, but the gene match keeps the columns of one gene apart; "
                "use a matching rule that sums them or takes the first"
            )
        wanted = slots.filled if self.zeros == "measured" else self.vocabulary.is_gene[slots.genes]
        if self.n_words is not None:
            wanted = wanted & (slots.genes < self.n_words)
        columns = np.flatnonzero(wanted)
        place = np.cumsum(wanted) - 1
        n_cells = len(cells.total)
        dense_values = np.zeros((n_cells, len(columns)), dtype=np.float32)
        dense_counts = np.zeros((n_cells, len(columns)), dtype=np.float64)
        dense_values[cells.rows, place[cells.slots]] = values
        dense_counts[cells.rows, place[cells.slots]] = cells.counts
        offsets = np.arange(n_cells + 1, dtype=np.int64) * len(columns)
        return offsets, np.tile(columns.astype(np.int32), n_cells), dense_values.ravel(), dense_counts.ravel()


def _below(cells: Cells, genes: NDArray[np.int32], n_words: int) -> Cells:
    """The same cells with only the genes whose id is below ``n_words``; their depth stays."""
    keep = genes[cells.slots] < n_words
    offsets = np.concatenate([[0], np.cumsum(keep)])[cells.offsets].astype(np.int64)
    return replace(cells, offsets=offsets, slots=cells.slots[keep], counts=cells.counts[keep])
