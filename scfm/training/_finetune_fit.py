"""How is a model tuned? From the linear maps on, until held-out cells gain nothing more."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import TrainingArguments

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.training._adapters import METHODS, Tuning, merge, put_in, tuned_tensors
from scfm.training._data import VALIDATION, Batches
from scfm.training._draws import stream
from scfm.training._finetune_probe import Job, row
from scfm.training._finetune_targets import Target
from scfm.training._finetune_trainer import FirstLook, TuneTrainer
from scfm.training._finetuned import TUNED
from scfm.training._linear import LinearMap
from scfm.training._logs import HISTORY, Bar, CsvLog
from scfm.training._trainer import ObjectiveModel

log = logging.getLogger("scfm")

MOST_SCORED = 2000
"""Training cells that the tuned model is scored on."""
LOOKS = 10
WARM_UP = 0.1


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast.

    Parameters
    ----------
    epochs
        Passes over the training cells at most.
    learning_rate
        Highest; None: that of the method.
    batch_cells, batch_tokens
        Most cells and tokens per step.
    weight_decay, clip
        Of AdamW.
    patience
        Looks at the held-out cells without a gain after which it stops.
    evaluate_every
        Steps between two looks; None: ten looks in all.
    precision
        Of the matrix products.
    seed
        Of everything random.
    """

    epochs: float = 5.0
    learning_rate: float | None = None
    batch_cells: int = 32
    batch_tokens: int = 8192
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 3
    evaluate_every: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_cells", "batch_tokens", "clip", "patience", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}; it must be above 0")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r}; it is 'float32' or 'bfloat16'")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A tuned model with what moved, its scores, its log, and why and where it stopped."""

    model: FoundationModel
    tensors: dict[str, torch.Tensor]
    scores: list[dict[str, Any]]
    history: pd.DataFrame
    stopped: str
    best_step: int
    steps: int


def rate_of(tuning: Tuning, fit: FitSettings) -> float:
    """The highest learning rate."""
    return tuning.rate if fit.learning_rate is None else fit.learning_rate


def fit_model(
    model: FoundationModel,
    job: Job,
    maps: Mapping[str, LinearMap],
    tuning: Tuning,
    fit: FitSettings,
    folder: Path | None,
    progress: bool,
) -> Fitted:
    """Tune, beginning at the linear maps (Kumar et al. 2022, arXiv:2202.10054), and end at the best that was seen.

    Parameters
    ----------
    model
        With the heads; it is changed.
    job
        What is learnt of which cells.
    maps
        Where the heads start, by name.
    tuning, fit
        What moves, how long and how fast.
    folder
        For ``log.csv``; None: none.
    progress
        Whether to show a bar.
    """
    _start(model, maps)
    heads = [t.name for t in job.train.targets]
    put_in(model.transformer, tuning, heads)
    train = job.batches(job.parts.train, job.train, model, fit.seed)
    valid = (
        replace(job.batches(job.parts.valid, job.valid, model, fit.seed), epoch=VALIDATION)
        if len(job.parts.valid)
        else None
    )
    steps = max(1, math.ceil(fit.epochs * train.plan.n_batches(0))) if METHODS[tuning.method].moves else 0
    train = replace(train, n_batches=steps)
    where, first = model.device, FirstLook()
    callbacks: list[Any] = [first]
    if folder is not None and steps:
        callbacks.insert(0, CsvLog(folder / HISTORY, heads))
    bar = Bar("finetune")
    callbacks += [bar] if progress and steps else []
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TuneTrainer(
            ObjectiveModel(model.transformer, job.train),
            _arguments(tuning, fit, steps, valid, scratch, where),
            train,
            valid,
            callbacks=callbacks,
            patience=fit.patience,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        first.trainer = trainer
        torch.manual_seed(int(stream(fit.seed, 1)) >> 1)
        if steps:
            try:
                trainer.train()
            except KeyboardInterrupt:
                trainer.stopped = f"interrupted at step {trainer.state.global_step}"
                log.warning("%s; going on with the best weights so far", trainer.stopped)
                bar.on_train_end(None, None, None)
            trainer.go_back()
        model.transformer.eval()
        done = trainer.state.global_step
        scores = _scored(trainer, job, model, fit.seed)
    history = pd.DataFrame(trainer.history)
    _to_units(model, job.train.targets)
    tensors = tuned_tensors(model.transformer)
    merge(model.transformer)
    model.to(where)
    if not steps:
        return Fitted(model, tensors, scores, history, "fitted at once, without steps", 0, 0)
    stopped = trainer.stopped or f"all {done} steps done"
    return Fitted(model, tensors, scores, history, stopped, trainer.best_step if valid is not None else done, done)


def _start(model: FoundationModel, maps: Mapping[str, LinearMap]) -> None:
    """Heads are the linear maps."""
    with torch.no_grad():
        for name, fitted in maps.items():
            linear = _linear(model, name)
            linear.weight.copy_(torch.as_tensor(fitted.weights))
            linear.bias.copy_(torch.as_tensor(fitted.bias))


def _to_units(model: FoundationModel, targets: Sequence[Target]) -> None:
    """Heads of numbers answer in the unit of the column."""
    with torch.no_grad():
        for target in targets:
            if target.kind == "number":
                linear = _linear(model, target.name)
                linear.weight.mul_(target.scale)
                linear.bias.mul_(target.scale).add_(target.center)


def _linear(model: FoundationModel, head: str) -> torch.nn.Linear:
    module: Any = model.transformer.heads[head]
    found: torch.nn.Linear = module.mlp.linears[0]
    return found


def _scored(trainer: TuneTrainer, job: Job, model: FoundationModel, seed: int) -> list[dict[str, Any]]:
    some = job.parts.train
    if len(some) > MOST_SCORED:
        some = np.sort(np.random.default_rng([seed, 9]).choice(some, MOST_SCORED, replace=False))
    rows = []
    for part, which, labels in (("validation", job.parts.valid, job.valid), ("train", some, job.train)):
        if not len(which):
            continue
        trainer.labels = labels
        guesses = trainer.guesses(replace(job.batches(which, labels, model, seed), epoch=VALIDATION))
        rows += [row(t, TUNED, part, guesses[t.name]) for t in labels.targets]
    return rows


def _arguments(
    tuning: Tuning, fit: FitSettings, steps: int, held: Batches | None, folder: str, device: torch.device
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=max(steps, 1),
        learning_rate=rate_of(tuning, fit),
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(WARM_UP * steps),
        weight_decay=fit.weight_decay,
        max_grad_norm=fit.clip,
        bf16=fit.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=fit.seed,
        save_strategy="no",
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        eval_strategy="no" if held is None else "steps",
        eval_steps=fit.evaluate_every or max(1, math.ceil(steps / LOOKS)),
        report_to=[],
        disable_tqdm=True,
    )
