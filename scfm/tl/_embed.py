"""`scfm.tl.embed`: cell and gene embeddings of a foundation model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts, genes, models
from scfm.errors import ConfigError
from scfm.evaluation import Health, health
from scfm.get._slots import UNS, Slots, key_of, plain
from scfm.models._dask import embed_dask
from scfm.models._stream import BLOCK_ROWS, Embedding, Job, embed_blocks
from scfm.tl._dry_run import DryRun, dry_run_report
from scfm.tl._gene_slots import columns_of_var, coverage, gene_arrays, groups_of
from scfm.tl._open import open_cells, open_model

log = logging.getLogger("scfm")


def embed(
    adata: AnnData,
    model: str | Path | models.FoundationModel = "scfm-mini",
    *,
    checkpoint: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    gene_embeddings: Literal["auto", "contextual", "input"] | None = "auto",
    groupby: str | None = None,
    key_added: str | None = None,
    batch_tokens: int | Literal["auto"] = "auto",
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    n_samples: int = 1,
    copy: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> AnnData | DryRun | None:
    """Embed cells, and their genes, with a foundation model.

    A cell's vector depends on that cell alone: not on the other cells, their order, or the batch size.

    Parameters
    ----------
    adata
        Annotated data with raw counts somewhere; in memory, backed, or on dask. It is only read, except for the
        slots written at the end.
    model
        A registered name (`scfm.models.list`), a folder, a hub repository, or a loaded model.
    checkpoint
        Weight set within a file, for families that have several.
    layer, use_raw
        Where the counts are; None: found (`scfm.pp.inspect` tells where).
    gene_key
        Column of ``var`` with gene ids or symbols; None: found.
    gene_matching
        ``resolve``: versions, previous symbols and aliases are resolved, duplicates summed; ``published``: the
        rule of the family's own code.
    orthologues
        Translates genes of another species than the model's: True for the shipped one-to-one orthologues of human and
        mouse, or a table (see `scfm.genes.match`).
    context
        Tokenizer options by name: a value, a column of ``obs``, or one value per cell.
    pooling, hidden_layer
        Read-out and layer; None: the model's defaults.
    gene_embeddings
        ``contextual``: the mean state of a gene over the cells where it is a token; ``input``: the model's own
        vector of the gene; ``auto``: contextual where the model has layers, else input; None: none.
    groupby
        Column of ``obs``: contextual gene vectors for each of its groups too.
    key_added
        Name of the slots; None: the model's name.
    batch_tokens
        Tokens per batch.
    device, dtype, attn_implementation
        Where and how precisely to compute; None: the best device at hand, float32, the fastest attention there.
    family, revision
        See `scfm.models.load`.
    seed
        Key of everything random in the tokenizer.
    n_samples
        For tokenizers that draw at random: draw every cell so often, with the seeds from ``seed`` on, and take the mean.
    copy
        Return a copy instead of writing into ``adata``.
    dry_run
        Only time about 64 cells and return what the whole would take.
    progress
        Show a progress bar.

    Returns
    -------
    None, the copy, or with ``dry_run`` a `DryRun`. Written:

    - ``.obsm["X_<key>"]`` (n_obs, d) float32, NaN for cells without a gene of the model;
    - ``.obs["<key>_n_tokens"]`` tokens per cell; with ``n_samples`` also ``.obs["<key>_spread"]``, the mean cosine
      distance of a cell's samples to their mean;
    - ``.varm["<key>"]`` (n_vars, d) float32, NaN for genes outside the model; with ``groupby``
      ``.varm["<key>_groups"]`` (n_vars, groups, d) and ``.varm["<key>_n_cells"]`` (n_vars, groups);
    - ``.uns["scfm"]["<key>"]`` what was found and done (`scfm.get.report`).

    Raises
    ------
    CountsError, GeneMatchError, TokenizerError, CheckpointError, ConfigError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scfm.tl.embed(adata, progress=False)
    >>> adata.obsm["X_scfm_mini"].shape[0] == adata.n_obs
    True
    """
    _check_target(adata, copy=copy)
    if n_samples < 1:
        raise ConfigError(f"n_samples={n_samples}; every cell needs at least one sample")
    loaded = open_model(
        model,
        checkpoint=checkpoint,
        family=family,
        revision=revision,
        context=context,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )
    key = key_of(key_added or loaded.card.name)
    loaded.transformer.readout(pooling)
    loaded.transformer.layer_number(hidden_layer)
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
    source, match = opened.source, opened.match
    kind = _gene_kind(gene_embeddings, loaded)
    groups, names = groups_of(adata, groupby, kind)
    job = Job(
        match=match,
        context=opened.context,
        seed=seed,
        n_samples=n_samples,
        pooling=pooling,
        hidden_layer=hidden_layer,
        batch_tokens=batch_tokens,
        genes=kind == "contextual",
        groups=groups,
    )
    if dry_run:
        return dry_run_report(loaded, source, job)
    with tqdm(total=adata.n_obs, desc=loaded.card.name, unit="cell", disable=not progress) as bar:
        result = (
            embed_dask(loaded, source, job, bar)
            if source.is_dask
            else embed_blocks(loaded, source.blocks(BLOCK_ROWS), job, bar)
        )
    facts = _facts(loaded, source, match, job, result, kind)
    _warn(facts, adata, key)
    in_varm = gene_arrays(Slots(key), loaded, columns_of_var(adata, source, match), result, kind, names)
    target = adata.copy() if copy else adata
    _write(target, key, result, in_varm, {**facts, "groups": names} if names else facts)
    return target if copy else None


def _check_target(adata: Any, *, copy: bool, verb: str = "embed") -> None:
    """Raise before the long work if the results could not be written at its end."""
    if not isinstance(adata, AnnData):
        raise ConfigError(
            f"{verb} works on an AnnData object, not on a {type(adata).__name__}; open files with scfm.counts.read(path)"
            + (", or use the command scfm embed IN OUT" if verb == "embed" else "")
        )
    if adata.isbacked and copy:
        raise ConfigError("a backed object has no copy in memory; leave out copy=True, or pass adata.to_memory()")
    if adata.isbacked and adata.is_view:
        raise ConfigError("results cannot be written into a view of a backed object; pass adata.to_memory()")


def _gene_kind(asked: str | None, model: models.FoundationModel) -> str | None:
    if asked not in ("auto", "contextual", "input", None):
        raise ConfigError(f"gene_embeddings={asked!r}; it must be 'auto', 'contextual', 'input' or None")
    has_layers = model.transformer.n_layers > 0
    if asked == "contextual" and not has_layers:
        raise ConfigError(
            f"{model.card.name} has no layers that could give a gene a context; use gene_embeddings='input'"
        )
    return ("contextual" if has_layers else "input") if asked == "auto" else asked


def _facts(
    model: models.FoundationModel,
    source: counts.CountSource,
    match: genes.GeneMatch,
    job: Job,
    result: Embedding,
    kind: str | None,
) -> dict[str, Any]:
    per_cell = result.per_cell
    present, matched = float(per_cell["present"].sum()), float(per_cell["total_matched"].sum())
    status, n_seen = leaked(model, per_cell.get("fingerprint"))
    return {
        "model": model.card.name,
        "family": model.card.family,
        "version": version("scfm"),
        "parameters": {
            "pooling": job.pooling or model.config.readout,
            "hidden_layer": model.config.hidden_layer if job.hidden_layer is None else job.hidden_layer,
            "gene_matching": match.report.policy,
            "gene_embeddings": kind,
            "seed": job.seed,
            "n_samples": job.n_samples,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": str(model.config._attn_implementation).removeprefix("packed_"),
            "context": {k: v if np.ndim(v) == 0 else "one value per cell" for k, v in job.context.items()},
        },
        "counts": source.report.to_dict(),
        "coverage": coverage(match.report.with_counts(matched, present)),
        "tokens": {
            "mean": float(per_cell["n_tokens"].mean()) if len(per_cell["n_tokens"]) else 0.0,
            "truncated_cells": int((per_cell["n_dropped"] > 0).sum()),
            "empty_cells": int((per_cell["n_detected"] == 0).sum()),
        },
        "leakage": {"status": status, "seen_cells": n_seen},
        "health": health(result.cells).to_dict(),
    }


def leaked(model: models.FoundationModel, prints: NDArray[np.uint64] | None) -> tuple[str, int]:
    """Whether cells were in the corpus of a model, as far as that is known, and how many.

    A cell is known again by its counts of the vocabulary genes: another choice of genes or a doublet hides it.
    """
    if model.seen is None or prints is None:
        return "whether it was trained on these cells is not known", 0
    n = int(np.isin(prints, model.seen).sum())
    return f"{n} of the cells are known from its corpus" if n else "none of the cells is known from its corpus", n


def _warn(facts: dict[str, Any], adata: AnnData, key: str) -> None:
    found, coverage, tokens = facts["health"], facts["coverage"], facts["tokens"]
    log.info(
        "%s: %d cells; %d genes matched, %.1f %% of the counts; mean cosine %.3f, effective rank %.1f, "
        "%d truncated, %d empty; %s",
        facts["model"],
        adata.n_obs,
        coverage["n_genes"],
        100 * coverage["count_coverage"],
        found["mean_cosine"],
        found["effective_rank"],
        tokens["truncated_cells"],
        tokens["empty_cells"],
        facts["leakage"]["status"],
    )
    if tokens["empty_cells"]:
        log.warning(
            "%d cells hold no gene of the model; their rows are NaN. Leave them out before sc.pp.neighbors: "
            "adata = adata[~np.isnan(adata.obsm['X_%s']).any(axis=1)].copy()",
            tokens["empty_cells"],
            key,
        )
    if Health(**found).collapsed:
        log.warning(
            "the embedding has collapsed: cells can hardly be told apart (mean cosine %.4f, effective rank %.1f). "
            "Check species, gene ids and counts with scfm.pp.inspect(adata)",
            found["mean_cosine"],
            found["effective_rank"],
        )


def _write(
    adata: AnnData, key: str, result: Embedding, in_varm: dict[str, NDArray[Any]], facts: dict[str, Any]
) -> None:
    """Write the slots; those of an earlier run under the same key go."""
    slots = Slots(key)
    runs = {**adata.uns.get(UNS, {}), key: plain(facts)}
    adata.obsm[slots.cells] = result.cells
    adata.obs[slots.n_tokens] = result.per_cell["n_tokens"]
    if facts["parameters"]["n_samples"] > 1:
        adata.obs[slots.spread] = result.per_cell["spread"]
    elif slots.spread in adata.obs:
        del adata.obs[slots.spread]
    for name in slots.of_genes:
        if name in in_varm:
            adata.varm[name] = in_varm[name]
        elif name in adata.varm:
            del adata.varm[name]
    adata.uns[UNS] = runs
