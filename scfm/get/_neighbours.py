"""Which genes are alike? Neighbours by the cosine of their vectors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.errors import ConfigError, GeneMatchError
from scfm.get._slots import UNS, Slots, key_of


def nearest_genes(
    adata: Any, key: str, genes: str | Sequence[str], n: int = 10, *, group: str | None = None
) -> pd.DataFrame:
    """The genes whose vectors point in the most similar direction.

    Parameters
    ----------
    adata
        Annotated data with vectors of genes, from `scfm.tl.embed_genes` or `scfm.tl.embed`.
    key
        Under which they stand in ``.varm``.
    genes
        Names in ``var_names``, or in a column of texts of ``var``.
    n
        Neighbours per gene.
    group
        Take the vectors of this group of cells, where they were made with ``groupby``.

    Returns
    -------
    One row per gene and neighbour: ``gene``, ``rank`` (from 1), ``neighbour``, ``cosine``; the gene itself and genes
    without a vector (NaN, or zeros) are left out.

    Raises
    ------
    ConfigError
        If there are no such vectors.
    GeneMatchError
        If a gene is not in the data, or has no vector.

    Examples
    --------
    >>> scfm.get.nearest_genes(adata, "genept", ["CD3E", "LYZ"], n=3)  # doctest: +SKIP
    """
    if n < 1:
        raise ConfigError(f"n={n}; at least one neighbour is needed")
    vectors = _vectors(adata, key_of(key), group)
    lengths = np.linalg.norm(vectors, axis=1)
    there = np.flatnonzero(lengths > 0)  # False for NaN
    unit = vectors[there] / lengths[there, None]
    place = np.full(len(vectors), -1, dtype=np.int64)
    place[there] = np.arange(len(there))
    asked = [genes] if isinstance(genes, str) else [*genes]
    rows = [_row_of(adata.var, gene) for gene in asked]
    without = [gene for gene, row in zip(asked, rows, strict=True) if place[row] < 0]
    if without:
        raise GeneMatchError(
            f"{', '.join(without[:5])} {'has' if len(without) == 1 else 'have'} no vector under {key!r} ({len(there):,} of "
            f"{adata.n_vars:,} genes have one); scfm.get.report(adata, {key!r})['coverage'] tells what was matched"
        )
    names = np.asarray(adata.var_names)
    parts = []
    for gene, row in zip(asked, rows, strict=True):
        cosines = np.clip(unit @ unit[place[row]], -1.0, 1.0)
        cosines[place[row]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(n, len(there) - 1)]
        parts.append(
            pd.DataFrame(
                {
                    "gene": gene,
                    "rank": np.arange(1, len(best) + 1),
                    "neighbour": names[there[best]],
                    "cosine": cosines[best],
                }
            )
        )
    columns = ["gene", "rank", "neighbour", "cosine"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _vectors(adata: Any, key: str, group: str | None) -> NDArray[np.float64]:
    slots = Slots(key)
    slot = slots.genes if group is None else slots.groups
    if slot not in adata.varm:
        extra = " with groupby=" if group is not None else ""
        raise ConfigError(
            f"adata.varm has no {slot!r} (there are {', '.join(adata.varm) or 'none'}); make vectors with "
            f"scfm.tl.embed_genes(adata, ...{extra}) first"
        )
    held = np.asarray(adata.varm[slot], dtype=np.float64)
    if group is None:
        return held
    names = [str(name) for name in adata.uns.get(UNS, {}).get(key, {}).get("groups", [])]
    if group not in names:
        raise ConfigError(f"group={group!r} is not one of {', '.join(names) or 'none'}")
    return held[:, names.index(group)]


def _row_of(var: pd.DataFrame, gene: str) -> int:
    """Row of a gene by its name, else by the first column of texts that has it."""
    texts = [var[c].astype(str) for c in var.columns if not pd.api.types.is_numeric_dtype(var[c].dtype)]
    for names in (var.index, *texts):
        found = np.flatnonzero(np.asarray(names) == gene)
        if len(found):
            return int(found[0])
    close = difflib.get_close_matches(gene, [str(name) for name in var.index], n=3, cutoff=0.6)
    advice = f"; is it {' or '.join(close)}?" if close else ", nor in another column of var"
    raise GeneMatchError(f"{gene!r} is not among the var_names{advice}")
