"""`scfm.tl.embed`: cell and gene embeddings of a foundation model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts, genes, models
from scfm.errors import ConfigError
from scfm.evaluation import Health, health
from scfm.get._slots import UNS, key_of, plain
from scfm.models._dask import embed_dask
from scfm.models._stream import Embedding, Job, embed_blocks
from scfm.tl._dry_run import DryRun, dry_run_report
from scfm.tokenizers import from_obs

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scfm")

BLOCK_ROWS = 1024


def embed(
    adata: AnnData,
    model: str | Path | models.FoundationModel = "scfm-mini",
    *,
    checkpoint: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
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
    - ``.obs["<key>_n_tokens"]`` tokens per cell;
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
    loaded = model if isinstance(model, models.FoundationModel) else models.load(model, family, revision, checkpoint)
    loaded.to(device, dtype, attn_implementation)
    key = key_of(key_added or loaded.card.name)
    loaded.transformer.readout(pooling)
    loaded.transformer.layer_number(hidden_layer)
    source = counts.find(adata, layer=layer, use_raw=use_raw)
    match = genes.match(source.var, loaded.vocabulary, gene_key=gene_key, policy=gene_matching)
    kind = _gene_kind(gene_embeddings, loaded)
    groups, names = _groups(adata, groupby, kind)
    job = Job(
        match=match,
        context=from_obs(loaded.tokenizer.context_options, context, adata.obs),
        seed=seed,
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
    target = adata.copy() if copy else adata
    _write(target, key, loaded, source, match, result, kind, names, facts)
    return target if copy else None


def _gene_kind(asked: str | None, model: models.FoundationModel) -> str | None:
    if asked not in ("auto", "contextual", "input", None):
        raise ConfigError(f"gene_embeddings={asked!r}; it must be 'auto', 'contextual', 'input' or None")
    has_layers = model.transformer.n_layers > 0
    if asked == "contextual" and not has_layers:
        raise ConfigError(
            f"{model.card.name} has no layers that could give a gene a context; use gene_embeddings='input'"
        )
    return ("contextual" if has_layers else "input") if asked == "auto" else asked


def _groups(adata: AnnData, groupby: str | None, kind: str | None) -> tuple[NDArray[np.int64] | None, list[str]]:
    if groupby is None:
        return None, []
    if kind != "contextual":
        raise ConfigError("groupby= needs contextual gene embeddings; this model or call gives none")
    if groupby not in adata.obs:
        raise ConfigError(f"groupby={groupby!r} is not a column of obs; there are {', '.join(adata.obs.columns[:10])}")
    column = adata.obs[groupby].astype("category").cat
    return np.asarray(column.codes, dtype=np.int64), [str(c) for c in column.categories]


def _facts(
    model: models.FoundationModel,
    source: counts.CountSource,
    match: genes.GeneMatch,
    job: Job,
    result: Embedding,
    kind: str | None,
) -> dict[str, Any]:
    per_cell = result.per_cell
    total, matched = float(per_cell["total"].sum()), float(per_cell["total_matched"].sum())
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
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": str(model.config._attn_implementation).removeprefix("packed_"),
            "context": {k: v if np.ndim(v) == 0 else "one value per cell" for k, v in job.context.items()},
        },
        "counts": source.report.to_dict(),
        "coverage": match.report.with_counts(matched, total).to_dict(),
        "tokens": {
            "mean": float(per_cell["n_tokens"].mean()) if len(per_cell["n_tokens"]) else 0.0,
            "truncated_cells": int((per_cell["n_dropped"] > 0).sum()),
            "empty_cells": int((per_cell["n_detected"] == 0).sum()),
        },
        "health": health(result.cells).to_dict(),
    }


def _warn(facts: dict[str, Any], adata: AnnData, key: str) -> None:
    found, coverage, tokens = facts["health"], facts["coverage"], facts["tokens"]
    log.info(
        "%s: %d cells; %d genes matched, %.1f %% of the counts; mean cosine %.3f, effective rank %.1f, "
        "%d truncated, %d empty",
        facts["model"],
        adata.n_obs,
        coverage["n_genes"],
        100 * coverage["count_coverage"],
        found["mean_cosine"],
        found["effective_rank"],
        tokens["truncated_cells"],
        tokens["empty_cells"],
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
    adata: AnnData,
    key: str,
    model: models.FoundationModel,
    source: counts.CountSource,
    match: genes.GeneMatch,
    result: Embedding,
    kind: str | None,
    names: list[str],
    facts: dict[str, Any],
) -> None:
    columns = _columns_of_var(adata, source, match)
    varm: dict[str, NDArray[Any]] = {}
    if kind == "input":
        varm[key] = _rows(model.embed_genes(kind="input"), columns)[0]
    elif result.genes is not None and not names:
        varm[key] = _rows(result.genes.finish(), columns)[0]
    elif result.genes is not None:
        each = [_rows(result.genes.finish(g), columns) for g in range(len(names))]
        n_cells = np.stack([n for _, n in each], axis=1)
        vectors = np.stack([v for v, _ in each], axis=1)
        with np.errstate(invalid="ignore"):
            mean = np.nansum(vectors * n_cells[:, :, None], axis=1) / n_cells.sum(axis=1)[:, None]
        varm = {key: mean.astype(np.float32), f"{key}_groups": vectors, f"{key}_n_cells": n_cells}
        facts = {**facts, "groups": names}
    adata.obsm[f"X_{key}"] = result.cells
    adata.obs[f"{key}_n_tokens"] = result.per_cell["n_tokens"]
    for name, array in varm.items():
        adata.varm[name] = array
    runs = dict(adata.uns.get(UNS, {}))
    runs[key] = plain(facts)
    adata.uns[UNS] = runs


def _columns_of_var(adata: AnnData, source: counts.CountSource, match: genes.GeneMatch) -> NDArray[np.int64]:
    """Vocabulary id of each row of ``adata.var``; the counts may have come from ``.raw`` with other genes."""
    if source.where != "raw":
        return np.asarray(match.columns, dtype=np.int64)
    ids = dict(zip(source.var.index, match.columns.tolist(), strict=True))
    return np.array([ids.get(name, -1) for name in adata.var_names], dtype=np.int64)


def _rows(vectors: models.GeneVectors, columns: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gene vectors (n_vars, d), NaN where there is none, and the number of cells behind each (n_vars,)."""
    out = np.full((len(columns), vectors.vectors.shape[1]), np.nan, dtype=np.float32)
    n_cells = np.zeros(len(columns), dtype=np.int64)
    place = {int(i): row for row, i in enumerate(vectors.ids)}
    rows = np.array([place.get(int(c), -1) for c in columns])
    there = (rows >= 0) & (columns >= 0)
    out[there] = vectors.vectors[rows[there]]
    n_cells[there] = vectors.n_cells[rows[there]]
    return out, n_cells
