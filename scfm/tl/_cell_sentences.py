"""Cells as sentences of gene names, and vectors of sentences by any text encoder: GenePT-s."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scfm import counts
from scfm.errors import ConfigError
from scfm.evaluation import health
from scfm.get._slots import key_of
from scfm.tl._cell_means import write_cells
from scfm.tl._embed import _check_target
from scfm.tokenizers._sentences import N_GENES, PREFIX, sentences

log = logging.getLogger("scfm")


def cell_sentences(
    adata: AnnData,
    *,
    n_genes: int = N_GENES,
    prefix: str = PREFIX,
    gene_key: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
) -> pd.Series:
    """Write every cell as a sentence: its genes in the order of their expression, as GenePT-s.

    Parameters
    ----------
    adata
        Annotated data with raw counts somewhere; it is only read.
    n_genes
        At most so many genes; zeros are left out, ties stand in the order of the columns.
    prefix
        Stands before the genes.
    gene_key
        Column of ``var`` with the names; None: ``var_names``. Text encoders know symbols rather than ids.
    layer, use_raw
        Where the counts are; None: found.

    Returns
    -------
    One text per cell, by ``obs_names``.

    Raises
    ------
    CountsError, ConfigError
        If there are no usable counts, or no such column.
    """
    found = counts.find(adata, layer=layer, use_raw=use_raw)
    if gene_key is not None and gene_key not in found.var:
        raise ConfigError(
            f"gene_key={gene_key!r} is not in var; its columns are {', '.join(map(str, found.var.columns))}"
        )
    names = [str(n) for n in (found.var.index if gene_key is None else found.var[gene_key])]
    texts = [text for block in found.blocks() for text in sentences(block, names, n_genes, prefix)]
    return pd.Series(texts, index=adata.obs_names, name="sentence", dtype=object)


def embed_sentences(
    adata: AnnData,
    encode: Callable[[Sequence[str]], ArrayLike] | Mapping[str, ArrayLike] | ArrayLike,
    *,
    key_added: str = "genept_s",
    n_genes: int = N_GENES,
    prefix: str = PREFIX,
    gene_key: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Embed cells by a text encoder that reads them as sentences (`cell_sentences`); with OpenAI's: GenePT-s.

    Parameters
    ----------
    adata
        Annotated data with raw counts somewhere.
    encode
        A function from n texts to (n, d) numbers, such as the ``encode`` of a sentence-transformers model; or vectors
        that were computed before: a dictionary by sentence, or an (n_obs, d) array in the order of the cells.
    key_added
        Name of the slots.
    n_genes, prefix, gene_key, layer, use_raw
        See `cell_sentences`.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None or the copy. Written: ``.obsm["X_<key>"]`` (n_obs, d) float32, NaN for cells that express no gene, and
    ``.uns["scfm"]["<key>"]``.

    Raises
    ------
    CountsError, ConfigError
        If there are no usable counts, or the vectors do not belong to the sentences.
    """
    _check_target(adata, copy=copy, verb="embed_sentences")
    texts = cell_sentences(adata, n_genes=n_genes, prefix=prefix, gene_key=gene_key, layer=layer, use_raw=use_raw)
    there = np.flatnonzero((texts != prefix).to_numpy())
    found = _vectors(encode, [*texts.iloc[there]], there, adata.n_obs)
    vectors = np.full((adata.n_obs, found.shape[1]), np.nan, dtype=np.float32)
    vectors[there] = found
    n_empty = adata.n_obs - len(there)
    if n_empty:
        log.warning("%d cells express no gene; their rows are NaN", n_empty)
    facts = {
        "model": getattr(encode, "__qualname__", type(encode).__name__),
        "family": "text encoder",
        "version": version("scfm"),
        "parameters": {"n_genes": n_genes, "prefix": prefix},
        "tokens": {"empty_cells": n_empty},
        "health": health(vectors).to_dict(),
    }
    return write_cells(adata, key_of(key_added), vectors, facts, copy=copy)


def _vectors(encode: Any, texts: list[str], rows: NDArray[np.int64], n_cells: int) -> NDArray[np.float32]:
    """(n, d) vectors of the sentences."""
    if callable(encode):
        found = np.asarray(encode(texts), dtype=np.float32)
        expected = len(texts)
    elif isinstance(encode, Mapping):
        missing = [text for text in texts if text not in encode]
        if missing:
            raise ConfigError(
                f"{len(missing):,} of {len(texts):,} sentences have no vector, the first {missing[0][:80]!r}...; make them "
                "with scfm.tl.cell_sentences with the same n_genes= and prefix="
            )
        found, expected = np.asarray([encode[text] for text in texts], dtype=np.float32), len(texts)
    else:
        found, expected = np.asarray(encode, dtype=np.float32), n_cells
    if found.ndim != 2 or len(found) != expected:
        raise ConfigError(f"the vectors have shape {found.shape}; one row for each of {expected:,} cells is needed")
    return found[rows] if expected == n_cells != len(texts) else found
