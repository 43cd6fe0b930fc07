"""How much of this gene is there? Hidden values: levels (scBERT) and numbers (scGPT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scfm.models import FoundationModel
from scfm.training._draws import ranks_within
from scfm.training.objectives._base import (
    CellBatch,
    Example,
    Objective,
    cell_of,
    has_head,
    need,
    share_in_range,
    tensors,
)
from scfm.training.objectives._outputs import cell_vectors, cross_entropy_sum, on_pairs, on_tokens, squares_sum
from scfm.training.objectives._reference import LevelFrequencies, MeanPerGene, Reference
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch, PartSpec, TermSpec

_CHOOSE, _REPLACE = 31, 32
MASKED_VALUE = -1.0
"""What scGPT reads in place of a hidden value."""


def chosen(
    may: NDArray[np.bool_], wanted: NDArray[np.int64], draw: NDArray[Any], offsets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(T,) exactly ``wanted`` of each cell's candidates: those with the highest draws."""
    place = ranks_within(np.where(may, -np.asarray(draw, dtype=np.float64), np.inf), offsets)
    return may & (place < np.repeat(wanted, np.diff(offsets)))


def value_term(model: FoundationModel, source: str) -> TermSpec | None:
    """The input term that reads values in a way, if a model has it."""
    terms = model.config.term_specs.values()
    return next((t for t in terms if t.channel == "values" and t.source == source), None)


@dataclass(frozen=True)
class MaskedLevels(Objective):
    """The levels of some expressed genes are hidden; each is to be told among all levels.

    Parameters
    ----------
    share
        Of a cell's expressed genes, rounded up, in single precision as in scBERT's code.
    replaced
        Of these the share that reads the mask level; the others stay as they are.
    head
        Output with one row per level.
    """

    name: ClassVar[str] = "masked_levels"
    share: float = 0.15
    replaced: float = 0.9
    head: str = "level"

    @property
    def terms(self) -> Mapping[str, float]:
        """The cross entropy of the hidden levels."""
        return {"levels": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if the model does not look levels up in a table with a row for the mask."""
        share_in_range(self, share=self.share, replaced=self.replaced)
        need(
            value_term(model, "table") is not None,
            f"masked levels need a table of levels with a last row for hidden ones, and {model.card.name} reads "
            f"{'numbers: use masked_values' if value_term(model, 'scalar') else 'no values: use masked_genes'}",
        )
        need(
            model.config.stack_spec.attention != "causal",
            f"{model.card.name} sees earlier tokens only; use next_word for it",
        )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """A linear map."""
        return {self.head: HeadSpec("tokens", MLPSpec((model.transformer.state_width(-1), self._n_levels(model))))}

    @staticmethod
    def _n_levels(model: FoundationModel) -> int:
        term = value_term(model, "table")
        return 0 if term is None else term.rows

    @property
    def told_by(self) -> Mapping[str, str]:
        """One head."""
        return {"levels": self.head}

    def examples(self, cells: CellBatch) -> Example:
        """Hide levels of expressed genes: a zero is never asked about, so nothing is learnt from absence."""
        tokens = cells.tokens
        values = np.asarray(tokens.values)
        draw = (cells.draws.uniform(p, tokens.offsets) for p in (_CHOOSE, _REPLACE))
        may = (values > 0) & cells.vocabulary.is_gene[tokens.ids]
        asked, replaced = self.hide(may, tokens.offsets, *draw)
        rows = np.flatnonzero(asked)
        mask = float(self.mask_level(cells))
        return Example(
            cells.pack(replace(tokens, values=np.where(replaced, mask, values).astype(np.float32))),
            tensors(rows=rows, labels=values[rows].astype(np.int64), genes=tokens.ids[rows].astype(np.int64)),
            {"levels": float(len(rows))},
            cells.cells,
        )

    @staticmethod
    def mask_level(cells: CellBatch) -> int:
        """The level above the highest that the tokenizer makes."""
        bins: Any = getattr(cells.encoder.tokenizer, "bins", None)
        return int(getattr(bins, "cap", getattr(bins, "n_bins", 0))) + 1

    def hide(
        self, may: NDArray[np.bool_], offsets: NDArray[np.int64], choose: NDArray[Any], act: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which tokens are asked about, and which of them read the mask, from two uniform numbers per token."""
        n = np.diff(np.concatenate([[0], np.cumsum(may)])[offsets])
        wanted = np.ceil(n.astype(np.float32) * np.float32(self.share)).astype(np.int64)
        asked = chosen(may, wanted, choose, offsets)
        return asked, asked & (act < self.replaced)

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy over the levels."""
        logits = on_tokens(model, self.head, model.state(batch, -1), batch, targets["rows"])
        return {"levels": cross_entropy_sum(logits, targets["labels"])}

    def reference(self, vocabulary_size: int) -> Reference:
        """Frequencies of the levels of each gene."""
        return LevelFrequencies("levels", vocabulary_size, 256)


@dataclass(frozen=True)
class MaskedValues(Objective):
    """The values of some genes are hidden; each is to be told from the other genes, and from the cell vector alone.

    scGPT's GEP and GEPC (there called MVC).

    Parameters
    ----------
    share
        Of a cell's genes, rounded down.
    head
        Output of one number per token.
    cell_head
        Output of one number per pair of cell and gene; None: this term is left out.
    cell_weight
        Of that term.
    """

    name: ClassVar[str] = "masked_values"
    share: float = 0.4
    head: str = "expression"
    cell_head: str | None = "mvc"
    cell_weight: float = 1.0

    @property
    def terms(self) -> Mapping[str, float]:
        """Squared errors from tokens, and from cell vectors."""
        return {"values": 1.0} | ({} if self.cell_head is None else {"from_cell": self.cell_weight})

    def check(self, model: FoundationModel) -> None:
        """Raise if the model does not read values as numbers."""
        share_in_range(self, share=self.share)
        need(
            value_term(model, "scalar") is not None,
            f"masked values need numbers as input, and {model.card.name} reads "
            f"{'levels of a table: use masked_levels' if value_term(model, 'table') else 'no values: use masked_genes'}",
        )
        need(
            model.config.stack_spec.attention != "causal",
            f"{model.card.name} sees earlier tokens only; use next_word for it",
        )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """ScGPT's heads, fresh."""
        return value_heads(model, self.head, self.cell_head)

    @property
    def told_by(self) -> Mapping[str, str]:
        """A head each."""
        return {"values": self.head} | ({} if self.cell_head is None else {"from_cell": self.cell_head})

    def examples(self, cells: CellBatch) -> Example:
        """Hide values of genes; special tokens keep theirs."""
        tokens = cells.tokens
        values = np.asarray(tokens.values)
        may = cells.vocabulary.is_gene[tokens.ids]
        n = np.diff(np.concatenate([[0], np.cumsum(may)])[tokens.offsets])
        wanted = np.floor(n * self.share).astype(np.int64)
        asked = chosen(may, wanted, cells.draws.uniform(_CHOOSE, tokens.offsets), tokens.offsets)
        rows = np.flatnonzero(asked)
        return Example(
            cells.pack(replace(tokens, values=np.where(asked, np.float32(MASKED_VALUE), values))),
            tensors(
                rows=rows,
                labels=values[rows],
                genes=tokens.ids[rows].astype(np.int64),
                of_cell=cell_of(tokens)[rows],
            ),
            dict.fromkeys(self.terms, float(len(rows))),
            cells.cells,
        )

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors of both guesses."""
        states = model.state(batch, -1)
        guess = on_tokens(model, self.head, states, batch, targets["rows"])[:, 0]
        out = {"values": squares_sum(guess, targets["labels"])}
        if self.cell_head is not None:
            vectors = cell_vectors(model, self.cell_head, states, batch)
            guess = on_pairs(model, self.cell_head, vectors, batch, targets["genes"], targets["of_cell"])[:, 0]
            out["from_cell"] = squares_sum(guess, targets["labels"])
        return out

    def reference(self, vocabulary_size: int) -> Reference:
        """Mean value of each gene."""
        return MeanPerGene(dict.fromkeys(self.terms, "labels"), vocabulary_size)


def value_heads(model: FoundationModel, tokens: str, cells: str | None) -> dict[str, HeadSpec]:
    """Heads that tell a value from a token's state, and from a cell vector and a gene."""
    d = model.transformer.state_width(-1)
    heads = {tokens: HeadSpec("tokens", MLPSpec((d, d, d, 1), between=("leaky_relu",)))}
    first = next(
        (
            name
            for name, spec in model.config.readout_specs.items()
            if spec.parts == (PartSpec("token", 0),) and not spec.unit
        ),
        None,
    )
    if cells is not None and not has_head(model, cells):
        need(
            first is not None,
            f"{model.card.name} has no read-out of its first token as it is, which a new head {cells!r} would read; set "
            "objective.cell_head to null",
        )
        heads[cells] = HeadSpec(
            "pairs", MLPSpec((d, d), end=("sigmoid",)), readout=first, outputs=(("value", False),), cell_width=d
        )
    return heads
