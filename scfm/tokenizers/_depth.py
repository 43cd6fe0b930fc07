"""How deep was the cell read, and how deep should it look? Log values with two read-depth tokens.

scFoundation (Hao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._cells import Cells, Slots, distinct, gather
from scfm.tokenizers._context import ContextOption, resolve_context
from scfm.tokenizers._edits import put_in_front
from scfm.tokenizers._layout import assemble, special_ids, statistics
from scfm.tokenizers._tokens import Tokens

_TARGETS: Mapping[str, ContextOption] = {
    "target_depth": ContextOption({}, optional=True),
    "target_fold": ContextOption({}, optional=True),
    "target_log_add": ContextOption({}, optional=True),
}


@dataclass(frozen=True, eq=False, repr=False)
class ReadDepthTokenizer(Tokenizer):
    """A cell as its expressed genes in vocabulary order with log values, then target and source depth.

    The last two tokens of every cell are T, the read depth to aim at, and S, the depth of the cell over the
    vocabulary's genes, both as log10 counts. The aim is given by one of the context options
    ``target_depth`` (counts), ``target_fold`` (times the cell's own depth) or ``target_log_add`` (added to
    S); without one it is ``target_depth``.

    Parameters
    ----------
    vocabulary
        Token names, with the roles ``"target_depth"`` and ``"source_depth"``.
    target_depth
        Counts to aim at when the caller says nothing.
    values
        ``"log1p"``: log1p of counts per ``target_sum``, in float64 and rounded once; ``"given"``: the
        values of the matrix as they are (already normalised), whose sum then is the cell's depth.
    scale
        S and T as ``"log10"`` of the depth, or the ``"plain"`` depth.
    target_sum
        Counts per cell after normalisation.
    """

    vocabulary: GeneVocabulary
    target_depth: float = 10_000.0
    values: Literal["log1p", "given"] = "log1p"
    scale: Literal["log10", "plain"] = "log10"
    target_sum: float = 10_000.0

    def __post_init__(self) -> None:
        special_ids(self.vocabulary, {"target_depth": 0.0, "source_depth": 0.0})
        if not self.target_depth > 0:
            raise TokenizerError(f"target_depth is {self.target_depth}, expected a number of counts above 0")

    @property
    def context_options(self) -> Mapping[str, ContextOption]:
        """The three ways to say which depth to aim at; at most one may be given."""
        return _TARGETS

    def __repr__(self) -> str:
        return f"ReadDepthTokenizer({int(self.vocabulary.is_gene.sum()):,} genes, target depth {self.target_depth:,g})"

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

        T and S are always there: a cell with one count has S = 0, and a cell without counts of its own is
        given S = 0 and no gene token.
        """
        facts = resolve_context(_TARGETS, context or {}, block.n_cells)
        slots = Slots.of(match, self.vocabulary)
        cells = gather(block, slots)
        values = _log_values(cells, self.target_sum) if self.values == "log1p" else cells.counts.astype(np.float32)
        ids, _ = special_ids(self.vocabulary, {"target_depth": 0.0, "source_depth": 0.0})
        depths = self._depths(cells.depth, facts).astype(np.float32)
        none = np.empty(0, np.int32)
        offsets, all_ids, all_values = assemble(
            cells.offsets, slots.genes[cells.slots], values, none, np.empty((1, 0), np.float32), ids, depths, False
        )
        return Tokens(
            ids=all_ids,
            offsets=offsets,
            values=all_values,
            per_cell=statistics(cells, cells.lengths, np.zeros(block.n_cells)),
            vocabulary=self.vocabulary,
        )

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """The genes at the highest value of the cell, before all others: their order means nothing to the model."""
        return put_in_front(tokens, genes, self.vocabulary.is_gene)

    def _depths(self, depth: NDArray[np.float64], facts: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """(n, 2) T and S."""
        if len(facts) > 1:
            raise TokenizerError(
                f"context {' and '.join(facts)} contradict each other; give one of {', '.join(_TARGETS)}"
            )
        for name in ("target_depth", "target_fold"):
            if name in facts and not (facts[name] > 0).all():
                raise TokenizerError(f"context {name!r} must be above 0, found {facts[name].min():g}")
        counted = np.where(depth > 0, depth, 1.0)
        if "target_fold" in facts:
            aim = self._scaled(counted * facts["target_fold"])
        elif "target_log_add" in facts:
            aim = self._scaled(counted) + facts["target_log_add"]
        else:
            aim = self._scaled(np.broadcast_to(facts.get("target_depth", np.float64(self.target_depth)), depth.shape))
        return np.stack([aim, self._scaled(counted)], axis=1)

    def _scaled(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(depth) if self.scale == "log10" else depth


def _log_values(cells: Cells, target_sum: float) -> NDArray[np.float32]:
    """(E,) log1p(x / depth * target_sum) in float64, rounded once; a logarithm per distinct count of a cell."""
    which, counts, rows = distinct(cells)
    return np.log1p(counts / cells.depth[rows] * target_sum).astype(np.float32)[which]
