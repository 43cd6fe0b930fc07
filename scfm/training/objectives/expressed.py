"""Is this gene expressed in the cell? UCE's objective: hidden genes against genes without counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scfm.models import FoundationModel
from scfm.tokenizers import Tokens
from scfm.training._encode import Keep
from scfm.training.objectives._base import (
    CellBatch,
    Example,
    Objective,
    cell_of,
    need,
    share_in_range,
    subset,
    tensors,
)
from scfm.training.objectives._outputs import binary_sum, on_pairs
from scfm.training.objectives._reference import RatePerGene, Reference
from scfm.training.objectives.masked_values import chosen
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch

_HIDE, _ASK = 51, 52


@dataclass(frozen=True)
class Expressed(Objective):
    """Some expressed genes are taken out of a cell; they are to be told from measured genes without counts.

    Parameters
    ----------
    share
        Of the expressed genes that is taken out, at least one.
    n_genes
        Genes that are asked about on either side, per cell. Where fewer are hidden they are drawn again (not among the
        visible ones, which the model sees).
    head
        Output of one logit per pair of cell and gene.
    """

    name: ClassVar[str] = "expressed"
    keep: ClassVar[Keep] = "counts"
    share: float = 0.2
    n_genes: int = 100
    head: str = "expressed"

    @property
    def terms(self) -> Mapping[str, float]:
        """The binary cross entropy."""
        return {"expressed": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if tokens do not come from counts, or every gene is a token."""
        share_in_range(self, share=self.share)
        need(self.n_genes >= 1, f"objective.n_genes is {self.n_genes}; at least 1 is needed")
        need(
            getattr(model.tokenizer, "zeros", "never") == "never",
            f"in the tokens of {model.card.name} genes without counts are tokens too, so a hidden gene would be shown as "
            "unexpressed; use masked_levels",
        )
        need(not model.tokenizer.context_options or not _needs_context(model), "this objective takes no context tokens")

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """An inner product of cell and gene."""
        d = model.transformer.state_width(-1)
        form = (("expressed", True),)
        return {self.head: HeadSpec("pairs", MLPSpec((d, d), end=("gelu",)), model.config.readout, form, cell_width=d)}

    @property
    def told_by(self) -> Mapping[str, str]:
        """One head."""
        return {"expressed": self.head}

    def examples(self, cells: CellBatch) -> Example:
        """Hide genes, tokenize the rest, and draw what is asked."""
        counts = cells.kept
        n = counts.lengths
        wanted = np.where(n > 1, np.maximum(1, np.rint(self.share * n)), 0).astype(np.int64)
        everything = np.ones(counts.n_tokens, dtype=bool)
        hidden = chosen(everything, wanted, cells.draws.uniform(_HIDE, counts.offsets), counts.offsets)
        genes, labels, of_cell = self._questions(cells, counts, hidden)
        return Example(
            cells.pack(cells.tokenize(without(counts, hidden))),
            tensors(genes=genes, labels=labels, of_cell=of_cell),
            {"expressed": float(len(genes))},
            cells.cells,
        )

    def _questions(
        self, cells: CellBatch, counts: Tokens, hidden: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        genes, labels, of_cell = [], [], []
        is_gene = cells.vocabulary.is_gene
        for i in range(len(counts)):
            here = slice(int(counts.offsets[i]), int(counts.offsets[i + 1]))
            yes = counts.ids[here][hidden[here]]
            no = cells.measured[cells.files[i]] & is_gene
            no[counts.ids[here]] = False
            silent = np.flatnonzero(no)
            if not len(yes) or not len(silent):
                continue
            rng = cells.draws.generator(_ASK, i)
            for pool, label in ((yes, 1.0), (silent, 0.0)):
                genes.append(rng.choice(pool, self.n_genes, replace=len(pool) < self.n_genes))
                labels.append(np.full(self.n_genes, label, np.float32))
                of_cell.append(np.full(self.n_genes, i, np.int64))
        if not genes:
            return np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
        return np.concatenate(genes).astype(np.int64), np.concatenate(labels), np.concatenate(of_cell)

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross entropy of the logits."""
        cells = model.embed(batch, model.config.head_specs[self.head].readout, -1)
        logits = on_pairs(model, self.head, cells, batch, targets["genes"], targets["of_cell"])[:, 0]
        return {"expressed": binary_sum(logits, targets["labels"])}

    def reference(self, vocabulary_size: int) -> Reference:
        """How often each gene is expressed when it is asked about."""
        return RatePerGene("expressed", vocabulary_size)


def _needs_context(model: FoundationModel) -> bool:
    return any(not o.optional and o.default is None for o in model.tokenizer.context_options.values())


def without(counts: Tokens, hidden: NDArray[np.bool_]) -> Tokens:
    """Kept counts without some genes; the totals go down with them."""
    gone = np.bincount(cell_of(counts), np.where(hidden, np.asarray(counts.values), 0), minlength=len(counts))
    left = subset(counts, ~hidden)
    less = {name: left.per_cell[name] - gone for name in ("total", "depth")}
    return replace(left, per_cell={**left.per_cell, **less})
