"""From labelled cells to a tuned model: checked first, started at the linear probe, stopped on held-out groups."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scfm.errors import ConfigError, require
from scfm.models import FoundationModel
from scfm.training._adapters import METHODS, Tuning, base_hash
from scfm.training._architectures import seeded
from scfm.training._corpus import Corpus
from scfm.training._files import alone_in
from scfm.training._finetune_cells import HeldCells, hold, hold_out, open_cells
from scfm.training._finetune_fit import FitSettings, Fitted, fit_model, rate_of
from scfm.training._finetune_objective import Labels
from scfm.training._finetune_probe import Job, probe
from scfm.training._finetune_targets import PREFIX, ClassWeights, Target, cell_targets, gene_target
from scfm.training._finetuned import LINEAR, SCORE, TUNED, TUNED_FOLDER, Finetuned, card_of, dressed
from scfm.training._forgetting import forgetting_of, pretraining_objective
from scfm.training._index import Split
from scfm.training._prepare import check_installed

log = logging.getLogger("scfm")


def finetune(
    adata: AnnData,
    model: FoundationModel,
    target: str | Sequence[str] | Mapping[str, Any],
    *,
    source: str | None = None,
    kind: Literal["auto", "classes", "number"] | Mapping[str, str] = "auto",
    missing: Literal["error", "drop"] = "error",
    method: str = "lora",
    n_frozen_layers: int | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    lora_dropout: float = 0.0,
    group_key: str | None = None,
    validation_share: float = 0.2,
    validation_groups: Sequence[str] | None = None,
    class_weights: ClassWeights = None,
    pooling: str | None = None,
    forgetting: bool | str | Mapping[str, Any] = False,
    fit: FitSettings | None = None,
    name: str | None = None,
    folder: str | Path | None = None,
    reading: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Finetuned:
    """Tune a loaded model on labels; arguments as for `scfm.tl.finetune`.

    Parameters
    ----------
    source
        By which the model is opened again; None: its name.
    fit
        How long and how fast.
    reading
        Where counts, genes and context are: fields of `Corpus`.
    """
    fit = fit or FitSettings()
    check_ready(method)
    tuning = Tuning.checked(model, method, n_frozen_layers, rank, alpha, lora_dropout)
    corpus = open_cells(adata, dict(reading or {}))
    pooling = _pooling(model, pooling)
    targets, groups = _targets(adata, corpus, model, target, kind, missing, group_key)
    labels = Labels(targets, pooling, fit.batch_cells, fit.batch_tokens)
    labels.check(model)
    own_name = name or f"{model.card.name}-{'-'.join(t.name.removeprefix(PREFIX) for t in targets)}"
    dressed_model = dressed(model, targets, pooling, own_name)
    objective = pretraining_objective(model, forgetting)
    folder = checked_folder(folder)
    with alone_in(folder, "a fine-tuning run") if folder is not None else contextlib.nullcontext():
        cells = hold(corpus, model, groups, progress)
        parts = _split(cells, targets, validation_share, validation_groups, group_key, fit.seed)
        job = Job.of(cells, parts, labels, class_weights, validation_share, fit.seed)
        run, scores = fitted(dressed_model, job, tuning, fit, folder, progress)
        run.model.card = card_of(model.card, own_name, tuning, targets)
        moved = None if objective is None else forgetting_of(model, run.model, corpus, parts, objective, fit.seed)
        base = {"name": model.card.name, "source": source or model.card.name, "family": model.card.family}
        about = {
            "base": {**base, "hash": base_hash(model)},
            "pooling": pooling,
            "reading": {k: _plain(v) for k, v in (reading or {}).items()},
            **told(parts, group_key, class_weights, tuning, fit, run),
            "forgetting": moved,
        }
        result = Finetuned(run.model, targets, tuning, scores, run.history, about, run.tensors)
        if folder is not None:
            result.save(folder / TUNED_FOLDER)
    warn(result)
    return result


def check_ready(method: str) -> None:
    """Raise where a run cannot begin.

    Raises
    ------
    ConfigError
        If there are several processes.
    MissingDependencyError
        If a library that the method needs is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("fine-tuning runs in one process, on one GPU; start it without torchrun")
    require("sklearn", "linear probes need scikit-learn", "train")
    if METHODS.get(method, METHODS["head"]).moves:
        check_installed()


def checked_folder(folder: str | Path | None) -> Path | None:
    """A folder for a run, or none.

    Raises
    ------
    ConfigError
        If something stands there.
    """
    if folder is None:
        return None
    folder = Path(folder).expanduser()
    if folder.exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and was left alone; choose a new folder=")
    return folder


def fitted(
    dressed_model: Any, job: Job, tuning: Tuning, fit: FitSettings, folder: Path | None, progress: bool
) -> tuple[Fitted, pd.DataFrame]:
    """A model with heads after the linear probe and the tuning, and the scores of both."""
    seeded(fit.seed)
    maps, rows = probe(dressed_model, job, fit.seed, progress)
    run = fit_model(dressed_model, job, maps, tuning, fit, folder, progress)
    return run, pd.DataFrame([*run.scores, *rows])


def told(
    parts: Split, group_key: str | None, class_weights: ClassWeights, tuning: Tuning, fit: FitSettings, run: Fitted
) -> dict[str, Any]:
    """What is kept of how a model was tuned."""
    return {
        "n_train": len(parts.train),
        "n_valid": len(parts.valid),
        "held_out": _held_out(parts, group_key),
        "groups": list(parts.groups),
        "class_weights": dict(class_weights) if isinstance(class_weights, Mapping) else class_weights,
        "learning_rate": rate_of(tuning, fit),
        "stopped": run.stopped,
        "best_step": run.best_step,
        "steps": run.steps,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if np.ndim(v) == 0}
    return value.item() if isinstance(value, np.generic) else value


def _pooling(model: FoundationModel, asked: str | None) -> str:
    """The read-out that is tuned: the model's default, or the next that can be."""
    specs = model.config.readout_specs
    if asked is not None:
        model.transformer.readout(asked)
        return asked
    default = model.config.readout
    usable = [default, *specs]
    return next((n for n in usable if not specs[n].continued and not specs[n].padded_to), default)


def _targets(
    adata: AnnData,
    corpus: Corpus,
    model: FoundationModel,
    target: str | Sequence[str] | Mapping[str, Any],
    kind: Any,
    missing: Any,
    group_key: str | None,
) -> tuple[tuple[Target, ...], NDArray[np.str_] | None]:
    groups = groups_of(adata.obs, group_key)
    if isinstance(target, Mapping):
        measured = corpus.match(0, model.vocabulary).measured
        return (gene_target(target, model.vocabulary, measured),), groups
    return columns_of(adata.obs, target, kind, missing, group_key), groups


def groups_of(obs: pd.DataFrame, group_key: str | None) -> NDArray[np.str_] | None:
    """(n,) group of each row.

    Raises
    ------
    ConfigError
        If the column is not there, or lacks values.
    """
    if group_key is None:
        return None
    if group_key not in obs:
        raise ConfigError(
            f"obs has no column {group_key!r} for group_key; it has {', '.join(map(str, obs.columns[:12]))}"
        )
    column = obs[group_key]
    if column.isna().any():
        raise ConfigError(
            f"obs[{group_key!r}] has no value for {int(column.isna().sum()):,} cells; fill them in, so that it is known "
            "which side of the split they are on"
        )
    return column.astype(str).to_numpy().astype(np.str_)


def columns_of(
    obs: pd.DataFrame, target: str | Sequence[str], kind: Any, missing: Any, group_key: str | None
) -> tuple[Target, ...]:
    """Targets of columns, whose heads get names of their own; raises `ConfigError` if they cannot be learnt."""
    targets = cell_targets(obs, target, kind, missing)
    heads = [t.name for t in targets]
    if len(set(heads)) != len(heads):
        raise ConfigError(f"the columns {', '.join(t.source for t in targets)} differ in signs only; rename one")
    if group_key in [t.source for t in targets]:
        raise ConfigError(
            f"group_key={group_key!r} is what is to be learnt; a held-out group would be a class never seen"
        )
    return targets


def _split(
    cells: HeldCells,
    targets: Sequence[Target],
    share: float,
    held: Sequence[str] | None,
    group_key: str | None,
    seed: int,
) -> Split:
    there = cells.index.n_genes > 0
    genes = targets[0].kind == "genes"
    usable = there if genes else there & np.any([t.known for t in targets], axis=0)
    if not there.all():
        log.warning("%d cells hold no gene of the model and are left out", int((~there).sum()))
    if (there & ~usable).any():
        log.warning("%d cells have no value to learn and are left out", int((there & ~usable).sum()))
    if group_key is None and (share or held):
        log.info(
            "single cells are held out; cells of a donor are alike, so pass group_key= to learn what new donors give"
        )
    return hold_out(cells, () if genes else targets, usable, share, held, group_key, seed)


def _held_out(parts: Split, group_key: str | None) -> str:
    if not len(parts.valid) or group_key is None:
        return ""
    return f"{group_key}: {', '.join(parts.groups[:5])}{', ...' if len(parts.groups) > 5 else ''}"


def warn(result: Finetuned) -> None:
    """Tell of a collapse, of no gain, and of overfitting."""
    if result.collapsed:
        log.warning("%s", result.about["stopped"])
    moved = METHODS[result.tuning.method].moves
    for target in result.targets:
        tuned, linear = result.score(target.source), result.score(target.source, LINEAR)
        gap = result.score(target.source, TUNED, "train") - tuned
        name = SCORE[target.kind]
        if moved and tuned <= linear:
            log.warning(
                "%s: the tuned model has %s %.3f on held-out cells, a linear map of the frozen model's vectors %.3f: tuning "
                "gained nothing here",
                target.source,
                name,
                tuned,
                linear,
            )
        if gap > 0.15:
            log.warning(
                "%s: %s is %.3f on training and %.3f on held-out cells: overfitted; try %s",
                target.source,
                name,
                tuned + gap,
                tuned,
                "method='head', a lower rank, fewer epochs or more donors" if moved else "more donors",
            )
