"""`scfm.tl.denoise`: what a model expects to see of each gene if a cell were read more deeply."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError, GeneMatchError
from scfm.get._slots import UNS, key_of, plain
from scfm.models._head import gene_ids
from scfm.models._reconstruction import Reconstruction, reconstruct_blocks, reconstruction_head
from scfm.models._stream import BLOCK_ROWS, Job
from scfm.tl._embed import _check_target
from scfm.tl._gene_slots import columns_of_var, coverage
from scfm.tl._open import Opened, open_cells, open_model

log = logging.getLogger("scfm")


def denoise(
    adata: AnnData,
    model: str | Path | models.FoundationModel = "scfoundation-rde",
    *,
    target_depth: float | str | Sequence[float] | NDArray[Any] | None = None,
    genes: Sequence[str] | None = None,
    checkpoint: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    key_added: str = "denoised",
    batch_tokens: int | Literal["auto"] = "auto",
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    copy: bool = False,
    progress: bool = True,
) -> AnnData | None:
    """Predict the expression of each cell as if it had been read to another depth.

    A cell's values depend on that cell alone. They are what a model expects, not what was measured: genes that a cell
    does not express get values too, and cells of one kind become more alike than they are. Do not test for
    differences between groups on them.

    Parameters
    ----------
    adata
        Annotated data with raw counts somewhere; in memory, backed, or on dask. It is only read, except for the
        slots written at the end.
    model
        A model with a decoder over genes: a registered name, a folder, a hub repository, or a loaded model.
    target_depth
        Counts that the cell is to look as if it had, above its own: a number, a column of ``obs``, or one number per
        cell. None: the model's default (scFoundation: 10,000), or what ``context`` says.
    genes
        Names or symbols in the model's vocabulary, which the data need not have measured: predict these only, into
        ``.obsm``. None: all genes of the data, into a layer.
    checkpoint, family, revision
        See `scfm.models.load`.
    layer, use_raw, gene_key, gene_matching, orthologues
        Where the counts and the names of the genes are; see `scfm.tl.embed`.
    context
        Further tokenizer options; for scFoundation ``{"target_fold": 5}`` or ``{"target_log_add": 1}`` in place of
        ``target_depth``.
    key_added
        Name of the slots.
    batch_tokens
        Tokens per batch; every gene that the decoder reads counts as one.
    device, dtype, attn_implementation
        Where and how precisely to compute; see `scfm.tl.embed`.
    seed
        Key of everything random in the tokenizer.
    copy
        Return a copy instead of writing into ``adata``.
    progress
        Show a progress bar.

    Returns
    -------
    None, or the copy. Written:

    - ``.layers["<key>"]`` (n_obs, n_vars) float32 log-expression in the unit of the model (scFoundation: log1p of counts
      per 10,000); NaN for genes that the model does not know, and for cells without any gene of it. Dense and in
      memory: 4 bytes per cell and gene. With ``genes`` instead ``.obsm["<key>"]``, a data frame with a column per gene;
    - ``.uns["scfm"]["<key>"]`` what was found and done (`scfm.get.report`).

    Raises
    ------
    CountsError, GeneMatchError, TokenizerError, CheckpointError, ConfigError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scfm
    >>> scfm.tl.denoise(adata, target_depth=20_000)  # doctest: +SKIP
    >>> adata.layers["denoised"]  # doctest: +SKIP
    """
    _check_target(adata, copy=copy, verb="denoise")
    key = key_of(key_added)
    options = {**(context or {}), **({} if target_depth is None else {"target_depth": target_depth})}
    loaded = open_model(
        model,
        checkpoint=checkpoint,
        family=family,
        revision=revision,
        context=options,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )
    head = reconstruction_head(loaded)
    opened = open_cells(
        adata,
        loaded,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        gene_matching=gene_matching,
        orthologues=orthologues,
        context=options,
    )
    columns = columns_of_var(adata, opened.source, opened.match) if genes is None else _asked(loaded, genes)
    job = Job(match=opened.match, context=opened.context, seed=seed, batch_tokens=batch_tokens)
    with tqdm(total=adata.n_obs, desc=loaded.card.name, unit="cell", disable=not progress) as bar:
        blocks = opened.source.blocks(BLOCK_ROWS)
        result = reconstruct_blocks(loaded, blocks, job, head, columns, adata.n_obs, bar)
    facts = _facts(opened, job, head, result, columns, where="layers" if genes is None else "obsm")
    _tell(facts, adata.n_obs)
    target = adata.copy() if copy else adata
    _write(target, key, result.values, None if genes is None else [*genes], facts)
    return target if copy else None


def _asked(model: models.FoundationModel, genes: Sequence[str]) -> NDArray[np.int64]:
    """Vocabulary ids of the genes that are asked for, each once."""
    if isinstance(genes, str) or not len(genes):
        raise ConfigError(f"genes={genes!r}; pass a list of one or more names, or None for all genes of the data")
    twice = sorted({gene for gene in genes if [*genes].count(gene) > 1})
    if twice:
        raise GeneMatchError(f"genes= names {', '.join(twice[:5])} more than once; each needs a column of its own")
    return np.array(gene_ids(model.vocabulary, genes), dtype=np.int64)


def _facts(
    opened: Opened, job: Job, head: str, result: Reconstruction, columns: NDArray[np.int64], where: str
) -> dict[str, Any]:
    model, report, per_cell = opened.model, opened.match.report, result.per_cell
    present, matched = (
        float(per_cell[name].sum()) if name in per_cell else 0.0 for name in ("present", "total_matched")
    )
    return {
        "model": model.card.name,
        "family": model.card.family,
        "version": version("scfm"),
        "parameters": {
            "head": head,
            "gene_matching": report.policy,
            "seed": job.seed,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "context": {k: v if np.ndim(v) == 0 else "one value per cell" for k, v in job.context.items()},
        },
        "counts": opened.source.report.to_dict(),
        "coverage": coverage(report.with_counts(matched, present)),
        "tokens": {
            "mean": float(per_cell["n_tokens"].mean()) if per_cell else 0.0,
            "empty_cells": int((per_cell["n_detected"] == 0).sum()) if per_cell else 0,
        },
        "denoised": {
            "where": where,
            "genes": int((columns >= 0).sum()),
            "unknown_genes": int((columns < 0).sum()),
            "cells_deeper_than_target": int(per_cell["deeper"].sum()) if per_cell else 0,
        },
    }


def _tell(facts: Mapping[str, Any], n_cells: int) -> None:
    found = facts["denoised"]
    log.info(
        "%s: %d genes predicted in %d cells, %d genes of the data unknown",
        facts["model"],
        found["genes"],
        n_cells,
        found["unknown_genes"],
    )
    if facts["tokens"]["empty_cells"]:
        log.warning("%d cells hold no gene of the model; their rows are NaN", facts["tokens"]["empty_cells"])
    if found["cells_deeper_than_target"]:
        log.warning(
            "%d of %d cells hold more counts than the target depth; models are trained to predict deeper cells from "
            "shallower ones: choose a greater target_depth",
            found["cells_deeper_than_target"],
            n_cells,
        )


def _write(
    adata: AnnData, key: str, values: NDArray[np.float32], genes: list[str] | None, facts: Mapping[str, Any]
) -> None:
    """Write the slots; the other slot of an earlier run under the same key goes."""
    runs = {**adata.uns.get(UNS, {}), key: plain(facts)}
    if genes is None:
        adata.layers[key] = values
        if key in adata.obsm:
            del adata.obsm[key]
    else:
        adata.obsm[key] = pd.DataFrame(values, index=adata.obs_names, columns=genes)
        if key in adata.layers:
            del adata.layers[key]
    adata.uns[UNS] = runs
