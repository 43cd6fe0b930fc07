"""A fine-tuned model: what it learnt, how well, what it says of other cells, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from scfm import models
from scfm.errors import CheckpointError, ConfigError
from scfm.models import FoundationModel, ModelCard
from scfm.models._reading import as_state, read_settings, read_tensors
from scfm.models._run import to_numpy
from scfm.training._adapters import Tuning, base_hash, fill_in, merge, own_copy, put_in
from scfm.training._files import new_folder
from scfm.training._finetune_cells import open_cells, stream
from scfm.training._finetune_objective import FINAL, Labels
from scfm.training._finetune_targets import Target
from scfm.training._linear import probabilities
from scfm.transformer import PackedBatch

ABOUT, WEIGHTS, TUNED_FOLDER = "tuned.json", "tuned.safetensors", "tuned"
FORMAT = 1
TUNED, LINEAR, NEIGHBOURS, BLIND = "fine-tuned", "linear, frozen", "neighbours, frozen", "most frequent"
SCORE = {"classes": "macro_f1", "genes": "macro_f1", "number": "r2"}
"""The score that stands for a target in a line."""


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A model that was fine-tuned on labels; made by `scfm.tl.finetune` or `load`.

    Parameters
    ----------
    model
        Ready to use, `scfm.tl.embed` included: adapters are merged, the heads are among ``model.heads``, and its cell
        vectors are by default what the heads read.
    targets
        What was learnt.
    tuning
        What moved.
    scores
        One row per target, model and part of the cells (``train``, ``validation``): the tuned model, and on the same split
        a linear map and neighbours of the frozen model's vectors, and the most frequent class (or the mean).
    history
        One row per log.
    about
        Base, settings, held-out groups, why and where it stopped.
    """

    model: FoundationModel
    targets: tuple[Target, ...]
    tuning: Tuning
    scores: pd.DataFrame
    history: pd.DataFrame = field(repr=False)
    about: Mapping[str, Any] = field(repr=False)
    _tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes, by target."""
        return {t.source: t.classes for t in self.targets if t.classes}

    @property
    def collapsed(self) -> bool:
        """Whether training stopped because nearly all cells were given one class."""
        return str(self.about.get("stopped", "")).startswith("collapsed")

    def score(self, target: str | None = None, what: str = TUNED, part: str = "validation") -> float:
        """One number: macro F1 of classes, R2 of numbers.

        Parameters
        ----------
        target
            A column; None: the first.
        what
            ``fine-tuned``, ``linear, frozen``, ``neighbours, frozen`` or ``most frequent``.
        part
            ``validation`` or ``train``.
        """
        chosen = self._target(target)
        rows = self.scores[
            (self.scores["target"] == chosen.source) & (self.scores["model"] == what) & (self.scores["part"] == part)
        ]
        return float(rows[SCORE[chosen.kind]].iloc[0]) if len(rows) else float("nan")

    def _target(self, name: str | None) -> Target:
        found = [t for t in self.targets if name in (None, t.source, t.name)]
        if not found:
            raise ConfigError(f"{name!r} was not learnt; there are {', '.join(t.source for t in self.targets)}")
        return found[0]

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        about = self.about
        units = about.get("units", "cells")
        moved = sum(t.numel() for t in self._tensors.values())
        lines = [
            f"{self.model.card.name}: {about['base']['name']} tuned by {self.tuning.method!r}, {moved:,} parameters moved",
            f"  {units}: {about['n_train']:,} to train on, {about['n_valid']:,} held out"
            + (f" ({about['held_out']})" if about.get("held_out") else ""),
        ]
        for target in self.targets:
            name = SCORE[target.kind]
            what = f"{len(target.classes)} classes" if target.classes else "a number"
            lines.append(
                f"  {target.source} ({what}), {name} on held-out {'genes' if target.kind == 'genes' else units}:"
            )
            for model in (TUNED, LINEAR, NEIGHBOURS, BLIND):
                value = self.score(target.source, model)
                extra = ""
                if model == TUNED:
                    on_train = self.score(target.source, model, "train")
                    extra = f"   (training {on_train:.3f}, gap {on_train - value:+.3f})"
                lines.append(f"    {model:<19} {value:.3f}{extra}")
        if about.get("forgetting"):
            f = about["forgetting"]
            lines.append(f"  pretraining loss ({f['objective']}): {f['before']:.4g} before, {f['after']:.4g} after")
        lines.append(f"  {about['stopped']}; best at step {about['best_step']} of {about['steps']}")
        return lines

    def predict(self, adata: AnnData, *, progress: bool = False, **reading: Any) -> pd.DataFrame:
        """What the model says of cells; each cell by itself.

        Parameters
        ----------
        adata
            Cells with counts; only read.
        progress
            Show a bar.
        **reading
            ``layer``, ``use_raw``, ``gene_key``, ``gene_matching``, ``context``, ``orthologues``; default: as in the tuning.

        Returns
        -------
        One row per cell: for classes ``<column>`` and ``<column>_score`` (its probability), for numbers ``<column>``; missing
        for cells without a gene of the model. For classes of genes one row per gene of the vocabulary that is a token of a
        cell: ``gene_class``, ``gene_class_score`` and ``n_cells``.
        """
        outputs = self.outputs(adata, progress=progress, **reading)
        if self.targets[0].kind == "genes":
            return self._genes(outputs)
        out: dict[str, Any] = {}
        for target in self.targets:
            found = outputs[target.name]
            if target.kind == "number":
                out[target.source] = found[:, 0]
                continue
            proba = probabilities(found)
            codes = np.where(np.isnan(found[:, 0]), -1, found.argmax(axis=1))
            out[target.source] = pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(target.classes))
            out[f"{target.source}_score"] = proba.max(axis=1)
        return pd.DataFrame(out, index=self._rows(adata))

    def _rows(self, adata: AnnData) -> pd.Index:
        return adata.obs_names

    def predict_proba(
        self, adata: AnnData, target: str | None = None, *, progress: bool = False, **reading: Any
    ) -> pd.DataFrame:
        """Probabilities of the classes of a target (None: the first with classes): (n_obs, K), NaN rows as in `predict`."""
        chosen = self._target(target or next((t.source for t in self.targets if t.kind == "classes"), None))
        if chosen.kind != "classes":
            raise ConfigError(f"{chosen.source!r} has no classes of cells; use predict")
        found = self.outputs(adata, progress=progress, **reading)[chosen.name]
        return pd.DataFrame(probabilities(found), index=self._rows(adata), columns=list(chosen.classes))

    def outputs(self, adata: AnnData, *, progress: bool = False, **reading: Any) -> dict[str, NDArray[np.float32]]:
        """Bare outputs of the heads by name: (n_obs, K) logits or (n_obs, 1) numbers; of genes (V, K + 1) with counts last."""
        corpus = open_cells(adata, {**self.about["reading"], **reading})
        model = self.model
        pooling = self.about["pooling"]
        genes = self.targets[0].kind == "genes"
        rows = len(model.vocabulary) if genes else adata.n_obs
        out = {
            t.name: np.zeros((rows, t.n_outputs + 1)) if genes else np.full((rows, t.n_outputs), np.nan, np.float32)
            for t in self.targets
        }

        def compute(batch: PackedBatch) -> list[Tensor]:
            if genes:
                return [model.transformer.head(t.name, batch) for t in self.targets]
            cells = model.transformer.embed(batch, pooling, FINAL)
            return [model.transformer.head(t.name, batch, cells) for t in self.targets]

        for place, tokens in stream(corpus, model, progress, "predict"):
            there = np.flatnonzero(np.asarray(tokens.per_cell["n_detected"]) > 0)
            for cells, part, found in model.over_batches(tokens[there], compute):
                for target, values in zip(self.targets, found, strict=True):
                    if genes:
                        np.add.at(
                            out[target.name], part.ids, np.column_stack([to_numpy(values), np.ones(len(part.ids))])
                        )
                    else:
                        out[target.name][place.start + there[cells]] = to_numpy(values)
        return out

    def _genes(self, outputs: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
        target = self.targets[0]
        sums, n = outputs[target.name][:, :-1], outputs[target.name][:, -1]
        vocabulary = self.model.vocabulary
        ids = np.flatnonzero((n > 0) & vocabulary.is_gene)
        logits = sums[ids] / n[ids, None]
        codes = logits.argmax(axis=1)
        frame = {
            "gene_class": pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(target.classes)),
            "gene_class_score": probabilities(logits).max(axis=1),
            "n_cells": n[ids].astype(np.int64),
        }
        return pd.DataFrame(frame, index=pd.Index([vocabulary.names[i] for i in ids], name="gene"))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Keep what moved (adapters and heads alone, if that is what was tuned) and the settings.

        Raises
        ------
        ConfigError
            If something stands there.
        OutputError
            If it cannot be written; nothing is left half done.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
            raise ConfigError(
                f"{folder} exists already and was left alone; choose another name, or pass overwrite=True"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        about = {
            **self.about,
            "format": FORMAT,
            "name": self.model.card.name,
            "tuning": asdict(self.tuning),
            "targets": [t.about() for t in self.targets],
            "scores": self.scores.astype(object).where(self.scores.notna(), None).to_dict("records"),
            "history": self.history.astype(object).where(self.history.notna(), None).to_dict("records"),
        }
        with new_folder(folder) as partial:
            save_file(dict(self._tensors), partial / WEIGHTS, metadata={"format": "pt"})
            (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | FoundationModel | None = None) -> Finetuned:
        """Read what `save` wrote, and put it on its base model.

        Parameters
        ----------
        folder
            That was written, or the folder of a run.
        base
            The model that was tuned (of sequences its folder or repository); None: opened by the name that is written there.

        Raises
        ------
        CheckpointError
            If the base is another model than the one that was tuned, or a file is damaged.
        """
        folder, about = written(folder, "reading")
        if "sequences" in about:
            from scfm.training._finetune_sequences import FinetunedSequences

            return FinetunedSequences.load(folder, base)
        known = about["base"]
        model = base if isinstance(base, FoundationModel) else models.load(base or known["source"])
        model = model.for_context(about["reading"].get("context"))
        check_base(model, known, folder)
        targets = tuple(Target.told(t) for t in about["targets"])
        tuning = Tuning(**about["tuning"])
        tensors = as_state(read_tensors(folder / WEIGHTS), folder / WEIGHTS)
        tuned = dressed(model, targets, about["pooling"], about["name"])
        put_in(tuned.transformer, tuning, [t.name for t in targets])
        fill_in(tuned.transformer, tensors, str(folder / WEIGHTS))
        merge(tuned.transformer)
        tuned.card = card_of(model.card, about["name"], tuning, targets)
        frames = [pd.DataFrame(about.pop(name, [])) for name in ("scores", "history")]
        frames = [f.infer_objects() for f in frames]
        return cls(tuned, targets, tuning, frames[0], frames[1], about, tensors)


def written(folder: str | Path, own: str) -> tuple[Path, dict[str, Any]]:
    """The folder itself, given that or the folder of a run, and what `Finetuned.save` told there.

    Raises
    ------
    CheckpointError
        If there is nothing to read, an entry is missing (``own``: that of the kind), or the format is another.
    """
    folder = Path(folder).expanduser()
    folder = folder / TUNED_FOLDER if (folder / TUNED_FOLDER / ABOUT).is_file() else folder
    about = read_settings(folder / ABOUT, ("format", "base", "tuning", "targets", "pooling", "name", own))
    if about["format"] != FORMAT:
        raise CheckpointError(f"{folder} has format {about['format']}, this version reads {FORMAT}; tune it again")
    return folder, about


def dressed(model: FoundationModel, targets: tuple[Target, ...], pooling: str | None, name: str) -> FoundationModel:
    """A copy of a model with heads for the targets."""
    heads = Labels(targets=targets, pooling=pooling).heads(model)
    taken = [n for n in heads if n in model.transformer.heads]
    if taken:
        raise ConfigError(f"{model.card.name} has an output {taken[0]!r} already; give the column another name")
    copied = own_copy(model, heads, pooling, FINAL)
    copied.labels = {**copied.labels, **{t.name: t.classes for t in targets if t.classes}}
    copied.card = replace(model.card, name=name)
    return copied


def card_of(card: ModelCard, name: str, tuning: Tuning, targets: tuple[Target, ...]) -> ModelCard:
    """The card of a tuned model, from that of its base."""
    about = {"base": card.name, "method": tuning.method, "targets": [t.source for t in targets]}
    return replace(
        card,
        name=name,
        title=f"{card.title or card.name}, tuned to tell {', '.join(t.source for t in targets)}",
        hub=None,
        files={},
        checksums={},
        folder="",
        checkpoint=None,
        verified="",
        details={**dict(card.details), "finetuned": about},
    )


def check_base(model: FoundationModel, known: Mapping[str, Any], folder: Path) -> None:
    """Raise unless a model is the one that was tuned.

    Raises
    ------
    CheckpointError
        With the names of both.
    """
    found = base_hash(model)
    if found != known["hash"]:
        raise CheckpointError(
            f"{folder} was tuned on {known['name']} (weights {known['hash'][:12]}), but {model.card.name} has others "
            f"({found[:12]}); pass the model that was tuned as base="
        )
