"""`scfm.tl.finetune`: a foundation model tuned on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from anndata import AnnData

from scfm import models
from scfm.errors import ConfigError
from scfm.get._slots import key_of, plain
from scfm.tl._embed import _check_target
from scfm.tl._open import open_model

if TYPE_CHECKING:
    from scfm.training import Finetuned

UNS = "scfm_finetune"


def finetune(
    adata: AnnData | pd.DataFrame,
    model: str | Path | models.FoundationModel = "scfm-mini",
    target: str | Sequence[str] | Mapping[str, Any] = "cell_type",
    *,
    method: Literal["lora", "full", "freeze", "ia3", "head"] | None = None,
    group_key: str | None = None,
    kind: Literal["auto", "classes", "number"] | Mapping[str, str] = "auto",
    missing: Literal["error", "drop"] = "error",
    n_frozen_layers: int | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    lora_dropout: float = 0.0,
    validation_share: float = 0.2,
    validation_groups: Sequence[str] | None = None,
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    epochs: float = 5.0,
    learning_rate: float | None = None,
    batch_cells: int = 32,
    batch_tokens: int = 8192,
    weight_decay: float = 0.01,
    patience: int = 3,
    evaluate_every: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    pooling: str | None = None,
    forgetting: bool | str | Mapping[str, Any] = False,
    name: str | None = None,
    folder: str | Path | None = None,
    key_added: str | None = None,
    sequence_key: str | None = None,
    too_long: Literal["truncate", "error"] = "error",
    max_tokens: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    context: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Finetuned:
    """Tune a foundation model on labelled cells, on classes of genes, or a sequence model on labelled sequences.

    Heads start as linear maps fitted to the frozen model's vectors, so that tuning begins where the linear probe ends (Kumar
    et al. 2022, arXiv:2202.10054), and the weights that did best on held-out groups are kept. The result says what the same
    split gives without tuning.

    Parameters
    ----------
    adata
        Labelled cells with raw counts somewhere; in memory or backed. Only read, except for what ``key_added`` asks for. Or
        labelled sequences: a table, or an AnnData with ``sequence_key``, with a row per sequence.
    model
        A registered name, a folder, a hub repository, or a loaded model, which stays as it is. For sequences a model of
        `scfm.tl.embed_sequences`: a folder or a hub repository.
    target
        A column of ``obs`` with classes or numbers; several, learnt together; or a class per gene (a dictionary by id or
        symbol): genes are then told apart by their states in the cells, and whole genes are held out.
    method
        ``lora`` or ``ia3``: small adapters (by peft); ``full``: every weight; ``freeze``: the upper layers; ``head``: linear
        maps on the frozen model. None: ``lora``, or ``full`` for a model without layers.
    group_key
        Column of ``obs`` with donors or batches: whole groups are held out. None: single cells are, and what is reported then
        flatters, because cells of a donor are alike.
    kind
        Whether columns hold ``classes`` or ``number``; by column, or for all. ``auto``: told by their type.
    missing
        Cells without a value: ``error``, or ``drop`` (with several targets they count for those that they have).
    n_frozen_layers
        Layers, from below, that do not move, nor the input terms; None: half of them with ``freeze``, else 0.
    rank, alpha, lora_dropout
        Of LoRA.
    validation_share, validation_groups
        How many cells to hold out (0: none, without early stopping), or which groups.
    class_weights
        ``balanced``, so that rare classes count as much as frequent ones; or weights by class.
    epochs, learning_rate, batch_cells, batch_tokens, weight_decay
        AdamW with a linear schedule. ``learning_rate`` None: 1e-3 for ``lora``, 3e-3 for ``ia3``, 1e-4 else, 1e-5
        for a model without layers.
    patience, evaluate_every
        Looks at the held-out cells without a gain after which it stops; steps between looks (None: ten looks in all).
    precision
        ``bfloat16`` for the matrix products, on hardware that has it.
    pooling
        Read-out of the cells that heads are put on; None: the model's default, from the last layer.
    forgetting
        Report the change of the pretraining loss on held-out cells: True, or an objective (`scfm.training.objectives`).
    name
        Of the tuned model; None: the base's and the targets'.
    folder
        New or empty: ``log.csv`` and what moved are kept there.
    key_added
        Write predictions for all cells into ``adata``.
    sequence_key
        Column with the letters of sequences; None: ``sequence`` of a table, and an AnnData holds cells.
    too_long, max_tokens
        Sequences that the model cannot read at once are an ``error``, or their beginning is read (``truncate``); see
        `scfm.tl.embed_sequences`.
    layer, use_raw, gene_key, gene_matching, context
        See `scfm.tl.embed`.
    checkpoint, family, revision, device
        See `scfm.tl.embed`.
    seed
        Of everything random.
    progress
        Show progress bars.

    Returns
    -------
    scfm.training.Finetuned
        For sequences `scfm.training.FinetunedSequences`. Prints as a report; ``result.model`` is used like any model (``scfm.tl.embed(adata, result.model)``),
        ``result.predict(adata)`` names cells, ``result.save(folder)`` keeps what moved alone. With ``key_added`` also written:
        ``.obs["<key>_<column>"]``, for classes ``"<key>_<column>_score"``, and ``.uns["scfm_finetune"]["<key>"]``.

    Raises
    ------
    ConfigError, CountsError, GeneMatchError, CheckpointError, MissingDependencyError
        Before the long work, if something does not fit: a missing column, cells without labels, one class, a class of one
        cell, numbers that may be codes, groups that cannot be held out.
    TrainingError
        If the loss is not finite; the message names the cells.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> result = scfm.tl.finetune(adata, target="bulk_labels", method="head", progress=False)
    >>> result.predict(adata).columns.tolist()
    ['bulk_labels', 'bulk_labels_score']
    """
    from scfm.training import FitSettings
    from scfm.training import finetune as tune
    from scfm.training import finetune_sequences as tune_sequences

    fit = FitSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_cells=batch_cells,
        batch_tokens=batch_tokens,
        weight_decay=weight_decay,
        patience=patience,
        evaluate_every=evaluate_every,
        precision=precision,
        seed=seed,
    )
    shared: dict[str, Any] = {
        "kind": kind,
        "missing": missing,
        "n_frozen_layers": n_frozen_layers,
        "rank": rank,
        "alpha": alpha,
        "lora_dropout": lora_dropout,
        "group_key": group_key,
        "validation_share": validation_share,
        "validation_groups": validation_groups,
        "class_weights": class_weights,
        "pooling": pooling,
        "fit": fit,
        "name": name,
        "folder": folder,
        "progress": progress,
    }
    if sequence_key is not None or isinstance(adata, pd.DataFrame):
        of_cells = {
            "forgetting": forgetting,
            "layer": layer,
            "use_raw": use_raw,
            "gene_key": gene_key,
            "context": context,
            "checkpoint": checkpoint,
            "family": family,
        }
        check_sequences(adata, model, of_cells)
        if key_added is not None and not isinstance(adata, AnnData):
            raise ConfigError("key_added= writes into an AnnData; join result.predict(table) to a table")
        tuned = tune_sequences(
            adata,
            model,  # type: ignore[arg-type]
            target,  # type: ignore[arg-type]
            method=method or "lora",
            sequence_key=sequence_key,
            too_long=too_long,
            max_tokens=max_tokens,
            revision=revision,
            device=device,
            **shared,
        )
        if key_added is not None:
            _write(adata, key_of(key_added), tuned, progress)
        return tuned
    _check_target(adata, copy=False, verb="finetune")
    loaded = open_model(model, checkpoint=checkpoint, family=family, revision=revision, context=context, device=device)
    given = {"layer": layer, "use_raw": use_raw, "gene_key": gene_key, "gene_matching": gene_matching}
    result = tune(
        adata,
        loaded,
        target,
        source=None if isinstance(model, models.FoundationModel) else str(model),
        method=method or ("lora" if loaded.transformer.n_layers else "full"),
        forgetting=forgetting,
        reading={**given, "context": dict(context or {})},
        **shared,
    )
    if key_added is not None:
        _write(adata, key_of(key_added), result, progress)
    return result


def check_sequences(data: Any, model: Any, of_cells: Mapping[str, Any]) -> None:
    """Raise unless labelled sequences and a model of sequences are given, and nothing that is for cells alone.

    Raises
    ------
    ConfigError
        With what fits.
    """
    if not isinstance(data, AnnData | pd.DataFrame):
        raise ConfigError(f"labelled sequences are a table or an AnnData with a row each, not {type(data).__name__}")
    given = [name for name, value in of_cells.items() if value]
    if given:
        raise ConfigError(f"{given[0]}= is for cells; leave it out for sequences")
    if isinstance(model, models.FoundationModel) or str(model) == "scfm-mini":
        raise ConfigError(
            "model= reads cells; for sequences name a folder or a repository of a sequence model, such as "
            "facebook/esm2_t12_35M_UR50D"
        )


def _write(adata: AnnData, key: str, result: Finetuned, progress: bool) -> None:
    """Predictions as columns of ``obs`` (of genes: of ``uns``), scores and settings in ``uns``."""
    found = result.predict(adata, progress=progress)
    facts = {
        "model": result.model.card.name,
        "base": result.about["base"]["name"],
        "method": result.tuning.method,
        "held_out_groups": result.about["groups"],
        "stopped": result.about["stopped"],
        "scores": {name: result.scores[name].to_numpy() for name in result.scores},
    }
    if result.targets[0].kind == "genes":
        table = found.reset_index().astype({"gene_class": str})
        facts["genes"] = {name: table[name].to_numpy() for name in table}
    else:
        for name in found:
            adata.obs[f"{key}_{key_of(str(name))}"] = found[name].array
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), key: plain(facts)}
