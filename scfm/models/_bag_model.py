"""A model without layers: a cell's vector is the sum of the vectors of its genes, each times the gene's value."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scfm.genes import GeneVocabulary
from scfm.models._card import ModelCard
from scfm.models._model import FoundationModel
from scfm.tokenizers import BagTokenizer
from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config


def bag_model(
    vectors: NDArray[np.floating[Any]], vocabulary: GeneVocabulary, target_sum: float, card: ModelCard
) -> FoundationModel:
    """Gene vectors as a model.

    Parameters
    ----------
    vectors
        (genes of the vocabulary, d), in the order of their ids.
    vocabulary
        Genes, and the role ``"cls"``.
    target_sum
        The value of a gene is log1p of its counts per so many.
    card
        What is known of it.
    """
    width = vectors.shape[1]
    cell = (PartSpec("token", index=0),)
    config = make_config(
        encoder=StackSpec(n_layers=0, width=width, n_heads=1, head_dim=width, ff=1, norm="pre"),
        terms={"bag": TermSpec("bag", rows=len(vocabulary))},
        readouts={"unit": ReadoutSpec(cell, unit=True), "plain": ReadoutSpec(cell)},
        readout="unit",
    )
    transformer = CellTransformer(config)
    rows = np.zeros((len(vocabulary), width), dtype=np.float32)
    rows[np.flatnonzero(vocabulary.is_gene)] = vectors
    with torch.no_grad():
        transformer.terms["bag"].table.copy_(torch.as_tensor(rows))  # type: ignore[operator, union-attr]
    return FoundationModel(transformer, BagTokenizer(vocabulary, target_sum=target_sum), card)
