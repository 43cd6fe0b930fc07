"""How does a network that reads genes by fixed vectors get other genes?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scfm.errors import ConfigError
from scfm.tokenizers import Tokenizer
from scfm.transformer import CellTransformer

if TYPE_CHECKING:
    from scfm.models._model import FoundationModel


def with_genes(model: FoundationModel, tokenizer: Tokenizer, table: Tensor) -> FoundationModel:
    """The same network on other genes.

    Parameters
    ----------
    model
        Reads genes by fixed vectors; its weights are shared.
    tokenizer
        Of the new genes.
    table
        (V, t) vector of each of its tokens.

    Raises
    ------
    ConfigError
        If the model has learned its genes, or the table does not fit.
    """
    spec = model.config.term_specs.get("gene")
    if spec is None or not spec.frozen:
        raise ConfigError(f"{model.card.name} has learned a vector for each of its genes; it knows no others")
    expected = (len(tokenizer.vocabulary), spec.width or model.transformer.width)
    if tuple(table.shape) != expected:
        raise ConfigError(
            f"the table of gene vectors has shape {tuple(table.shape)}; {model.card.name} needs {expected}"
        )
    config = deepcopy(model.config)
    config.terms = {**(config.terms or {}), "gene": replace(spec, rows=len(table)).to_dict()}
    with torch.device("meta"):
        transformer = CellTransformer(config)
    state = {**model.transformer.state_dict(), "terms.gene.table": table.to(model.device, model.dtype)}
    transformer.load_state_dict(state, strict=True, assign=True)
    return replace(model, transformer=transformer, tokenizer=tokenizer)
