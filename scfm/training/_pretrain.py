"""From cells to a trained model: everything is checked first, then trained, and every step can be gone on from."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError, MissingDependencyError
from scfm.models import FoundationModel
from scfm.training._architectures import add_heads, new_model, reset, seeded
from scfm.training._arguments import CHECKPOINTS, arguments, callbacks, tuned
from scfm.training._cells import Cells, LiveCells
from scfm.training._claim import claim
from scfm.training._config import PretrainConfig, build
from scfm.training._corpus import Corpus
from scfm.training._data import FITTING, VALIDATION, Batches
from scfm.training._draws import stream
from scfm.training._encode import Encoder
from scfm.training._files import alone_in, check_space, new_folder, write_json
from scfm.training._index import Split, split
from scfm.training._logs import HISTORY
from scfm.training._sampler import BatchPlan, Sampling
from scfm.training._store import TokenStore
from scfm.training._trainer import CellTrainer, ObjectiveModel, last_checkpoint, trainable
from scfm.training.objectives import Objective, Reference
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
    _check_installed()
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
    source = _source(given, settings)
    seeded(settings.run.seed)
    model = prepare_model(settings, source, objective)
    cells = _cells(source, model, objective, settings)
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


def prepare_model(settings: PretrainConfig, source: Corpus | TokenStore, objective: Objective) -> FoundationModel:
    """The model that is trained, with the heads that the objective needs.

    Raises
    ------
    ConfigError
        If the objective makes no sense for it.
    """
    wanted, name = settings.model, settings.output.name or Path(settings.output.folder).name
    if wanted.start is None:
        model = new_model(wanted, source if isinstance(source, Corpus) else None, name)
    else:
        model = models.load(wanted.start)
        model = reset(model, name) if wanted.fresh else replace(model, card=replace(model.card, name=name))
    objective.check(model)
    added = add_heads(model, objective.heads(model))
    if added and wanted.start is not None and not wanted.fresh:
        log.info("%s had no head %s; it starts with new weights", wanted.start, ", ".join(added))
    lacking = [getattr(objective, n) for n in ("head", "cell_head", "word", "level") if getattr(objective, n, None)]
    for head in lacking:
        if head not in (model.config.heads or {}):
            raise ConfigError(f"{model.card.name} has no output {head!r}, which the objective {objective.name} trains")
    return model


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


def _check_installed() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("training needs accelerate: pip install 'scfm[train]'") from error


def _source(given: Any, settings: PretrainConfig) -> Corpus | TokenStore:
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


def _cells(
    source: Corpus | TokenStore, model: FoundationModel, objective: Objective, settings: PretrainConfig
) -> Cells:
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
