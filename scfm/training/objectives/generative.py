"""Which values have the genes that are not given? scGPT's generative pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from scfm.models import FoundationModel
from scfm.models._generation import ask
from scfm.tokenizers import Tokens
from scfm.training.objectives._base import CellBatch, Example, Objective, need, subset, tensors
from scfm.training.objectives._outputs import cell_vectors, on_pairs, on_tokens, squares_sum
from scfm.training.objectives._reference import MeanPerGene, Reference
from scfm.training.objectives.masked_values import chosen, value_heads, value_term
from scfm.transformer import CellTransformer, HeadSpec, PackedBatch

_RATIO, _CHOOSE = 41, 42


@dataclass(frozen=True)
class Generative(Objective):
    """A cell's genes are split into given ones and asked ones; values of the asked ones are told three times.

    From the asked tokens' states, from the cell vector alone, and from the asked tokens' states in a second pass whose first
    token is the cell vector of the first pass. Asked tokens see the given ones and themselves, and nobody sees them.

    Parameters
    ----------
    ratios
        Share of asked genes; one is drawn for each cell.
    head, cell_head
        See `MaskedValues`.
    prompt_from
        Optimizer step from which the second pass counts (1,000 in the published training).
    channels
        What asked tokens hold in further channels; taken from the model.
    """

    name: ClassVar[str] = "generative"
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    head: str = "expression"
    cell_head: str = "mvc"
    prompt_from: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(self.ratios))

    @property
    def terms(self) -> Mapping[str, float]:
        """Squared errors from tokens, from cell vectors, and from a cell prompt."""
        return {"values": 1.0, "from_cell": 1.0, "from_prompt": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if the model cannot be asked for genes that are not given."""
        need(bool(self.ratios) and all(0 < r < 1 for r in self.ratios), "objective.ratios are shares between 0 and 1")
        spec = model.config.query_only_spec
        need(
            model.config.query_only is not None and spec.padding is None and value_term(model, "scalar") is not None,
            f"the generative objective needs a model with tokens that ask (query_only) and numbers as values; {model.card.name} "
            "is none: use masked_values, masked_levels or masked_genes",
        )
        need(
            spec.channels in ({}, {"flag": 1}),
            f"asked tokens of {model.card.name} hold {spec.channels}; only a flag is known to this objective",
        )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """ScGPT's heads, fresh."""
        return value_heads(model, self.head, self.cell_head)

    @property
    def told_by(self) -> Mapping[str, str]:
        """The same head with and without the prompt."""
        return {"values": self.head, "from_cell": self.cell_head, "from_prompt": self.head}

    def examples(self, cells: CellBatch) -> Example:
        """Split each cell."""
        tokens = cells.tokens
        ratio = np.asarray(self.ratios)[np.floor(cells.draws.per_cell(_RATIO) * len(self.ratios)).astype(np.int64)]
        may = cells.vocabulary.is_gene[tokens.ids]
        n = np.diff(np.concatenate([[0], np.cumsum(may)])[tokens.offsets])
        wanted = np.floor(n * ratio).astype(np.int64)
        return self.split(
            cells, tokens, chosen(may, wanted, cells.draws.uniform(_CHOOSE, tokens.offsets), tokens.offsets)
        )

    def split(self, cells: CellBatch, tokens: Tokens, asked: np.ndarray) -> Example:
        """The example in which some tokens are asked for."""
        given, questions = subset(tokens, ~asked), subset(tokens, asked)
        flag = {"flag": 1} if "flag" in cells.channels else {}
        both = ask(given, questions, flag)
        rows = np.flatnonzero(~both.channels["keys"])
        counts = dict.fromkeys(self.terms, float(len(rows)))
        if cells.step < self.prompt_from:
            counts["from_prompt"] = 0.0
        return Example(
            cells.pack(both),
            tensors(
                rows=rows,
                labels=np.asarray(questions.values),
                genes=questions.ids.astype(np.int64),
                of_cell=np.repeat(np.arange(len(tokens)), questions.lengths),
                prompt=np.array(cells.step >= self.prompt_from),
            ),
            counts,
            cells.cells,
        )

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors of the three guesses."""
        states = model.state(batch, -1)
        rows, labels = targets["rows"], targets["labels"]
        vectors = cell_vectors(model, self.cell_head, states, batch)
        from_cell = on_pairs(model, self.cell_head, vectors, batch, targets["genes"], targets["of_cell"])[:, 0]
        out = {
            "values": squares_sum(on_tokens(model, self.head, states, batch, rows)[:, 0], labels),
            "from_cell": squares_sum(from_cell, labels),
        }
        if bool(targets["prompt"]):
            prompted = replace(batch, per_cell={**batch.per_cell, "prompt": vectors.detach()})
            guess = on_tokens(model, self.head, model.state(prompted, -1), prompted, rows)[:, 0]
            out["from_prompt"] = squares_sum(guess, labels)
        return out

    def reference(self, vocabulary_size: int) -> Reference:
        """Mean value of each gene."""
        return MeanPerGene(dict.fromkeys(self.terms, "labels"), vocabulary_size)
