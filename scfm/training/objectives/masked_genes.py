"""Which gene stands here? Masked language modelling on gene tokens (Geneformer, Nicheformer)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scfm.models import FoundationModel
from scfm.training.objectives._base import CellBatch, Example, Objective, need, share_in_range, tensors
from scfm.training.objectives._outputs import cross_entropy_sum, on_tokens
from scfm.training.objectives._reference import Reference, TokenFrequencies
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch

_CHOOSE, _ACT, _REPLACE = 21, 22, 23


@dataclass(frozen=True)
class MaskedGenes(Objective):
    """Some tokens are hidden behind ``<mask>``, replaced by others, or left; each of them is to be named.

    Parameters
    ----------
    share
        Of the tokens that are asked about, each drawn alone.
    masked, random
        Of these the share that becomes ``<mask>``, and that becomes a random token; the others stay as they are.
        Geneformer: 0.8 and 0.1, Nicheformer 0.81 and 0.1.
    specials
        Whether special tokens may be asked about too (all but ``<mask>`` and ``<pad>``), as in both published models.
    random_from
        Random tokens have ids from here on (Nicheformer: 10).
    head
        Output with one row per token of the vocabulary.
    """

    name: ClassVar[str] = "masked_genes"
    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    specials: bool = False
    random_from: int = 0
    head: str = "mlm"

    @property
    def terms(self) -> Mapping[str, float]:
        """The cross entropy of the hidden tokens."""
        return {"genes": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if the model has no mask token, reads no gene ids, or sees every gene in every cell."""
        share_in_range(self, share=self.share)
        need(
            self.masked >= 0 and self.random >= 0 and self.masked + self.random <= 1,
            f"objective.masked + objective.random is {self.masked + self.random:g}; together they are 1 at most",
        )
        need(
            "mask" in model.vocabulary.specials,
            f"masked genes need a <mask> token, and the vocabulary of {model.card.name} has none; use masked_values or "
            "masked_levels for models that hide values",
        )
        need(
            getattr(model.tokenizer, "zeros", "never") != "all",
            f"in the tokens of {model.card.name} every cell holds every gene, so a hidden gene is told by its absence; use "
            "masked_levels",
        )
        need("bag" not in {t.source for t in model.config.term_specs.values()}, "a bag of genes has no token to hide")
        need(
            model.config.stack_spec.attention != "causal",
            f"{model.card.name} sees earlier tokens only; use next_word for it",
        )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """A map tied to the gene table, as in BERT; a linear map where that table is frozen."""
        width, rows = model.transformer.state_width(-1), len(model.vocabulary)
        gene = model.config.term_specs["gene"]
        if gene.frozen or (gene.width or width) != width or gene.mlp is not None:
            return {self.head: HeadSpec("tokens", MLPSpec((width, rows)))}
        return {self.head: HeadSpec("tied", MLPSpec((width, width), end=("gelu", "norm")))}

    @property
    def told_by(self) -> Mapping[str, str]:
        """One head."""
        return {"genes": self.head}

    def examples(self, cells: CellBatch) -> Example:
        """Hide tokens."""
        tokens, words = cells.tokens, cells.vocabulary
        forbidden = {words.specials[r] for r in ("mask", "pad") if r in words.specials}
        may = ~np.isin(tokens.ids, list(forbidden)) if self.specials else words.is_gene[tokens.ids]
        draw = (cells.draws.uniform(p, tokens.offsets) for p in (_CHOOSE, _ACT, _REPLACE))
        ids, asked = self.hide(tokens.ids, may, words.specials["mask"], len(words), *draw)
        rows = np.flatnonzero(asked)
        labels = tokens.ids[rows].astype(np.int64)
        return Example(
            cells.pack(replace(tokens, ids=ids)),
            tensors(rows=rows, labels=labels),
            {"genes": float(len(rows))},
            cells.cells,
        )

    def hide(
        self,
        ids: NDArray[np.int32],
        may: NDArray[np.bool_],
        mask: int,
        n_tokens: int,
        choose: NDArray[Any],
        act: NDArray[Any],
        other: NDArray[Any],
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Hidden ids, and which tokens are asked about, from three uniform numbers per token."""
        asked = may & (choose < self.share)
        new = np.where(act < self.masked, mask, ids)
        swapped = (act >= self.masked) & (act < self.masked + self.random)
        random = self.random_from + np.floor(other * (n_tokens - self.random_from)).astype(np.int32)
        new = np.where(swapped, random, new)
        return np.where(asked, new, ids).astype(np.int32), asked

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy over the vocabulary."""
        logits = on_tokens(model, self.head, model.state(batch, -1), batch, targets["rows"])
        return {"genes": cross_entropy_sum(logits, targets["labels"])}

    def reference(self, vocabulary_size: int) -> Reference:
        """Token frequencies."""
        return TokenFrequencies("genes", vocabulary_size)
