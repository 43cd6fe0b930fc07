"""`scfm.tl.average_genes`: cells as expression-weighted means of the vectors of their genes, as GenePT-w."""

from __future__ import annotations

import logging
from typing import Any, Literal

from anndata import AnnData
from tqdm.auto import tqdm

from scfm import counts, genes
from scfm.errors import ConfigError
from scfm.evaluation import health
from scfm.get._slots import UNS, Slots, key_of, plain
from scfm.models._gene_files import gene_table, is_table_name
from scfm.models._gene_means import SCALES, scaled, weighted_sums
from scfm.models._model import FoundationModel
from scfm.tl._embed import _check_target
from scfm.tl._embed_genes import Orthologues, facts_of_table, name_of_table
from scfm.tl._open import open_model

log = logging.getLogger("scfm")

BLOCK_ROWS = 1024


def average_genes(
    adata: AnnData,
    source: Any,
    *,
    scale: Literal["unit", "n_genes", "weights", "matched_weights"] = "unit",
    target_sum: float = 1e4,
    key_added: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Orthologues = None,
    species: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
    progress: bool = True,
) -> AnnData | None:
    """Embed cells as the mean of their genes' vectors, weighted by expression; with GenePT's vectors: GenePT-w.

    The weight of a gene is log(1 + its counts per ``target_sum``); totals are over all columns of the data, not over the
    matched ones. A gene without a vector adds nothing.

    Parameters
    ----------
    adata
        Annotated data with raw counts somewhere; in memory, backed, or on dask.
    source
        Vectors of genes, as in `scfm.tl.embed_genes`; of a model its input vectors.
    scale
        What the weighted sum of a cell is divided by: its own length (``unit``, the paper's), the number of columns of
        the data (``n_genes``, the authors' notebook), or the sum of the weights of all (``weights``) or of the matched
        genes (``matched_weights``). The direction is the same in all of them.
    target_sum
        Counts that a cell is scaled to.
    key_added
        Name of the slots; None: that of the table's file or the model.
    layer, use_raw, gene_key, gene_matching, orthologues
        See `scfm.tl.embed`. Under ``resolve`` counts of several columns of one gene are added up before the logarithm;
        under ``published`` names must be equal and each column counts on its own.
    species, table_key
        See `scfm.tl.embed_genes`.
    copy
        Return a copy instead of writing into ``adata``.
    progress
        Show a progress bar.

    Returns
    -------
    None or the copy. Written: ``.obsm["X_<key>"]`` (n_obs, d) float32, zeros for a cell that expresses no gene with a
    vector (a warning says how many), and ``.uns["scfm"]["<key>"]``.

    Raises
    ------
    CountsError, GeneMatchError, CheckpointError, ConfigError
        Before the long work, if something does not fit.

    References
    ----------
    Chen & Zou, *Simple and effective embedding model for single-cell biology built from ChatGPT*, Nature Biomedical
    Engineering 2024.
    """
    _check_target(adata, copy=copy, verb="average_genes")
    if scale not in SCALES:
        raise ConfigError(f"scale={scale!r} is not one of {', '.join(SCALES)}")
    if target_sum <= 0:
        raise ConfigError(f"target_sum={target_sum}; counts are scaled to a positive number, usually 10,000")
    given = source if is_table_name(source) else open_model(source)
    table = gene_table(given, key=table_key, species=species)
    name = given.card.name if isinstance(given, FoundationModel) else name_of_table(source, table)
    key = key_of(key_added or f"{name}_cells")
    found = counts.find(adata, layer=layer, use_raw=use_raw)
    match = genes.match(found.var, table.vocabulary, gene_key=gene_key, policy=gene_matching, orthologues=orthologues)
    with tqdm(total=adata.n_obs, desc=name, unit="cell", disable=not progress) as bar:
        sums = weighted_sums(found.blocks(BLOCK_ROWS), match, table, target_sum, bar)
    of_counts = {"matched": float(sums.counts_matched.sum()), "total": float(sums.counts.sum())}
    facts = facts_of_table(table, match, of_counts)
    vectors = scaled(sums, scale)
    n_zero = int((~vectors.any(axis=1)).sum())
    facts["parameters"] |= {"scale": scale, "target_sum": target_sum}
    facts |= {
        "counts": found.report.to_dict(),
        "coverage": {**facts["coverage"], "weight_coverage": _share(sums.matched.sum(), sums.weights.sum())},
        "tokens": {"empty_cells": n_zero},
        "health": health(vectors).to_dict(),
    }
    coverage = facts["coverage"]
    log.info(
        "%s: %d cells; %d genes matched, %.1f %% of the counts, %.1f %% of the log-normalised expression",
        table.source,
        adata.n_obs,
        coverage["n_genes"],
        100 * coverage["count_coverage"],
        100 * coverage["weight_coverage"],
    )
    if n_zero:
        log.warning(
            "%d cells express no gene with a vector; their rows are zero. Leave them out before sc.pp.neighbors: "
            "adata = adata[adata.obsm['%s'].any(axis=1)].copy()",
            n_zero,
            Slots(key).cells,
        )
    return write_cells(adata, key, vectors, facts, copy=copy)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def write_cells(adata: AnnData, key: str, vectors: Any, facts: dict[str, Any], *, copy: bool) -> AnnData | None:
    """Write vectors of cells and what is known of them; what an earlier run under the same key left goes."""
    target = adata.copy() if copy else adata
    slots = Slots(key)
    runs = {**target.uns.get(UNS, {}), key: plain(facts)}
    target.obsm[slots.cells] = vectors
    for column in (slots.n_tokens, slots.spread):
        if column in target.obs:
            del target.obs[column]
    for name in slots.of_genes:
        if name in target.varm:
            del target.varm[name]
    target.uns[UNS] = runs
    return target if copy else None
