"""An annotator on a model that was fine-tuned on the reference: one part of the cells tunes, the other calibrates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from scfm import models
from scfm.annotation import Annotator, Reading
from scfm.annotation._annotator import MAX_CELLS
from scfm.annotation._choose import splits
from scfm.annotation._reference import labelled, opened
from scfm.errors import ConfigError
from scfm.tl._finetune import finetune

CALIBRATING = 2
"""Of five folds, those whose cells the model is not tuned on."""


def tuned_annotator(
    reference: AnnData | str | Path,
    label_key: str,
    model: str | Path | models.FoundationModel,
    *,
    batch_key: str | None,
    tuning: Mapping[str, Any] | None,
    reading: Reading,
    device: str | None,
    seed: int,
    progress: bool,
) -> tuple[Annotator, models.FoundationModel]:
    """Tune a model on three fifths of the labelled cells, and fit an annotator on its vectors of the others.

    Vectors of cells that a model was tuned on look better than those of any new cell, so that confidence, novelty and
    thresholds come from cells that it did not see. Whole donors or batches are kept together where that is possible.

    Parameters
    ----------
    reference, label_key, batch_key, reading, device, seed, progress
        See `scfm.tl.annotate`.
    model
        To be tuned; it stays as it is.
    tuning
        Further arguments of `scfm.tl.finetune`, such as ``{"method": "lora", "epochs": 3}``.

    Returns
    -------
    The annotator, and the tuned model that it needs.

    Raises
    ------
    ConfigError
        If the reference is too small to be split.
    """
    adata = opened(reference, "reference")
    known = labelled(adata.obs, label_key, batch_key, MAX_CELLS, seed)
    pairs, grouped = splits(known.codes, known.groups, seed)
    if len(pairs) <= CALIBRATING:
        raise ConfigError(
            f"the {len(known.rows):,} labelled cells of the reference cannot be split into cells to tune on and cells to "
            "calibrate on; choose another method"
        )
    held = np.unique(np.concatenate([test for _learn, test in pairs[:CALIBRATING]]))
    tune = np.setdiff1d(np.arange(len(known.rows)), held)
    # a class that is on one side only is on both
    tune = np.union1d(tune, held[~np.isin(known.codes[held], known.codes[tune])])
    held = np.union1d(held, tune[~np.isin(known.codes[tune], known.codes[held])])
    tuned = finetune(
        _only(adata, known.rows[tune]),
        model,
        label_key,
        group_key=batch_key if grouped else None,
        layer=reading.layer,
        use_raw=reading.use_raw,
        gene_key=reading.gene_key,
        gene_matching=reading.gene_matching,
        context=reading.context,
        device=device,
        seed=seed,
        progress=progress,
        **(tuning or {}),
    )
    annotator = Annotator.fit(
        _only(adata, known.rows[held]),
        label_key,
        model=tuned.model,
        method="embedding-linear",
        batch_key=batch_key,
        use_rep=False,
        reading=reading,
        device=device,
        seed=seed,
        progress=progress,
    )
    return annotator, tuned.model


def _only(adata: AnnData, rows: Any) -> AnnData:
    part = adata[rows]
    return part.to_memory() if adata.isbacked else part.copy()
