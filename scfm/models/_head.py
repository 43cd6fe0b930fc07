"""What does a model say about these tokens? Its named outputs, callable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError, GeneMatchError
from scfm.genes import GeneVocabulary
from scfm.models._classes import Classes, name_classes
from scfm.models._run import to_numpy
from scfm.tokenizers import Tokens
from scfm.transformer import PackedBatch

if TYPE_CHECKING:
    from scfm.models._model import FoundationModel


@dataclass(frozen=True)
class Head:
    """One output of a model, callable on tokens."""

    model: FoundationModel
    name: str

    @property
    def labels(self) -> Sequence[str] | None:
        """Names of its outputs, where they are known."""
        forms = [name for name, _bias in self.model.config.head_specs[self.name].outputs]
        return self.model.labels.get(self.name) or forms or None

    def __call__(
        self, tokens: Tokens, cells: NDArray[np.float32] | None = None, genes: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The output for every token (T, k) or every cell (n, k).

        Parameters
        ----------
        tokens
            Of the model's tokenizer.
        cells
            (n, d) cell vectors, for a head on pairs of cell and gene; None: from its own read-out.
        genes
            Names or symbols of g genes that a head on pairs or genes is asked for in every cell, whether or not they
            are among its tokens; the output is then (n, g, k). A head on genes answers for all of them if None.

        Raises
        ------
        ConfigError
            If there are no tokens, or a head that reads no genes is asked for some.
        GeneMatchError
            If a gene is not in the vocabulary.
        """
        spec = self.model.config.head_specs[self.name]
        if genes is not None and spec.feed not in ("pairs", "genes"):
            raise ConfigError(f"the head {self.name!r} does not read genes; leave out genes=")
        per_cell = spec.per_cell or genes is not None
        asked = self._asked(genes)
        if spec.per_cell:
            tokens = self.model.padded(tokens, spec.readout)
        if cells is not None:
            tokens = replace(tokens, per_cell={**tokens.per_cell, "cells": np.asarray(cells, dtype=np.float32)})

        def compute(batch: PackedBatch) -> Tensor:
            return self.model.transformer.head(self.name, batch, batch.per_cell.get("cells"), asked)

        out: NDArray[np.float32] | None = None
        extra = self.model.transformer.decoder_rows if spec.feed == "genes" else 0
        for rows, _part, result in self.model.over_batches(tokens, compute, extra=extra):
            if out is None:
                n = len(tokens) if per_cell else tokens.n_tokens
                out = np.full((n, *result.shape[1:]), np.nan, dtype=np.float32)
            out[rows if per_cell else token_index(tokens, rows)] = to_numpy(result)
        if out is None:
            raise ConfigError("there are no tokens to apply a head to")
        if asked is not None and "n_detected" in tokens.per_cell:
            out[np.asarray(tokens.per_cell["n_detected"]) == 0] = np.nan
        return out

    def _asked(self, genes: Sequence[str] | None) -> Tensor | None:
        """Ids of genes by name; without names all genes where a head has an answer for all."""
        vocabulary = self.model.vocabulary
        if genes is not None:
            return torch.tensor(gene_ids(vocabulary, genes), device=self.model.device)
        every = self.model.config.head_specs[self.name].feed == "genes"
        return torch.as_tensor(np.flatnonzero(vocabulary.is_gene)).to(self.model.device) if every else None

    def classify(self, tokens: Tokens, threshold: float = 0.0, unassigned: str = "Unassigned") -> Classes:
        """Names of the likeliest classes, for heads whose outputs have names.

        Parameters
        ----------
        tokens
            Of the model's tokenizer.
        threshold
            Cells whose largest probability is below it belong to none of the classes, nor do cells without a gene token.
        unassigned
            What these cells are called.

        Raises
        ------
        ConfigError
            If the names are not known.
        """
        if self.labels is None:
            raise ConfigError(
                f"the names of the outputs of {self.name!r} are not known: the checkpoint's folder holds none. Call the head "
                "for the bare numbers"
            )
        outputs = self(tokens)
        spec = self.model.config.head_specs[self.name]
        if spec.per_cell and "n_detected" in tokens.per_cell:
            outputs[np.asarray(tokens.per_cell["n_detected"]) == 0] = np.nan
        if spec.transform == "softmax":
            outputs = np.log(outputs)
        return name_classes(outputs, self.labels, threshold, unassigned)


class Heads(dict[str, Head]):
    """Heads by name; an unknown name is an error that lists them."""

    def __missing__(self, name: str) -> Head:
        raise ConfigError(f"this checkpoint has no head {name!r}; it has {', '.join(self) or 'none'}")


def token_index(tokens: Tokens, cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T',) places on the packed axis of the tokens of some cells."""
    return np.concatenate([np.arange(tokens.offsets[c], tokens.offsets[c + 1]) for c in cells])


def gene_ids(vocabulary: GeneVocabulary, genes: Sequence[str]) -> list[int]:
    """Vocabulary ids of genes by name or symbol.

    Raises
    ------
    GeneMatchError
        If a gene is not in the vocabulary.
    """
    by_symbol = {s: i for i, s in enumerate(vocabulary.symbols or ()) if s}
    found = [vocabulary.index.get(g, by_symbol.get(g)) for g in genes]
    unknown = [g for g, i in zip(genes, found, strict=True) if i is None]
    if unknown:
        raise GeneMatchError(f"{len(unknown)} genes are not in the vocabulary: {', '.join(unknown[:5])}")
    return [i for i in found if i is not None]
