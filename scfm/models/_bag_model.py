"""A model without layers: a cell's vector is the sum of the vectors of its genes, each times the gene's value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scfm.errors import ConfigError
from scfm.models._card import ModelCard
from scfm.models._model import FoundationModel
from scfm.tokenizers import BagTokenizer
from scfm.transformer import CellTransformer, MLPSpec, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config

BAG, EXCESS = "bag", "excess"
"""Lists of genes that the tokenizer makes, and input terms of the model."""
GENE, VALUE = "gene", "value"
"""Input terms of the tokens of genes, where layers read them."""


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
        _set_table(transformer, name, torch.as_tensor(rows))
    return FoundationModel(transformer, tokenizer, card)


def with_layers(
    model: FoundationModel,
    name: str,
    *,
    n_layers: int,
    n_heads: int,
    ff: int | None = None,
    max_length: int,
    dropout: float = 0.0,
) -> FoundationModel:
    """A model made by `bag_model` with attention layers on top, which at first change nothing.

    The layers see the cell's token, whose input stays the fixed sum over all genes, and the genes that stand out most
    with their values. Their branches start at zero, so that the untrained model gives the vectors of the one it came from.

    Parameters
    ----------
    model
        Without layers.
    name
        Of the new one.
    n_layers, n_heads, ff
        Sizes; the width stays, ``ff`` None: four times the width.
    max_length
        Tokens of a cell.
    dropout
        While training: after each branch and of the attention weights.

    Raises
    ------
    ConfigError
        If the model is of another kind, or its width is no multiple of ``n_heads``.
    """
    old, tokenizer = model.config, model.tokenizer
    if not isinstance(tokenizer, BagTokenizer) or old.stack_spec.n_layers:
        raise ConfigError(
            f"{model.card.name} is no sum over genes without layers, such as scfm-mini; nothing can be put on top"
        )
    width = old.stack_spec.width
    if width % n_heads:
        raise ConfigError(f"the width {width} of {model.card.name} is no multiple of model.n_heads {n_heads}")
    rows = torch.as_tensor(_table(model))
    bags = {key: replace(spec, frozen=True) for key, spec in old.term_specs.items()}
    config = make_config(
        encoder=StackSpec(
            n_layers,
            width,
            n_heads=n_heads,
            head_dim=width // n_heads,
            ff=ff or 4 * width,
            norm="pre",
            activation="gelu",
            zero_residual=True,
            dropout=dropout,
            attention_dropout=dropout,
        ),
        terms={
            **bags,
            GENE: TermSpec(
                "table",
                rows=len(rows),
                width=rows.shape[1],
                frozen=True,
                unit=True,
                mlp=MLPSpec((rows.shape[1], width), last_bias=False),
            ),
            VALUE: TermSpec("scalar", "values", mlp=MLPSpec((1, width, width), between=("gelu",)), optional=True),
        },
        readouts=old.readout_specs,
        readout=old.readout,
    )
    transformer = CellTransformer(config)
    for key in bags:
        _set_table(transformer, key, model.transformer.terms[key].table)
    _set_table(transformer, GENE, rows)
    title = f"{model.card.title}; {n_layers} attention layers on top"
    card = replace(model.card, name=name, title=title, context=max_length, checksums={}, source="", verified="")
    return FoundationModel(transformer, replace(tokenizer, max_length=max_length), card, seen=model.seen)


def gene_vectors(model: FoundationModel) -> NDArray[np.float32]:
    """(genes of the vocabulary, d) vectors of the genes among all genes of a cell, in a model made by `bag_model`."""
    return _table(model)[model.vocabulary.is_gene]


def _set_table(transformer: CellTransformer, name: str, rows: Any) -> None:
    term: Any = transformer.terms[name]
    with torch.no_grad():
        term.table.copy_(rows)


def _table(model: FoundationModel) -> NDArray[np.float32]:
    """(V, d) rows of the first sum."""
    term: Any = model.transformer.terms[BAG]
    rows: NDArray[np.float32] = term.table.detach().float().cpu().numpy()
    return rows
