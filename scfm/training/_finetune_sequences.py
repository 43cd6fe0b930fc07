"""A sequence model tuned on labelled sequences: the same steps as for cells, with letters in the place of counts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scfm.errors import CheckpointError, ConfigError
from scfm.models._device import resolve_device
from scfm.models._fasta import read_sequences
from scfm.models._reading import as_state, read_tensors
from scfm.models._run import to_batch, to_numpy
from scfm.training._adapters import METHODS, Tuning, adapted, fill_in, merge, put_in
from scfm.training._files import alone_in
from scfm.training._finetune import check_ready, checked_folder, columns_of, fitted, groups_of, told, warn
from scfm.training._finetune_cells import hold_out
from scfm.training._finetune_fit import FitSettings
from scfm.training._finetune_objective import Labels
from scfm.training._finetune_probe import Job
from scfm.training._finetune_targets import ClassWeights, Target
from scfm.training._finetuned import TUNED_FOLDER, WEIGHTS, Finetuned, card_of, written
from scfm.training._sequence_network import SequenceModel

log = logging.getLogger("scfm")

Labelled: TypeAlias = AnnData | pd.DataFrame
KEY = "sequence"
"""Usual name of the column with letters."""


class FinetunedSequences(Finetuned):
    """A sequence model that was fine-tuned; made by `scfm.tl.finetune` or `load`.

    `predict` and `predict_proba` take what was tuned on (a table or an AnnData with the column of letters), letters by name, or
    a FASTA file.
    """

    model: SequenceModel  # type: ignore[assignment]

    def outputs(self, adata: Any, *, progress: bool = False, **reading: Any) -> dict[str, NDArray[np.float32]]:
        """Bare outputs of the heads by name: (n, K) logits or (n, 1) numbers."""
        if reading:
            raise ConfigError(f"{next(iter(reading))}= is for cells; sequences have none")
        model = self.model
        letters = letters_of(adata, self.about["sequences"]["sequence_key"])
        tokens = model.tokens(letters, progress)
        out = {t.name: np.zeros((len(tokens), t.n_outputs), dtype=np.float32) for t in self.targets}
        for some in model.over_batches(tokens):
            batch = to_batch(tokens[some], model.device)
            with torch.inference_mode():
                vectors = model.transformer.embed(batch)
                for target in self.targets:
                    out[target.name][some] = to_numpy(model.transformer.head(target.name, batch, vectors))
        return out

    def _rows(self, adata: Any) -> pd.Index:
        return pd.Index(letters_of(adata, self.about["sequences"]["sequence_key"]), dtype=object)

    def export(self, folder: str | Path) -> Path:
        """Write the tuned network, adapters merged, without its heads, as a model of transformers with its tokenizer.

        ``scfm.tl.embed_sequences(sequences, folder)`` gives the vectors that the heads read.
        """
        folder = checked_folder(folder) or Path()
        self.model.transformer.network.save_pretrained(folder)  # type: ignore[operator]
        self.model.encoder.speller.tokenizer.save_pretrained(folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path, base: Any = None) -> FinetunedSequences:
        """Read what `save` wrote, and put it on its base model.

        Parameters
        ----------
        folder
            That was written, or the folder of a run.
        base
            Folder or repository of the model that was tuned; None: what is written there.

        Raises
        ------
        CheckpointError
            If the base is another model than the one that was tuned, or a file is damaged.
        """
        folder, about = written(folder, "sequences")
        known, reading = about["base"], about["sequences"]
        model = SequenceModel.open(
            base or known["source"],
            about["pooling"],
            reading["too_long"],
            reading["max_tokens"],
            device=resolve_device(None),
            revision=None if base else reading["revision"],
        )
        if model.found.fingerprint != known["hash"]:
            raise CheckpointError(
                f"{folder} was tuned on {known['name']} (files {known['hash'][:12]}), but {model.card.name} has others "
                f"({model.found.fingerprint[:12]}); pass the model that was tuned as base="
            )
        targets = tuple(Target.told(t) for t in about["targets"])
        tuning = Tuning(**about["tuning"])
        tensors = as_state(read_tensors(folder / WEIGHTS), folder / WEIGHTS)
        model.transformer.add_heads(Labels(targets=targets, pooling=about["pooling"]).heads(model))  # type: ignore[arg-type]
        put_in(model.transformer, tuning, [t.name for t in targets])
        fill_in(model.transformer, tensors, str(folder / WEIGHTS))
        merge(model.transformer)
        model.card = card_of(model.card, about["name"], tuning, targets)
        scores, history = (pd.DataFrame(about.pop(name, [])).infer_objects() for name in ("scores", "history"))
        return cls(model, targets, tuning, scores, history, about, tensors)  # type: ignore[arg-type]


def finetune_sequences(
    data: Labelled,
    model: str | Path,
    target: str | Sequence[str],
    *,
    sequence_key: str | None = None,
    too_long: Literal["truncate", "error"] = "error",
    max_tokens: int | None = None,
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
    fit: FitSettings | None = None,
    name: str | None = None,
    folder: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> FinetunedSequences:
    """Tune a sequence model on labels; arguments as for `scfm.tl.finetune` and `scfm.tl.embed_sequences`."""
    fit = fit or FitSettings()
    check_ready(method)
    if isinstance(target, Mapping):
        raise ConfigError("classes of genes are told by cells; for sequences name columns with classes or numbers")
    obs, letters = table_of(data), letters_of(data, sequence_key)
    targets, groups = columns_of(obs, target, kind, missing, group_key), groups_of(obs, group_key)
    folder = checked_folder(folder)
    opened = SequenceModel.open(model, pooling, too_long, max_tokens, device=resolve_device(device), revision=revision)
    tuning = Tuning.checked(opened, method, n_frozen_layers, rank, alpha, lora_dropout)
    if METHODS[method].adapter is not None:
        adapted(opened.transformer, method, tuning.n_frozen)
    pooling = opened.encoder.job.pooling
    labels = Labels(targets, pooling, fit.batch_cells, fit.batch_tokens)
    own_name = name or f"{opened.card.name}-{'-'.join(t.source for t in targets)}"
    with alone_in(folder, "a fine-tuning run") if folder is not None else contextlib.nullcontext():
        held = opened.hold(letters, groups, progress)
        usable = np.any([t.known for t in targets], axis=0)
        if not usable.all():
            log.warning("%d sequences have no value to learn and are left out", int((~usable).sum()))
        if group_key is None and (validation_share or validation_groups):
            log.info("single sequences are held out; alike ones stand on both sides, so pass group_key= with families")
        parts = hold_out(held, targets, usable, validation_share, validation_groups, group_key, fit.seed)
        job = Job.of(held, parts, labels, class_weights, validation_share, fit.seed)
        opened.transformer.add_heads(labels.heads(opened))  # type: ignore[arg-type]
        run, scores = fitted(opened, job, tuning, fit, folder, progress)
        opened.card = card_of(opened.card, own_name, tuning, targets)
        about: dict[str, Any] = {
            "base": {
                "name": opened.found.short_name,
                "source": str(model),
                "family": opened.card.family,
                "hash": opened.found.fingerprint,
            },
            "pooling": pooling,
            "reading": {},
            "units": "sequences",
            "sequences": {
                "sequence_key": sequence_key or KEY,
                "too_long": too_long,
                "max_tokens": max_tokens,
                "revision": revision,
            },
            **told(parts, group_key, class_weights, tuning, fit, run),
            "forgetting": None,
        }
        result = FinetunedSequences(run.model, targets, tuning, scores, run.history, about, run.tensors)
        if folder is not None:
            result.save(folder / TUNED_FOLDER)
    warn(result)
    return result


def table_of(data: Labelled) -> pd.DataFrame:
    """The table with labels."""
    return data.obs if isinstance(data, AnnData) else data


def letters_of(data: Any, sequence_key: str | None) -> dict[str, str]:
    """Letters by name, in their order.

    Parameters
    ----------
    data
        A table or an AnnData with a column of letters, letters by name, or a FASTA file.
    sequence_key
        The column; None: ``sequence``.

    Raises
    ------
    ConfigError
        If the column is not there, or names are not unique.
    TokenizerError
        If letters are no text, or there are none.
    """
    if not isinstance(data, AnnData | pd.DataFrame):
        return {s.name: s.letters for s in read_sequences(data)}
    obs, key = table_of(data), sequence_key or KEY
    if key not in obs.columns:
        there = ", ".join(map(repr, obs.columns[:12])) or "no columns"
        raise ConfigError(
            f"the table has no column {key!r} with the letters of the sequences; it has {there}. Name it by sequence_key="
        )
    names = obs.index.astype(str)
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise ConfigError(
            f"the name {twice!r} stands twice in the index; make it unique (reset_index, obs_names_make_unique)"
        )
    letters = dict(zip(names, obs[key].astype(object), strict=True))
    read_sequences(letters)
    return letters
