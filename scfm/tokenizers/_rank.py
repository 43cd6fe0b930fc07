"""Which genes stand out in a cell? Tokens ordered by count relative to a gene's usual level.

Geneformer (Theodoris et al. 2023; Chen et al. 2024) and Nicheformer (Tejada-Lapuerta et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._cells import Slots, checked
from scfm.tokenizers._context import ContextOption, resolve_context
from scfm.tokenizers._edits import put_in_front
from scfm.tokenizers._kernels import N_COUNTERS, gather_cell, sort_descending
from scfm.tokenizers._tokens import Tokens

_NO_LIMIT = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False, repr=False)
class RankValueTokenizer(Tokenizer):
    """A cell as the list of its genes, the most outstanding first.

    The score of a gene is its count, normalised to ``target_sum`` per cell, over the gene's ``scale``;
    genes are listed by descending score.

    Parameters
    ----------
    vocabulary
        Token names.
    scale
        (V,) float64 usual level of each gene (entries of special tokens are ignored), or (S, V) for S
        technologies.
    max_length
        Longest list of tokens, special and context tokens included.
    arithmetic
        ``"reciprocal"``: ``((x * (1 / n)) * target_sum) * (1 / scale)``; ``"division"``:
        ``(x * (target_sum / n)) / scale``. They differ in the last bit, which decides ties.
    total
        Counts that n sums up: ``"all"`` columns, or the ``"matched"`` ones.
    ties
        Order of equal scores: ascending token ``"id"``, or ``"quicksort"``: the undefined but reproducible
        order of numba's ``argsort`` (ten times slower; parity with Nicheformer's own code).
    first, last
        Roles of the special tokens in front and behind.
    context
        Context tokens, put in front in this order (after ``first``).
    scale_by, scale_rows
        Context option whose value selects the row of ``scale``, and the row of each value.
    target_sum
        Counts per cell after normalisation.
    """

    vocabulary: GeneVocabulary
    scale: NDArray[np.float64]
    max_length: int
    arithmetic: Literal["reciprocal", "division"] = "reciprocal"
    total: Literal["all", "matched"] = "all"
    ties: Literal["id", "quicksort"] = "id"
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    context: Mapping[str, ContextOption] = field(default_factory=dict)
    scale_by: str | None = None
    scale_rows: Mapping[str, int] = field(default_factory=dict)
    target_sum: float = 10_000.0

    def __post_init__(self) -> None:
        scale = np.atleast_2d(np.asarray(self.scale, dtype=np.float64))
        genes = self.vocabulary.is_gene
        if scale.shape[1] != len(self.vocabulary):
            raise TokenizerError(
                f"scale has {scale.shape[1]} entries per row, the vocabulary {len(self.vocabulary)} names; one each is needed"
            )
        unusable = ~np.isfinite(scale[:, genes]) | (scale[:, genes] == 0)
        if unusable.any():
            at = int(np.flatnonzero(genes)[np.flatnonzero(unusable.any(axis=0))[0]])
            raise TokenizerError(
                f"scale is zero or not finite for {int(unusable.any(axis=0).sum())} genes, "
                f"e.g. {self.vocabulary.names[at]}; replace such entries (1 leaves the count as it is)"
            )
        scale = np.where(genes, scale, 1.0)
        scale.flags.writeable = False
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "first", tuple(self.first))
        object.__setattr__(self, "last", tuple(self.last))
        roles = [r for r in (*self.first, *self.last) if r not in self.vocabulary.specials]
        if roles:
            raise TokenizerError(f"the vocabulary has no special token {', '.join(map(repr, roles))}")
        if self.max_length <= self._n_fixed:
            raise TokenizerError(f"max_length {self.max_length} leaves no place after {self._n_fixed} fixed tokens")
        if (self.scale_by is None) != (len(scale) == 1) or (
            self.scale_by is not None and self.scale_by not in self.context
        ):
            raise TokenizerError(f"{len(scale)} rows of scale need scale_by to name a context option that selects one")

    @property
    def context_options(self) -> Mapping[str, ContextOption]:
        """The context tokens in front of the genes."""
        return self.context

    @property
    def _n_fixed(self) -> int:
        return len(self.first) + len(self.context) + len(self.last)

    def __repr__(self) -> str:
        needs = f", context {'/'.join(self.context)}" if self.context else ""
        return (
            f"RankValueTokenizer({int(self.vocabulary.is_gene.sum()):,} genes, up to {self.max_length:,} tokens{needs})"
        )

    @classmethod
    def published(cls, name: Literal["geneformer-v1", "geneformer-v2", "nicheformer"]) -> RankValueTokenizer:
        """The tokenizer of a published model, with its real vocabulary and gene levels (medians or technology means).

        Raises
        ------
        TokenizerError
            If no vocabulary of that name ships with the package.
        """
        from scfm.tokenizers._published import rank_value

        return rank_value(name)

    def tokenize_block(
        self,
        block: CountBlock,
        match: GeneMatch,
        *,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        draws: Mapping[str, NDArray[Any]] | None = None,
    ) -> Tokens:
        """Tokens of the cells of one block; nothing is random (see `Tokenizer.tokenize_block`)."""
        specials = self.vocabulary.specials
        facts = resolve_context(self.context, context or {}, block.n_cells)
        front = np.empty((block.n_cells, len(self.first) + len(self.context)), dtype=np.int32)
        front[:, : len(self.first)] = [specials[role] for role in self.first]
        for i, name in enumerate(self.context, start=len(self.first)):
            front[:, i] = self.context[name].tokens(facts[name])
        back = np.array([specials[role] for role in self.last], dtype=np.int32)
        return self._run(block, match, facts, front, back, self.max_length - self._n_fixed, scores=False)

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes in front of all others; what no longer fits falls off the end."""
        return put_in_front(tokens, genes, self.vocabulary.is_gene, self.max_length)

    def ranking(self, block: CountBlock, match: GeneMatch, *, context: Mapping[str, Any] | None = None) -> Tokens:
        """Every gene of each cell in order, uncut and without special tokens, with float64 ``channels["score"]``."""
        facts = resolve_context(self.context, context or {}, block.n_cells)
        front = np.empty((block.n_cells, 0), dtype=np.int32)
        return self._run(block, match, facts, front, np.empty(0, np.int32), _NO_LIMIT, scores=True)

    def _run(
        self,
        block: CountBlock,
        match: GeneMatch,
        facts: Mapping[str, NDArray[Any]],
        front: NDArray[np.int32],
        back: NDArray[np.int32],
        limit: int,
        *,
        scores: bool,
    ) -> Tokens:
        slots = Slots.of(match, self.vocabulary)
        block = checked(block, slots)
        scale = self.scale[:, slots.genes]
        reciprocal = self.arithmetic == "reciprocal"
        rows = np.zeros(block.n_cells, dtype=np.int64)
        if self.scale_by is not None:
            names, inverse = np.unique(facts[self.scale_by], return_inverse=True)
            rows = np.array([self.scale_rows[str(n)] for n in names], dtype=np.int64)[inverse]
        own_order = self.ties == "id"
        no_tokens = np.empty((block.n_cells, 0), dtype=np.int32)
        ids, score, offsets, n_detected, total, matched = _rank(
            block.indptr,
            block.indices,
            block.data,
            np.full(block.n_cells, np.nan) if block.totals is None else block.totals,
            slots.of_column,
            slots.n_averaged,
            slots.genes,
            1.0 / scale if reciprocal else scale,
            rows,
            reciprocal,
            self.total == "all",
            float(self.target_sum),
            own_order,
            int(limit) if own_order else _NO_LIMIT,
            front if own_order else no_tokens,
            back if own_order else no_tokens[0],
            scores or not own_order,
        )
        if not own_order:
            ids, score, offsets = _quicksorted(ids, score, offsets, int(limit), front, back)
        n_kept = np.diff(offsets) - front.shape[1] - len(back)
        return Tokens(
            ids=ids,
            offsets=offsets,
            channels={"score": score} if scores else {},
            per_cell={
                "n_detected": n_detected,
                "n_dropped": (n_detected - n_kept).astype(np.int32),
                "total": total,
                "total_matched": matched,
            },
            vocabulary=self.vocabulary,
        )


@njit(nogil=True, cache=True)
def _rank(  # type: ignore[no-untyped-def]
    indptr,
    indices,
    data,
    known_totals,
    slot_of,
    n_averaged,
    genes,
    scale,
    scale_row,
    reciprocal,
    all_columns,
    target_sum,
    by_score,
    limit,
    front,
    back,
    with_scores,
):
    """Rank all cells of a block, or leave their genes ascending.

    ``scale`` is indexed by slot, and holds reciprocals if ``reciprocal``.
    """
    n_cells = len(indptr) - 1
    n_fixed = front.shape[1] + len(back)
    longest = 0
    bound = 0
    for i in range(n_cells):
        n = indptr[i + 1] - indptr[i]
        longest = max(longest, n)
        bound += min(n, limit) + n_fixed
    acc = np.zeros(len(genes), np.float64)
    bits = np.zeros((len(genes) + 63) // 64, np.uint64)
    slots = np.empty(longest + 1, np.int32)
    counts = np.empty(longest + 1, np.float64)
    scores = np.empty(longest + 1, np.float64)
    order = np.empty(longest + 1, np.int32)
    spare = np.empty(longest + 1, np.uint32)
    sort_keys = np.empty(longest + 1, np.uint32)
    low = np.empty(N_COUNTERS, np.int32)
    high = np.empty(N_COUNTERS, np.int32)
    ids = np.empty(bound, np.int32)
    out_scores = np.empty(bound if with_scores else 0, np.float64)
    offsets = np.zeros(n_cells + 1, np.int64)
    n_detected = np.zeros(n_cells, np.int32)
    total = np.zeros(n_cells, np.float64)
    matched = np.zeros(n_cells, np.float64)
    slot_is_id = True
    for s in range(len(genes)):
        slot_is_id &= genes[s] == s
    at = 0
    for i in range(n_cells):
        n, summed, matched[i] = gather_cell(
            indices, data, indptr[i], indptr[i + 1], slot_of, n_averaged, acc, bits, slots, counts
        )
        total[i] = summed if np.isnan(known_totals[i]) else known_totals[i]
        # counts that the matrix lacks are taken for counts of vocabulary genes
        depth = total[i] if all_columns else matched[i] + max(total[i] - summed, 0.0)
        n_detected[i] = n
        row = scale[scale_row[i]]
        if reciprocal:
            share = 1.0 / depth if n > 0 else 0.0
            for j in range(n):
                scores[j] = ((counts[j] * share) * target_sum) * row[np.uint32(slots[j])]
        else:
            share = target_sum / depth if n > 0 else 0.0
            for j in range(n):
                scores[j] = (counts[j] * share) / row[np.uint32(slots[j])]
        if by_score:
            sort_descending(scores, n, order, spare, sort_keys, low, high)
        else:
            for j in range(n):
                order[j] = j
        for j in range(front.shape[1]):
            ids[at] = front[i, j]
            at += 1
        kept = min(n, limit)
        if slot_is_id:
            for j in range(kept):
                ids[at + j] = slots[np.uint32(order[j])]
        else:
            for j in range(kept):
                ids[at + j] = genes[slots[order[j]]]
        if with_scores:
            for j in range(kept):
                out_scores[at + j] = scores[order[j]]
        at += kept
        for j in range(len(back)):
            ids[at] = back[j]
            at += 1
        offsets[i + 1] = at
    return ids[:at], out_scores[: at if with_scores else 0], offsets, n_detected, total, matched


@njit(nogil=True, cache=True)
def _quicksorted(ids, scores, offsets, limit, front, back):  # type: ignore[no-untyped-def]
    """Genes that ascend in every cell, in the order of numba's ``argsort``; cut and framed by special tokens."""
    n_cells = len(offsets) - 1
    n_first, n_last = front.shape[1], len(back)
    out_ids = np.empty(len(ids) + n_cells * (n_first + n_last), np.int32)
    out_scores = np.full(len(out_ids), np.nan)
    out_offsets = np.zeros(n_cells + 1, np.int64)
    at = 0
    for i in range(n_cells):
        out_ids[at : at + n_first] = front[i]
        at += n_first
        start, stop = offsets[i], offsets[i + 1]
        order = np.argsort(-scores[start:stop])[:limit]
        out_ids[at : at + len(order)] = ids[start:stop][order]
        out_scores[at : at + len(order)] = scores[start:stop][order]
        at += len(order)
        out_ids[at : at + n_last] = back
        at += n_last
        out_offsets[i + 1] = at
    return out_ids[:at], out_scores[:at], out_offsets
