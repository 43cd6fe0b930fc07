"""A model without layers: a cell's vector is the sum of the vectors of its genes, each times the gene's value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scfm.models._card import ModelCard
from scfm.models._model import FoundationModel
from scfm.tokenizers import BagTokenizer
from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config

BAG, EXCESS = "bag", "excess"
"""Lists of genes that the tokenizer makes, and input terms of the model."""


def bag_model(tables: Mapping[str, NDArray[Any]], tokenizer: BagTokenizer, card: ModelCard) -> FoundationModel:
    """Gene vectors as a model.

    Parameters
    ----------
    tables
        By list of genes (``"bag"``, or also ``"excess"``), vectors (genes of the vocabulary, d) in the order of their
        ids. A cell's vector holds the sums over the lists one behind the other.
    tokenizer
        That makes these lists.
    card
        What is known of it.
    """
    vocabulary = tokenizer.vocabulary
    starts = np.cumsum([0, *(table.shape[1] for table in tables.values())])
    width, cell = int(starts[-1]), (PartSpec("token", index=0),)
    terms = {
        name: TermSpec("bag", name, rows=len(vocabulary), width=table.shape[1], start=int(start))
        for (name, table), start in zip(tables.items(), starts[:-1], strict=True)
    }
    config = make_config(
        encoder=StackSpec(n_layers=0, width=width, n_heads=1, head_dim=width, ff=1, norm="pre"),
        terms=terms,
        readouts={"unit": ReadoutSpec(cell, unit=True), "plain": ReadoutSpec(cell)},
        readout="unit",
    )
    transformer = CellTransformer(config)
    for name, table in tables.items():
        rows = np.zeros((len(vocabulary), table.shape[1]), dtype=np.float32)
        rows[np.flatnonzero(vocabulary.is_gene)] = table
        with torch.no_grad():
            transformer.terms[name].table.copy_(torch.as_tensor(rows))  # type: ignore[operator, union-attr]
    return FoundationModel(transformer, tokenizer, card)


def gene_vectors(model: FoundationModel) -> NDArray[np.float32]:
    """(genes of the vocabulary, d) vectors of the genes among all genes of a cell, in a model made by `bag_model`."""
    table: Any = model.transformer.terms[BAG]
    rows: NDArray[np.float32] = table.table.detach().float().cpu().numpy()
    return rows[model.vocabulary.is_gene]
