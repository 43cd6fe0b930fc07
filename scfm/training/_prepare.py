"""What must be there before the first step? Cells, a model with its heads, and the best guess without input."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError, require
from scfm.models import FoundationModel
from scfm.models._bag_model import with_layers
from scfm.training._architectures import add_heads, check_sizes, new_model, reset
from scfm.training._cells import Cells, LiveCells
from scfm.training._config import ModelConfig, PretrainConfig
from scfm.training._corpus import Corpus
from scfm.training._data import FITTING, Batches
from scfm.training._encode import Encoder
from scfm.training._store import TokenStore
from scfm.training.objectives import Objective, Reference
from scfm.transformer import CellTransformer

log = logging.getLogger("scfm")

REFERENCE_CELLS = 20_000


def check_installed() -> None:
    """Raise where accelerate is not installed."""
    require("accelerate", "training needs accelerate", "train")


def open_source(given: Any, settings: PretrainConfig) -> Corpus | TokenStore:
    """The cells of a run: those that are given, else those that its settings name."""
    wanted = settings.corpus
    if isinstance(given, Corpus | TokenStore):
        return given
    if given is None and wanted.store is not None:
        return TokenStore(wanted.store)
    files = list(wanted.files) if given is None else given
    if isinstance(files, list) and not files:
        raise ConfigError("the corpus is empty: name files with corpus.files, or a store with corpus.store")
    return Corpus.open(
        files,
        donor_key=wanted.donor_key,
        dataset_key=wanted.dataset_key,
        label_key=wanted.label_key,
        gene_key=wanted.gene_key,
        gene_matching=wanted.gene_matching,
        layer=wanted.layer,
        use_raw=wanted.use_raw,
        context=wanted.context,
        orthologues=wanted.orthologues,
    )


def prepare_model(
    settings: PretrainConfig, source: Corpus | TokenStore, objective: Objective
) -> tuple[FoundationModel, frozenset[str]]:
    """The model that is trained, with the heads that the objective needs, and the names of those with new weights.

    Raises
    ------
    ConfigError
        If the objective makes no sense for it.
    """
    wanted, name = settings.model, settings.output.name or Path(settings.output.folder).name
    if wanted.start is None:
        if wanted.on_top:
            raise ConfigError("model.on_top puts layers on a model: name it with model.start, for example scfm-mini")
        model = new_model(wanted, source if isinstance(source, Corpus) else None, name)
    else:
        model = _started(wanted, name)
    objective.check(model)
    added = add_heads(model, objective.heads(model))
    if added and wanted.start is not None and not wanted.fresh:
        log.info("%s had no head %s; it starts with new weights", wanted.start, ", ".join(added))
    for head in objective.told_by.values():
        if head not in (model.config.heads or {}):
            raise ConfigError(f"{model.card.name} has no output {head!r}, which the objective {objective.name} trains")
    trained_before = wanted.start is not None and not wanted.fresh
    return model, frozenset(added if trained_before else model.transformer.heads)


def _started(wanted: ModelConfig, name: str) -> FoundationModel:
    """What a run makes of the model that it starts from."""
    if wanted.on_top and wanted.fresh:
        raise ConfigError("model.fresh draws all weights anew, model.on_top keeps them; choose one")
    model = models.load(str(wanted.start))
    if wanted.on_top:
        check_sizes(wanted)
        return with_layers(
            model,
            name,
            n_layers=wanted.n_layers,
            n_heads=wanted.n_heads,
            ff=wanted.ff,
            max_length=wanted.max_length,
            dropout=wanted.dropout,
        )
    return reset(model, name) if wanted.fresh else replace(model, card=replace(model.card, name=name))


def open_cells(
    source: Corpus | TokenStore, model: FoundationModel, objective: Objective, settings: PretrainConfig
) -> Cells:
    """What is kept of each cell, from the store or from the files.

    Raises
    ------
    ConfigError
        If the store is of another tokenizer, or does not hold what the objective needs.
    """
    keep = settings.corpus.keep or objective.keep
    if keep == "tokens" and objective.keep == "counts":
        raise ConfigError(
            f"corpus.keep is 'tokens', but the objective {objective.name} changes cells before they are tokenized; leave it out"
        )
    if isinstance(source, TokenStore):
        source.check_fits(model.tokenizer, keep)
        # the model's tokenizer, not the store's: both are equal, or the store keeps counts
        source.encoder = Encoder(model.tokenizer, source.encoder.keep)
        return source
    encoder = Encoder(model.tokenizer, keep)
    show = settings.output.progress and int(os.environ.get("RANK", 0)) == 0
    return LiveCells(source, encoder, block_rows=settings.sampling.block_rows, progress=show)


def fit_reference(
    train: Batches, vocabulary_size: int, progress: bool = False, max_cells: int = REFERENCE_CELLS
) -> Reference:
    """The input-free guess, fitted on examples of training cells.

    Parameters
    ----------
    train
        Batches of the run; the draws are others than in training.
    vocabulary_size
        Tokens of the model.
    progress
        Whether to show a bar.
    max_cells
        Training cells that are looked at, of the first epoch.
    """
    total = min(max_cells, len(train.plan.cells))

    def examples() -> Iterator[Any]:
        seen = 0
        with tqdm(total=total, desc="reference", unit="cell", disable=not progress) as bar:
            for number in range(train.plan.n_batches(0)):
                _, cells = train.plan[number]
                yield train.make(cells, FITTING)
                seen += len(cells)
                bar.update(len(cells))
                if seen >= total:
                    return

    return train.objective.reference(vocabulary_size).fit(examples())


def begin(transformer: CellTransformer, objective: Objective, reference: Reference, heads: Collection[str]) -> None:
    """Let new heads begin at the best guess without input: their last bias says it, before anything is known of a cell.

    Else the first hundreds of steps go into learning means and frequencies (the bias of a class is set to its log odds for
    this in Lin et al. 2017, arXiv:1708.02002, section 3.3). Heads whose output is an inner product alone are left as they are.

    Parameters
    ----------
    transformer, objective
        Of the run.
    reference
        Fitted.
    heads
        Names of those that may be changed.
    """
    constants = reference.constants()
    for term, name in objective.told_by.items():
        bias = _last_bias(transformer.heads[name])
        if name in heads and bias is not None and term in constants:
            # a table may have more rows than the vocabulary has words
            guess = torch.as_tensor(constants[term][: len(bias)], dtype=bias.dtype, device=bias.device)
            with torch.no_grad():
                bias[: len(guess)].copy_(guess)


def _last_bias(head: Any) -> torch.Tensor | None:
    """What a head adds at the very end; None where nothing is, or a function follows."""
    if head.spec.feed == "tied":
        return head.bias
    plain = head.spec.feed in ("tokens", "genes") and not head.spec.mlp.end and head.spec.transform == "none"
    return head.mlp.linears[-1].bias if plain else None
