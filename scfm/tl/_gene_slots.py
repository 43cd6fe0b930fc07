"""From vectors of genes to the slots of ``.varm``: rows by column of the data, groups of cells, coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scfm import counts, genes, models
from scfm.errors import ConfigError
from scfm.get._slots import Slots
from scfm.models._stream import Embedding


def groups_of(adata: AnnData, groupby: str | None, kind: str | None) -> tuple[NDArray[np.int64] | None, list[str]]:
    """The group of each cell (n_obs,), the last one for cells without a label, and the names of the groups.

    Raises
    ------
    ConfigError
        If there is no such column, or the gene vectors do not depend on cells.
    """
    if groupby is None:
        return None, []
    if kind != "contextual":
        raise ConfigError("groupby= needs contextual gene embeddings; this model or call gives none")
    if groupby not in adata.obs:
        raise ConfigError(f"groupby={groupby!r} is not a column of obs; there are {', '.join(adata.obs.columns[:10])}")
    column = adata.obs[groupby].astype("category").cat
    codes = np.asarray(column.codes, dtype=np.int64)
    # cells without a label are a group without a name: they count for the mean over all cells
    return np.where(codes < 0, len(column.categories), codes), [str(c) for c in column.categories]


def coverage(report: genes.MatchReport) -> dict[str, Any]:
    """The matching report without gene names as keys, which an h5ad does not keep apart from paths."""
    twice = [f"{gene}: {', '.join(names)}" for gene, names in report.duplicate_names.items()]
    of_counts = None if report.counts_total is None else report.count_coverage or 0.0
    shares = {"gene_coverage": report.gene_coverage, "count_coverage": of_counts}
    return {**report.to_dict(), "duplicate_names": twice, **shares}


def gene_arrays(
    slots: Slots,
    model: models.FoundationModel,
    columns: NDArray[np.int64],
    result: Embedding,
    kind: str | None,
    names: list[str],
) -> dict[str, NDArray[Any]]:
    """What goes into ``.varm``, by name."""
    if kind == "input":
        return {slots.genes: rows_of(model.embed_genes(kind="input"), columns)[0]}
    if result.genes is None:
        return {}
    sums = result.genes
    if not names:
        return {slots.genes: rows_of(sums.finish(), columns)[0]}
    each = [rows_of(sums.finish(group), columns) for group in range(len(names) + 1)]
    n_cells = np.stack([n for _, n in each], axis=1)
    total = np.zeros(each[0][0].shape)
    for vectors, n in each:
        total += np.nan_to_num(vectors) * n[:, None]
    with np.errstate(invalid="ignore"):
        mean = total / n_cells.sum(axis=1, keepdims=True)
    return {
        slots.genes: mean.astype(np.float32),
        slots.groups: np.stack([vectors for vectors, _ in each[:-1]], axis=1),
        slots.n_cells: n_cells[:, :-1],
    }


def columns_of_var(adata: AnnData, source: counts.CountSource, match: genes.GeneMatch) -> NDArray[np.int64]:
    """Vocabulary id of each row of ``adata.var``; the counts may have come from ``.raw`` with other genes."""
    if source.where != "raw":
        return np.asarray(match.columns, dtype=np.int64)
    ids = dict(zip(source.var.index, match.columns.tolist(), strict=True))
    return np.array([ids.get(name, -1) for name in adata.var_names], dtype=np.int64)


def rows_of(vectors: models.GeneVectors, columns: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gene vectors (n_vars, d), NaN where there is none, and the number of cells behind each (n_vars,)."""
    out = np.full((len(columns), vectors.vectors.shape[1]), np.nan, dtype=np.float32)
    n_cells = np.zeros(len(columns), dtype=np.int64)
    place = {int(i): row for row, i in enumerate(vectors.ids)}
    rows = np.array([place.get(int(c), -1) for c in columns])
    there = (rows >= 0) & (columns >= 0)
    out[there] = vectors.vectors[rows[there]]
    n_cells[there] = vectors.n_cells[rows[there]]
    return out, n_cells
