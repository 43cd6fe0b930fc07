"""`scfm.tl.embed_genes`: vectors of genes, from a model, from a table, or from sequences."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts, genes, models
from scfm.errors import ConfigError, CountsError
from scfm.evaluation import health
from scfm.get._slots import UNS, Slots, key_of, plain
from scfm.models._dask import embed_dask
from scfm.models._gene_files import gene_table, is_table_name
from scfm.models._gene_table import GeneTable
from scfm.models._stream import BLOCK_ROWS, Job, embed_blocks
from scfm.tl._embed import _check_target, _gene_kind
from scfm.tl._gene_slots import columns_of_var, coverage, gene_arrays, groups_of, rows_of
from scfm.tl._open import Opened, open_cells, open_model

log = logging.getLogger("scfm")

KINDS = ("auto", "contextual", "input")
Orthologues: TypeAlias = Literal[True] | str | Path | pd.DataFrame | None


def embed_genes(
    adata: AnnData,
    source: Any,
    *,
    kind: Literal["auto", "contextual", "input"] = "auto",
    groupby: str | None = None,
    key_added: str | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Orthologues = None,
    species: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    context: Mapping[str, Any] | None = None,
    hidden_layer: int | None = None,
    checkpoint: str | None = None,
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
    """Give every gene a vector, from a model or from a table.

    Parameters
    ----------
    adata
        Annotated data. It is only read, except for the slots written at the end.
    source
        A model, as in `scfm.tl.embed`, or a table of vectors by gene, as `scfm.models.gene_table` reads it: Gene2vec text,
        a GenePT pickle, csv, tsv, parquet, npz, h5ad, a data frame, a dictionary, or what `scfm.tl.embed_sequences`
        returned.
    kind
        For models. ``contextual``: the mean state of a gene over the cells where it is a token; ``input``: the model's
        own vector of the gene, for which no counts are needed; ``auto``: contextual where the model has layers.
    groupby
        Column of ``obs``: contextual gene vectors for each of its groups too.
    key_added
        Name of the slots; None: the model's name with ``_genes`` behind it, or the name of the table's file.
    gene_key, gene_matching, orthologues
        See `scfm.tl.embed`. With orthologues human vectors serve mouse data, and the other way round.
    species
        Of the genes of a table; None: recognised by their names.
    table_key
        For an AnnData of cells as table: take ``varm[table_key]``.
    layer, use_raw, context, hidden_layer, checkpoint, batch_tokens, device, dtype, attn_implementation
        For models, see `scfm.tl.embed`.
    family, revision, seed
        For models, see `scfm.tl.embed`.
    copy
        Return a copy instead of writing into ``adata``.
    progress
        Show a progress bar.

    Returns
    -------
    None or the copy. Written:

    - ``.varm["<key>"]`` (n_vars, d) float32, NaN for genes that the source does not have; with ``groupby``
      ``.varm["<key>_groups"]`` (n_vars, groups, d) and ``.varm["<key>_n_cells"]`` (n_vars, groups), the cells behind each;
    - ``.uns["scfm"]["<key>"]`` what was found and done, with the coverage (`scfm.get.report`).

    Raises
    ------
    CountsError, GeneMatchError, TokenizerError, CheckpointError, ConfigError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scfm.tl.embed_genes(adata, "scfm-mini", kind="input")
    >>> scfm.get.nearest_genes(adata, "scfm_mini_genes", "CD3E", n=3)["neighbour"].tolist()  # doctest: +SKIP
    """
    _check_target(adata, copy=copy, verb="embed_genes")
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if is_table_name(source):
        if groupby is not None:
            raise ConfigError(
                "groupby= needs contextual gene embeddings, from a model; a table has one vector per gene"
            )
        table = gene_table(source, key=table_key, species=species)
        key = _free_key(adata, key_added or name_of_table(source, table))
        match = genes.match(
            adata.var, table.vocabulary, gene_key=gene_key, policy=gene_matching, orthologues=orthologues
        )
        facts = facts_of_table(table, match, _with_counts(adata, match, layer, use_raw))
        return _finish(adata, key, {Slots(key).genes: table.rows(match.columns)}, facts, copy=copy)
    loaded = open_model(
        source,
        checkpoint=checkpoint,
        family=family,
        revision=revision,
        context=context,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )
    key = _free_key(adata, key_added or f"{loaded.card.name}_genes")
    chosen = _gene_kind(kind, loaded)
    groups, names = groups_of(adata, groupby, chosen)
    if chosen == "input":
        in_varm, facts = _own_vectors(adata, loaded, Slots(key), gene_key, gene_matching, orthologues)
        return _finish(adata, key, in_varm, facts, copy=copy)
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
    job = Job(
        match=opened.match,
        context=opened.context,
        seed=seed,
        hidden_layer=hidden_layer,
        batch_tokens=batch_tokens,
        genes=True,
        groups=groups,
    )
    in_varm, facts = _means_over_cells(adata, opened, job, Slots(key), names, progress=progress)
    return _finish(adata, key, in_varm, facts, copy=copy)


def _own_vectors(
    adata: AnnData,
    model: models.FoundationModel,
    slots: Slots,
    gene_key: str | None,
    gene_matching: Literal["resolve", "published"],
    orthologues: Orthologues,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What goes into ``.varm``, and the facts, from a model's input vectors."""
    match = genes.match(adata.var, model.vocabulary, gene_key=gene_key, policy=gene_matching, orthologues=orthologues)
    vectors, _ = rows_of(model.embed_genes(kind="input"), np.asarray(match.columns, dtype=np.int64))
    parameters = {"gene_matching": match.report.policy, "gene_embeddings": "input"}
    return {slots.genes: vectors}, {
        **_named(model),
        "parameters": parameters,
        "coverage": coverage(match.report),
    }


def _means_over_cells(
    adata: AnnData, opened: Opened, job: Job, slots: Slots, groups: list[str], *, progress: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What goes into ``.varm``, and the facts, from one pass over the cells."""
    model, source = opened.model, opened.source
    with tqdm(total=adata.n_obs, desc=model.card.name, unit="cell", disable=not progress) as bar:
        result = (
            embed_dask(model, source, job, bar)
            if source.is_dask
            else embed_blocks(model, source.blocks(BLOCK_ROWS), job, bar)
        )
    columns = columns_of_var(adata, source, opened.match)
    present, matched = (float(result.per_cell[n].sum()) for n in ("present", "total_matched"))
    facts = {
        **_named(model),
        "parameters": {
            "hidden_layer": model.config.hidden_layer if job.hidden_layer is None else job.hidden_layer,
            "gene_matching": opened.match.report.policy,
            "gene_embeddings": "contextual",
            "seed": job.seed,
        },
        "counts": source.report.to_dict(),
        "coverage": coverage(opened.match.report.with_counts(matched, present)),
        **({"groups": groups} if groups else {}),
    }
    return gene_arrays(slots, model, columns, result, "contextual", groups), facts


def _free_key(adata: AnnData, name: str) -> str:
    """The key of a result; raise if the vectors of cells have it, whose report would be lost."""
    key = key_of(name)
    if Slots(key).cells in adata.obsm:
        raise ConfigError(
            f"key {key!r} is that of cell vectors (adata.obsm[{Slots(key).cells!r}]); name the gene vectors otherwise, for "
            f"example key_added={key + '_genes'!r}"
        )
    return key


def name_of_table(source: Any, table: GeneTable) -> str:
    """The key of a table's vectors where none is given: the name of its file."""
    if isinstance(source, str | Path):
        return Path(source).name.split(".")[0]
    return "genes" if table.source.startswith(("a ", "an ", "the ")) else Path(table.source).name.split(".")[0]


def _with_counts(adata: AnnData, match: genes.GeneMatch, layer: str | None, use_raw: bool | None) -> dict[str, float]:
    """Sum of the counts of matched and of all columns; empty where no counts of these columns are in memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", counts.CountsWarning)
            found = counts.find(adata, layer=layer, use_raw=use_raw)
    except CountsError:
        if layer is not None or use_raw is not None:
            raise
        return {}
    if found.is_backed or found.is_dask or found.where == "raw":
        return {}
    per_column = np.zeros(adata.n_vars)
    for block in found.blocks():
        per_column += np.bincount(block.indices, weights=block.data, minlength=adata.n_vars)
    return {"matched": float(per_column[match.columns >= 0].sum()), "total": float(per_column.sum())}


def facts_of_table(table: GeneTable, match: genes.GeneMatch, of_counts: Mapping[str, float]) -> dict[str, Any]:
    """What a report says of a table and how it fits."""
    report = match.report.with_counts(**of_counts) if of_counts else match.report
    used = match.columns[match.columns >= 0]
    return {
        "model": table.source,
        "family": "table of gene vectors",
        "version": version("scfm"),
        "parameters": {"gene_matching": match.report.policy, "gene_embeddings": "table", "species": table.species},
        "coverage": {
            **coverage(report),
            "n_table_genes": len(table),
            "n_repeated_in_table": table.n_repeated,
            "n_zero_vectors": int((~table.vectors[used].any(axis=1)).sum()),
        },
    }


def _named(model: models.FoundationModel) -> dict[str, Any]:
    return {"model": model.card.name, "family": model.card.family, "version": version("scfm")}


def _finish(
    adata: AnnData, key: str, in_varm: Mapping[str, NDArray[Any]], facts: dict[str, Any], *, copy: bool
) -> AnnData | None:
    """Write the slots; those of an earlier run under the same key go."""
    slots = Slots(key)
    vectors = in_varm[slots.genes]
    figures = health(vectors)
    facts = {
        **facts,
        "health": {
            "n_genes": figures.n_cells,
            "n_without": figures.n_empty,
            "mean_cosine": figures.mean_cosine,
            "effective_rank": figures.effective_rank,
        },
    }
    log.info(
        "%s: %d of %d genes have a vector of %d numbers",
        facts["model"],
        figures.n_cells - figures.n_empty,
        figures.n_cells,
        vectors.shape[1],
    )
    target = adata.copy() if copy else adata
    runs = {**target.uns.get(UNS, {}), key: plain(facts)}
    for name in slots.of_genes:
        if name in in_varm:
            target.varm[name] = in_varm[name]
        elif name in target.varm:
            del target.varm[name]
    target.uns[UNS] = runs
    return target if copy else None
