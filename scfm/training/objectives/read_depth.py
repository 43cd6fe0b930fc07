"""What would a deeper look at this cell have shown? scFoundation's read-depth-aware objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scfm.models import FoundationModel
from scfm.models._generation import ask
from scfm.tokenizers import ReadDepthTokenizer, Tokens
from scfm.training._encode import Keep
from scfm.training.objectives._base import CellBatch, Example, Objective, cell_of, need, subset, tensors
from scfm.training.objectives._outputs import squares_sum
from scfm.training.objectives._reference import MeanPerGene, Reference
from scfm.training.objectives.contrastive import thinned
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch

_WHETHER, _SHARE, _THIN, _VALUES, _ZEROS = 81, 82, 83, 84, 85


@dataclass(frozen=True)
class ReadDepth(Objective):
    """A cell is read as if it were shallower, some genes are hidden, and their values at full depth are to be told.

    The tokens T and S say the full depth and the depth of what is read. Only measured genes are hidden.

    Parameters
    ----------
    thinned_share
        Of the deep cells that are thinned, to a share of their counts drawn from Beta(2, 2).
    deep
        Cells with fewer counts are read as they are.
    values, zeros
        Share of the genes with and without counts that is hidden.
    head
        Output of one number per gene of the decoder.
    """

    name: ClassVar[str] = "read_depth"
    keep: ClassVar[Keep] = "counts"
    thinned_share: float = 0.5
    deep: float = 1000.0
    values: float = 0.3
    zeros: float = 0.03
    head: str = "expression"

    @property
    def terms(self) -> Mapping[str, float]:
        """The squared error of the hidden genes."""
        return {"values": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if the model has no decoder, or its tokens no depths."""
        need(
            isinstance(model.tokenizer, ReadDepthTokenizer),
            f"read-depth recovery needs tokens that say the depth, and {model.card.name} has none; its tokenizer is "
            f"{type(model.tokenizer).__name__}, not ReadDepthTokenizer",
        )
        need(model.config.decoder is not None, f"read-depth recovery needs a decoder, and {model.card.name} has none")
        need(
            0 < self.values < 1 and 0 <= self.zeros < 1 and 0 <= self.thinned_share <= 1,
            "objective.values, zeros and thinned_share are shares between 0 and 1",
        )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """A linear map of the decoder's states."""
        decoder = model.config.decoder_spec
        return {} if decoder is None else {self.head: HeadSpec("genes", MLPSpec((decoder.stack.width, 1)))}

    def cost(self, lengths: NDArray[np.integer[Any]], model: FoundationModel) -> NDArray[np.int64]:
        """The decoder reads every gene of every cell."""
        return super().cost(lengths, model) + model.transformer.decoder_rows

    @property
    def told_by(self) -> Mapping[str, str]:
        """One head."""
        return {"values": self.head}

    def examples(self, cells: CellBatch) -> Example:
        """Thin, hide, and keep what was there."""
        raw = cells.kept
        depth = raw.per_cell["depth"]
        thin = (cells.draws.per_cell(_WHETHER) < self.thinned_share) & (depth >= self.deep)
        share = np.array([cells.draws.generator(_SHARE, i).beta(2, 2) for i in range(len(raw))])
        read = thinned(raw, np.where(thin, share, 1.0), cells.draws, _THIN)
        target_sum: float = getattr(cells.encoder.tokenizer, "target_sum", 1e4)
        return self.hide(cells, cells.tokenize(read), log_values(raw, target_sum), depth)

    def hide(self, cells: CellBatch, read: Tokens, full: Tokens, depth: NDArray[np.float64]) -> Example:
        """The example in which genes of what is read are hidden.

        Parameters
        ----------
        cells
            They are made of.
        read
            Tokens of the cells as they are read.
        full
            Log values of all genes with counts at full depth.
        depth
            (n,) full depth.
        """
        genes = cells.vocabulary.is_gene
        role = cells.vocabulary.specials["target_depth"]
        values = np.asarray(read.values).copy()
        # T says how deep the answer is
        values[read.ids == role] = np.log10(np.maximum(depth, 1.0)).astype(np.float32)
        read = replace(read, values=values)
        hidden = genes[read.ids] & (cells.draws.uniform(_VALUES, read.offsets) < self.values)
        zeros = self._silent(cells, read)
        given = subset(read, ~hidden)
        questions = _merge(subset(read, hidden), zeros)
        both = ask(given, questions, {})
        asked, of_cell = questions.ids.astype(np.int64), cell_of(questions)
        dense = np.zeros((len(read), len(genes)), np.float32)
        dense[cell_of(full), full.ids] = full.values
        return Example(
            cells.pack(both),
            tensors(genes=asked, of_cell=of_cell, labels=dense[of_cell, asked]),
            {"values": float(len(asked))},
            cells.cells,
        )

    def _silent(self, cells: CellBatch, read: Tokens) -> Tokens:
        """Hidden genes without counts, measured ones only."""
        genes = np.flatnonzero(cells.vocabulary.is_gene)
        offsets = np.arange(len(read) + 1, dtype=np.int64) * len(genes)
        draw = cells.draws.uniform(_ZEROS, offsets).reshape(len(read), len(genes)) < self.zeros
        draw &= cells.measured[cells.files][:, genes]
        there = np.zeros((len(read), len(cells.vocabulary)), dtype=bool)
        there[cell_of(read), read.ids] = True
        draw &= ~there[:, genes]
        lengths = draw.sum(axis=1)
        return Tokens(
            ids=genes[np.nonzero(draw)[1]].astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors of the hidden genes."""
        states = model.decode(batch)[targets["of_cell"], targets["genes"]]
        return {"values": squares_sum(model.heads[self.head](states)[:, 0], targets["labels"])}

    def reference(self, vocabulary_size: int) -> Reference:
        """Mean log value of each gene."""
        return MeanPerGene({"values": "labels"}, vocabulary_size)


def log_values(counts: Tokens, target_sum: float) -> Tokens:
    """Kept counts as log1p of counts per ``target_sum`` of the cell's depth."""
    depth = np.repeat(np.maximum(counts.per_cell["depth"], 1e-12), counts.lengths)
    values = np.log1p(np.asarray(counts.values, np.float64) / depth * target_sum)
    return replace(counts, values=values.astype(np.float32))


def _merge(a: Tokens, b: Tokens) -> Tokens:
    """The tokens of both, cell by cell; only the ids count."""
    cell = np.concatenate([cell_of(a), cell_of(b)])
    order = np.argsort(cell, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(a.lengths + b.lengths)]).astype(np.int64)
    return Tokens(ids=np.concatenate([a.ids, b.ids])[order], offsets=offsets)
