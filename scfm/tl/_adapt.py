"""`scfm.tl.adapt`: the built-in model, fitted to its corpus and to the user's own cells together."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scfm import models
from scfm.errors import ConfigError
from scfm.models._bag_model import gene_vectors
from scfm.models._registry import locate
from scfm.models._stream import BLOCK_ROWS, Job, tokenize
from scfm.tl._open import Opened, open_cells
from scfm.tokenizers import BagTokenizer
from scfm.training._fit_projection import projection_model
from scfm.training._projection import CellSet, ProjectionRecipe, extend, load_statistics

log = logging.getLogger("scfm")
MOST_SETS = 50
"""More would mean that cells, not sets, are told apart by ``batch_key``."""


def adapt(
    adata: AnnData,
    model: str | Path = "scfm-mini",
    *,
    batch_key: str | None = None,
    n_axes: int = 128,
    max_cells: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    name: str | None = None,
    seed: int = 0,
) -> models.FoundationModel:
    """Fit the built-in model again, to its corpus and these cells together.

    Without labels and within seconds. What the model is given of its corpus are sufficient statistics that ship with it,
    not the cells. The new model embeds, saves and loads like any other; it is fitted to these cells, so that it is never
    zero-shot on them: its fair rival is a PCA of the same cells.

    Parameters
    ----------
    adata
        The cells, with raw counts somewhere; only read.
    model
        ``"scfm-mini"``, or the folder of a model fitted in the same way.
    batch_key
        Column of ``obs``: cells measured together, each set centred by itself while fitting. The vectors of cells are not
        centred by batch; `scfm.tl.align` does that.
    n_axes
        Axes that are fitted; a vector has those for genes far above their usual value behind them.
    max_cells
        Cells of a set that are used; None: as many as of a file of the corpus.
    layer, use_raw, gene_key, gene_matching, orthologues
        See `scfm.tl.embed`.
    name
        Of the new model; None: the model's with ``-adapted`` behind it.
    seed
        Of the sample of cells and of the decomposition.

    Returns
    -------
    FoundationModel
        Pass it to `scfm.tl.embed`, and keep it with its ``save_pretrained``.

    Raises
    ------
    ConfigError
        If the batches, the number of axes or the model do not fit, or too few cells are left.
    CheckpointError
        If the model has no statistics to start from.
    CountsError, GeneMatchError
        If there are no counts or no genes in common.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> model = scfm.tl.adapt(adata)
    >>> scfm.tl.embed(adata, model, progress=False)
    >>> adata.obsm["X_scfm_mini_adapted"].shape
    (700, 192)
    """
    if not isinstance(model, (str, Path)):
        raise ConfigError("adapt needs the name or folder of a model, because its statistics stand beside the weights")
    folder, _ = locate(model)
    loaded = models.load(model)
    recipe = _recipe(loaded, n_axes, max_cells, seed)
    opened = open_cells(
        adata,
        loaded,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        gene_matching=gene_matching,
        orthologues=orthologues,
    )
    batches = _batches(adata, batch_key)
    table = gene_vectors(loaded).astype(np.float64)
    projection = load_statistics(folder, table, _recipe(loaded, table.shape[1], None, seed))
    sets, prints = _read(opened, batches, recipe)
    extended = extend(projection, sets, recipe)
    if extended.axes.shape[1] < n_axes:
        raise ConfigError(f"n_axes={n_axes}: these cells and the corpus span {extended.axes.shape[1]} axes only")
    n_cells = sum(s.values.shape[0] for s in sets)
    log.info("%s: fitted to %d cells in %d sets and the statistics of its corpus", loaded.card.name, n_cells, len(sets))
    card = replace(
        loaded.card,
        name=name or f"{loaded.card.name}-adapted",
        title=f"{loaded.card.name}, fitted again together with {n_cells:,} cells in {len(sets)} sets",
        verified="fitted by scfm.tl.adapt; not zero-shot on the cells it was fitted to",
        checksums={},
        details={
            **loaded.card.details,
            "recipe": asdict(recipe),
            "adapted_to": {"n_cells": n_cells, "n_sets": len(sets)},
        },
    )
    adapted = projection_model(extended, sets, recipe, loaded.vocabulary, card)
    adapted.seen = None if loaded.seen is None else np.union1d(loaded.seen, prints)
    return adapted


def _recipe(model: models.FoundationModel, n_axes: int, max_cells: int | None, seed: int) -> ProjectionRecipe:
    facts = model.card.details.get("recipe")
    if not isinstance(model.tokenizer, BagTokenizer) or facts is None:
        raise ConfigError(f"{model.card.name} was not fitted as a projection; adapt() is for scfm-mini and its like")
    if n_axes < 1:
        raise ConfigError(f"n_axes={n_axes}; a vector has at least one")
    recipe = ProjectionRecipe(**{**facts, "n_axes": n_axes, "seed": seed})
    return recipe if max_cells is None else replace(recipe, max_cells=max_cells)


def _batches(adata: AnnData, batch_key: str | None) -> NDArray[np.int64]:
    """(n,) set of each cell; cells without a batch are a set of their own."""
    if batch_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    if batch_key not in adata.obs:
        raise ConfigError(
            f"batch_key={batch_key!r} is not a column of obs; there are {', '.join(adata.obs.columns[:10])}"
        )
    codes = adata.obs[batch_key].astype("category").cat.codes.to_numpy().astype(np.int64)
    if len(np.unique(codes)) > MOST_SETS:
        raise ConfigError(
            f"batch_key={batch_key!r} has {len(np.unique(codes))} values; at most {MOST_SETS} sets of cells are fitted, name a "
            "column of batches or leave it out"
        )
    return codes


def _read(
    opened: Opened, batches: NDArray[np.int64], recipe: ProjectionRecipe
) -> tuple[list[CellSet], NDArray[np.uint64]]:
    """The values of a sample of the cells, by set, in memory that does not grow with the cells, and their fingerprints."""
    chosen = np.zeros(len(batches), dtype=bool)
    draw = np.random.default_rng(recipe.seed)
    for batch in np.unique(batches):
        rows = np.flatnonzero(batches == batch)
        # shallow cells fall out later, so that a few more are looked at
        chosen[draw.permutation(rows)[: 2 * recipe.max_cells]] = True
    model, genes = opened.model, np.flatnonzero(opened.model.vocabulary.is_gene)
    place = np.full(len(model.vocabulary), -1, dtype=np.int64)
    place[genes] = np.arange(len(genes))
    job = Job(match=opened.match, context=opened.context)
    parts, prints = [], []
    for block in opened.source.blocks(BLOCK_ROWS):
        tokens = tokenize(model, block, job)[chosen[block.start : block.start + block.n_cells]]
        bag = tokens.parts["bag"]
        prints.append(tokens.per_cell["fingerprint"])
        values = np.asarray(bag.values, dtype=np.float64)
        parts.append(sp.csr_matrix((values, place[bag.ids], bag.offsets), shape=(len(bag), len(genes))))
    together = sp.vstack(parts).tocsr()
    measured = opened.match.measured[genes]
    sets = [CellSet(together[batches[chosen] == batch], measured) for batch in np.unique(batches)]
    short = [int(s.sample(recipe).values.shape[0]) for s in sets]
    if min(short) < 2:
        raise ConfigError(
            f"a set of cells has {min(short)} cells with at least {recipe.min_genes} genes of the model; leave shallow or tiny "
            "batches out, or do without batch_key="
        )
    return sets, np.concatenate(prints)
