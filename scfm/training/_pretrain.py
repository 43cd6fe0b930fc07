"""From cells to a trained model: everything is checked first, then trained, and every step can be gone on from."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.training._architectures import seeded
from scfm.training._arguments import CHECKPOINTS, arguments, callbacks, tuned
from scfm.training._cells import Cells
from scfm.training._claim import claim
from scfm.training._config import PretrainConfig, build
from scfm.training._corpus import Corpus
from scfm.training._data import VALIDATION, Batches
from scfm.training._draws import stream
from scfm.training._files import alone_in, check_space, new_folder, write_json
from scfm.training._index import Split, split
from scfm.training._logs import HISTORY
from scfm.training._prepare import begin, check_installed, fit_reference, open_cells, open_source, prepare_model
from scfm.training._sampler import BatchPlan, Sampling
from scfm.training._store import TokenStore
from scfm.training._trainer import CellTrainer, ObjectiveModel, last_checkpoint, trainable
from scfm.training.objectives import Objective
from scfm.transformer import CellTransformer

log = logging.getLogger("scfm")

SPLIT, MODEL = "split.json", "model"
REFERENCE_CELLS = 20_000


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Parameters
    ----------
    folder
        With ``model``, ``log.csv``, ``config.yaml``, ``split.json`` and checkpoints.
    model
        The trained model.
    metrics
        Last held-out loss and that of the reference.
    """

    folder: Path
    model: FoundationModel
    metrics: Mapping[str, float]

    @property
    def history(self) -> pd.DataFrame:
        """One row per log."""
        return pd.read_csv(self.folder / HISTORY)


def pretrain(
    corpus: Corpus | TokenStore | str | Path | list[Any] | None = None,
    config: PretrainConfig | Mapping[str, Any] | None = None,
) -> Run:
    """Train a model on cells without labels.

    A run that was interrupted, at any moment, goes on from its last complete checkpoint when it is started again with the same
    configuration; on a CPU its weights are then those of a run without interruption, bit for bit.

    Parameters
    ----------
    corpus
        Cells: a `Corpus`, a `TokenStore`, or what `Corpus.open` takes; None: those that the configuration names.
    config
        A `PretrainConfig` or its entries as a dictionary.

    Returns
    -------
    Run
        With the model, which is also in ``model`` of the output folder.

    Raises
    ------
    ConfigError
        If the configuration is impossible, the objective makes no sense for the model, validation cells are among the training
        cells, the store is of another vocabulary, or the folder holds another run.
    CountsError, GeneMatchError
        If a file of the corpus cannot be used.
    OutputError
        If there is no room.
    TrainingError
        If the loss is not finite; the message names the cells.

    Examples
    --------
    >>> import scfm
    >>> run = scfm.training.pretrain("cells/*.h5ad", {"run": {"steps": 500}, "output": {"folder": "my-model"}})  # doctest: +SKIP
    >>> scfm.tl.embed(adata, run.model)  # doctest: +SKIP
    """
    check_installed()
    settings = config if isinstance(config, PretrainConfig) else build(PretrainConfig, config or {})
    folder = Path(settings.output.folder).expanduser()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with alone_in(folder, "a training run") if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            claim(folder, settings)
        return _pretrain(_Place(folder, rank, world), corpus, settings)


@dataclass(frozen=True)
class _Place:
    """Where a process writes, and which of how many it is."""

    folder: Path
    rank: int
    world: int


def _pretrain(place: _Place, given: Any, settings: PretrainConfig) -> Run:
    objective = settings.build_objective()
    source = open_source(given, settings)
    seeded(settings.run.seed)
    model, new_heads = prepare_model(settings, source, objective)
    cells = open_cells(source, model, objective, settings)
    parts = split(
        cells.index,
        by=settings.validation.by,
        share=settings.validation.share,
        groups=settings.validation.groups,
        seed=settings.run.seed,
    )
    _tell(cells, parts, place)
    sampling = replace(settings.sampling, seed=settings.run.seed)
    costs = objective.cost(cells.index.length, model)
    plan = BatchPlan(cells.index, parts.train, sampling, costs)
    steps = _steps(settings, plan, place.world)
    n_parameters = sum(p.numel() for p in model.transformer.parameters())
    check_space(place.folder, 16 * n_parameters * (settings.output.keep + 1), "the run with its checkpoints")
    train = Batches(
        cells=cells,
        plan=plan,
        objective=objective,
        n_batches=steps * settings.run.accumulation,
        channels=frozenset(model.config.cell_channels),
        seed=settings.run.seed,
        per_step=settings.run.accumulation,
        rank=place.rank,
        world=place.world,
    )
    reference = fit_reference(train, len(model.vocabulary), settings.output.progress and place.rank == 0)
    begin(model.transformer, objective, reference, new_heads)
    train = replace(train, reference=reference)
    valid = _valid(train, parts, settings, place)
    trainable(model.transformer, objective)
    trainer = CellTrainer(
        ObjectiveModel(tuned(model, settings), objective),
        arguments(settings, steps, place.folder, place.world),
        train,
        valid,
        settings.run.num_workers,
        callbacks(settings, objective, place.folder),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = last_checkpoint(place.folder / CHECKPOINTS) if place.rank == 0 or place.world == 1 else None
    checkpoint = _agree(checkpoint, place)
    if checkpoint is not None and place.rank == 0:
        log.info("going on from %s", checkpoint)
    # each process drops out other units
    torch.manual_seed(int(stream(settings.run.seed, place.rank, 1)) >> 1)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    metrics = trainer.last_metrics() if valid is not None else {}
    if settings.run.fsdp:
        model.transformer = gathered(trainer.model, model)
    model.transformer.eval().requires_grad_(True)
    if place.rank == 0:
        _finish(model.to("cpu"), place, settings)
    return Run(place.folder, model, metrics)


def _tell(cells: Cells, parts: Split, place: _Place) -> None:
    index = cells.index
    empty = int((index.length == 0).sum())
    if not len(parts.train):
        raise ConfigError(f"none of the {len(index):,} cells of the corpus has a gene that the model knows")
    if place.rank:
        return
    held = f"{len(parts.valid):,} of {', '.join(parts.groups[:5])}{', ...' if len(parts.groups) > 5 else ''} held out"
    log.info("%s cells to train on, %s", f"{len(parts.train):,}", held if len(parts.valid) else "none held out")
    if empty:
        log.warning("%s cells have no gene that the model knows and are left out", f"{empty:,}")
    write_json(
        place.folder / SPLIT,
        {"groups": list(parts.groups), "train": len(parts.train), "valid": len(parts.valid), "empty": empty},
    )


def _steps(settings: PretrainConfig, plan: BatchPlan, world: int) -> int:
    if settings.run.steps is not None:
        return settings.run.steps
    batches = sum(plan.n_batches(e) for e in range(math.floor(settings.run.epochs)))
    rest = settings.run.epochs - math.floor(settings.run.epochs)
    if rest:
        batches += math.ceil(rest * plan.n_batches(math.floor(settings.run.epochs)))
    return max(1, math.ceil(batches / (settings.run.accumulation * world)))


def _valid(train: Batches, parts: Split, settings: PretrainConfig, place: _Place) -> Batches | None:
    if not len(parts.valid):
        return None
    chosen = parts.valid
    if len(chosen) > settings.validation.max_cells:
        rng = np.random.default_rng(settings.run.seed)
        chosen = np.sort(rng.choice(chosen, settings.validation.max_cells, replace=False))
    sampling = Sampling(
        batch_tokens=settings.sampling.batch_tokens, within=settings.sampling.within, seed=settings.run.seed
    )
    plan = BatchPlan(train.cells.index, chosen, sampling, train.plan.lengths)
    mine = len(range(place.rank, plan.n_batches(0), place.world))
    if settings.run.fsdp:
        # processes that share weights take every step together
        mine = max(plan.n_batches(0) // place.world, 1)
    return replace(train, plan=plan, n_batches=mine, per_step=1, epoch=VALIDATION, objective=_settled(train.objective))


def _settled(objective: Objective) -> Objective:
    """The objective as it is late in training, for the held-out cells."""
    return replace(objective, prompt_from=0) if hasattr(objective, "prompt_from") else objective  # type: ignore[call-arg]


def _agree(checkpoint: Path | None, place: _Place) -> Path | None:
    """The checkpoint that the first process found, for all."""
    if place.world == 1:
        return checkpoint
    held = [None if checkpoint is None else str(checkpoint)]
    torch.distributed.broadcast_object_list(held, src=0)
    return None if held[0] is None else Path(held[0])


def gathered(trained: torch.nn.Module, model: FoundationModel) -> CellTransformer:
    """A transformer with the whole weights of one whose weights are shared out; all processes take part.

    Parameters
    ----------
    trained
        The `ObjectiveModel` that was trained.
    model
        Its architecture.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = CellTransformer(model.config)
    if state:
        inner = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
        whole.load_state_dict(inner, strict=True)
    return whole


def _finish(model: FoundationModel, place: _Place, settings: PretrainConfig) -> None:
    model.card = replace(
        model.card,
        parameters=sum(p.numel() for p in model.transformer.parameters()),
        details={**dict(model.card.details), "training": settings.to_dict()},
    )
    with new_folder(place.folder / MODEL) as partial:
        model.save_pretrained(partial)
