"""What every verb that runs a model looks up first: the model, the counts, the genes, the facts about the cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from anndata import AnnData

from scfm import counts, genes, models
from scfm.tokenizers import from_obs
from scfm.tokenizers._context import resolve_context


@dataclass(frozen=True)
class Opened:
    """A model and the cells it is to see.

    Parameters
    ----------
    model
        On its device, with the genes of the species at hand.
    source
        Where the counts are.
    match
        Vocabulary id of each column of the counts.
    context
        Tokenizer options: a value, or one value per cell.
    """

    model: models.FoundationModel
    source: counts.CountSource
    match: genes.GeneMatch
    context: Mapping[str, Any]


def open_model(
    model: str | Path | models.FoundationModel,
    *,
    checkpoint: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    context: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> models.FoundationModel:
    """A model by name, folder or hub repository, or a loaded one, where and how it is to compute."""
    loaded = model if isinstance(model, models.FoundationModel) else models.load(model, family, revision, checkpoint)
    return loaded.for_context(context).to(device, dtype, attn_implementation)


def open_cells(
    adata: AnnData,
    model: models.FoundationModel,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
) -> Opened:
    """Find the counts, match the genes, and look whether the context fits, before the long work.

    Raises
    ------
    CountsError, GeneMatchError, TokenizerError
        If one of them does not fit.
    """
    source = counts.find(adata, layer=layer, use_raw=use_raw)
    match = genes.match(source.var, model.vocabulary, gene_key=gene_key, policy=gene_matching, orthologues=orthologues)
    facts = from_obs(model.tokenizer.context_options, context, adata.obs)
    resolve_context(model.tokenizer.context_options, facts, adata.n_obs)
    return Opened(model, source, match, facts)
