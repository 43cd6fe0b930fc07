"""`scfm.tl.probe_layers`: which layer of a model knows most about a label?"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError, require
from scfm.evaluation._scores import Floats, Score, macro_f1, table_score
from scfm.evaluation._statistics import Resampling, interval, resample_cells, resample_groups, subsample
from scfm.get._layer_probes import UNS, LayerProbes
from scfm.get._slots import key_of
from scfm.tl._embed import _check_target
from scfm.tl._finetune import check_sequences
from scfm.tl._open import open_cells, open_model
from scfm.tl._probe_vectors import vectors_of_cells, vectors_of_sequences

if TYPE_CHECKING:
    from scfm.training._finetune_targets import Target

log = logging.getLogger("scfm")


def probe_layers(
    adata: AnnData | pd.DataFrame,
    label_key: str | Sequence[str],
    group_key: str | None = None,
    model: str | Path | models.FoundationModel = "scfm-mini",
    *,
    kind: Literal["auto", "classes", "number"] | Mapping[str, str] = "auto",
    missing: Literal["error", "drop"] = "error",
    pooling: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    n_folds: int = 5,
    n_boot: int = 1000,
    max_cells: int = 5000,
    key_added: str | None = None,
    sequence_key: str | None = None,
    too_long: Literal["truncate", "error"] = "error",
    max_tokens: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Any = None,
    context: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LayerProbes:
    """Fit linear probes on every layer of a model, from one pass over the cells.

    A probe is a logistic (for numbers a ridge) regression on the cell vectors of a layer, fitted on some groups and scored on
    the others; every cell is scored once. The layer with the best score is named with a bootstrap interval over groups, and
    with how often it is the best when the groups are drawn again: neighbours of the best layer are rarely told apart from it.

    Parameters
    ----------
    adata
        Labelled cells with raw counts; only read, except for ``.uns``. Or labelled sequences, as in `scfm.tl.finetune`.
    label_key
        One or several columns of ``obs`` with classes or numbers.
    group_key
        Column of ``obs`` with donors or batches: whole groups are held out. None: single cells are, which flatters.
    model
        A registered name, a folder, a hub repository, or a loaded model.
    kind, missing
        See `scfm.tl.finetune`.
    pooling
        One or several read-outs; None: the model's default.
    layers
        0 (the input) to the last; None: all. The last is read after the final norms.
    n_folds
        Parts of the cells that are held out in turn; at most as many as groups.
    n_boot
        Replicates of the bootstrap.
    max_cells
        Of more cells a sample is probed, stratified by the first label.
    key_added
        Name of the result; None: the model's name.
    sequence_key, too_long, max_tokens
        Of labelled sequences, see `scfm.tl.finetune`; ``pooling`` is then ``mean`` (the default), ``cls`` or ``last``.
    layer, use_raw, gene_key, gene_matching, orthologues, context
        See `scfm.tl.embed`.
    checkpoint, family, revision, device, dtype
        See `scfm.tl.embed`.
    seed
        Of folds, samples and replicates.
    progress
        Show progress bars.

    Returns
    -------
    scfm.get.LayerProbes
        Prints as a short text; ``scfm.pl.probe_layers`` draws it. Written: ``.uns["scfm_probe_layers"]["<key>"]``
    (not for a table of sequences).

    Raises
    ------
    ConfigError, CountsError, GeneMatchError, CheckpointError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> probes = scfm.tl.probe_layers(adata, "bulk_labels", n_boot=100, progress=False)
    >>> int(probes.best()["layer"])
    0
    """
    from scfm.training._finetune_targets import cell_targets

    of_sequences = sequence_key is not None or isinstance(adata, pd.DataFrame)
    if of_sequences:
        of_cells = {
            "layer": layer,
            "use_raw": use_raw,
            "gene_key": gene_key,
            "orthologues": orthologues,
            "context": context,
            "checkpoint": checkpoint,
            "family": family,
            "dtype": dtype,
        }
        check_sequences(adata, model, of_cells)
    else:
        _check_target(adata, copy=False, verb="probe_layers")
    require("sklearn", "linear probes need scikit-learn", "train")
    for name, value, least in (("n_folds", n_folds, 2), ("n_boot", n_boot, 10), ("max_cells", max_cells, 20)):
        if value < least:
            raise ConfigError(f"{name}={value}; at least {least} is needed")
    obs = adata if isinstance(adata, pd.DataFrame) else adata.obs
    groups = _groups(obs, group_key)
    targets = cell_targets(obs, label_key, kind, missing)
    first = targets[0]
    strata = first.values if first.kind == "classes" else np.zeros(len(obs), dtype=np.int64)
    rows = subsample(strata, max_cells, seed)
    loaded: Any
    if of_sequences:
        sequences = {"sequence_key": sequence_key, "too_long": too_long, "max_tokens": max_tokens, "revision": revision}
        loaded, vectors = vectors_of_sequences(adata, rows, model, pooling, layers, sequences, device, progress)
    else:
        loaded = open_model(
            model, checkpoint=checkpoint, family=family, revision=revision, context=context, device=device, dtype=dtype
        )
        opened = open_cells(
            adata,
            loaded,
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            gene_matching=gene_matching,
            orthologues=orthologues,
            context=context,
        )
        vectors = vectors_of_cells(opened, rows, pooling, layers, seed, progress)
    there = np.asarray(np.isfinite(next(iter(vectors.values()))).all(axis=1))
    if not there.all():
        log.warning("%d cells hold no gene of the model and are left out", int((~there).sum()))
    probed = [_probed(t, rows, there, groups, vectors, n_folds, n_boot, seed, progress) for t in targets]
    table = pd.concat([p.table for p in probed], ignore_index=True)
    facts = {
        "model": loaded.card.name,
        "n_layers": loaded.transformer.n_layers,
        "n_cells": int(there.sum()),
        "group_key": group_key,
        "folds": min(p.folds for p in probed),
        "n_boot": n_boot,
        "seed": seed,
    }
    result = LayerProbes(table, facts)
    key = key_of(key_added or loaded.card.name)
    if isinstance(adata, AnnData):
        adata.uns[UNS] = {**adata.uns.get(UNS, {}), key: result.to_dict()}
    return result


def _groups(obs: pd.DataFrame, group_key: str | None) -> NDArray[Any] | None:
    if group_key is None:
        return None
    if group_key not in obs:
        raise ConfigError(f"obs has no column {group_key!r} for group_key; it has {', '.join(obs.columns[:12])}")
    column = obs[group_key]
    if column.isna().any():
        raise ConfigError(f"obs[{group_key!r}] has no value for {int(column.isna().sum()):,} cells; fill them in")
    if column.nunique() < 2:
        raise ConfigError(f"obs[{group_key!r}] has one group only; leave out group_key= to hold out single cells")
    return np.unique(column.astype(str).to_numpy().astype(np.str_), return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class _Probed:
    table: pd.DataFrame
    folds: int


def _probed(
    target: Target,
    rows: NDArray[np.int64],
    there: NDArray[np.bool_],
    groups: NDArray[Any] | None,
    vectors: Mapping[tuple[str, int], NDArray[np.float32]],
    n_folds: int,
    n_boot: int,
    seed: int,
    progress: bool,
) -> _Probed:
    kept = np.flatnonzero(there & target.known[rows])
    y = target.values[rows[kept]]
    own = None if groups is None else groups[rows[kept]]
    classes = target.kind == "classes"
    folds = [*_folds(y if classes else None, own, len(kept), n_folds, seed)]
    strata = y if classes else np.zeros(len(y), dtype=np.int64)
    drawn = resample_cells(strata, n_boot, seed) if own is None else resample_groups(own, strata * 0, n_boot, seed)
    table, replicates = [], []
    bars = tqdm(vectors.items(), desc=target.source, unit="probe", disable=not progress)
    for (pooling, number), x in bars:
        score = _score(target, x[kept], y, folds)
        again = drawn.replicates(score)
        low, high = interval(again, drawn.n_units)
        replicates.append(again)
        table.append(
            {
                "target": target.source,
                "score": "macro_f1" if classes else "r2",
                "pooling": pooling,
                "layer": number,
                "value": score.value,
                "low": low,
                "high": high,
            }
        )
    return _Probed(_compared(pd.DataFrame(table), np.stack(replicates), drawn), len(folds))


def _compared(table: pd.DataFrame, replicates: Floats, drawn: Resampling) -> pd.DataFrame:
    """With the distance to the best, its interval, and how often each layer is the best."""
    best = int(np.nanargmax(table["value"]))
    ends = [interval(replicates[best] - again, drawn.n_units) for again in replicates]
    usable = np.isfinite(replicates).all(axis=0)
    winner = np.bincount(replicates[:, usable].argmax(axis=0), minlength=len(table))
    return table.assign(
        behind=table["value"].iloc[best] - table["value"],
        behind_low=[low for low, _ in ends],
        behind_high=[high for _, high in ends],
        best_in=winner / max(int(usable.sum()), 1),
    )


def _folds(
    y: NDArray[Any] | None, groups: NDArray[Any] | None, n: int, n_folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    kinds = {
        (True, True): StratifiedGroupKFold,
        (True, False): StratifiedKFold,
        (False, True): GroupKFold,
        (False, False): KFold,
    }
    k = min(n_folds, n if groups is None else len(np.unique(groups)))
    if k < 2:
        raise ConfigError("the cells with a label are of one group; leave out group_key= to hold out single cells")
    splitter = kinds[(y is not None, groups is not None)](n_splits=k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # classes with fewer cells than folds: they are in some folds only
        warnings.simplefilter("ignore", UserWarning)
        yield from splitter.split(np.zeros(n), y, groups)


def _score(target: Target, x: NDArray[np.float32], y: NDArray[Any], folds: Sequence[tuple[Any, Any]]) -> Score:
    """The score of what probes say of the cells that they have not seen."""
    from scfm.training._linear import fit_linear

    n_classes = len(target.classes) or None
    guess = np.zeros(len(y))
    for train, valid in folds:
        center, scale = (0.0, 1.0) if n_classes else (float(y[train].mean()), float(y[train].std()) or 1.0)
        answers = y[train] if n_classes else (y[train] - center) / scale
        said = fit_linear(x[train], answers, n_classes)(x[valid])
        guess[valid] = said.argmax(axis=1) if n_classes else said[:, 0] * scale + center
    if n_classes:
        return table_score(y, guess.astype(np.int64), macro_f1, n_rows=n_classes)
    return r_squared(y, guess)


def r_squared(y: Floats, guess: Floats) -> Score:
    """1 - sum (y - guess)^2 / sum (y - mean y)^2 as a function of sums over cells."""
    columns = np.stack([np.square(y - guess), y - y.mean(), np.square(y - y.mean()), np.ones(len(y))], axis=1)

    def reduce(sums: Floats) -> Floats:
        error, total, squares, n = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - error / (squares - np.square(total) / n)

    return Score(sp.csr_matrix(columns), reduce)
