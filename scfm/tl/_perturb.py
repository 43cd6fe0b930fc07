"""`scfm.tl.perturb`: genes deleted or overexpressed in silico, beside a null and a linear rival."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError, GeneMatchError, require
from scfm.evaluation._perturbation import LinearEffect, empirical_p, matched_genes
from scfm.models._perturbation import Effect, Genes, Kind, Perturber, taking_part
from scfm.models._run import Budget
from scfm.models._stream import BLOCK_ROWS, Job, tokenize
from scfm.tl._open import Opened, open_cells, open_model
from scfm.tokenizers import Tokens, concatenate

CHUNK = 128
"""Cells whose states are held at a time."""


@dataclass(frozen=True, repr=False)
class Perturbation:
    """What the edits did; prints as the table of genes and what it shows.

    Parameters
    ----------
    cells
        A row per gene and cell that took part: ``gene``, ``cell`` (its name), ``cosine`` between the cell before and
        after (1 = no effect), ``pca_cosine`` of the same edit among the principal components of these cells, and
        ``towards_<state>``, how much closer the cell came to a state (difference of cosines).
    genes
        A row per gene: ``n_cells``, means of the columns above, ``null_cosine`` (mean over the null genes), ``n_null``,
        ``p_value`` (empirical, one-sided: null genes move cells at least as far), ``p_adjusted``
        (Benjamini-Hochberg), and the same for the principal components.
    kind, model
        What was done, and by which model.
    """

    cells: pd.DataFrame
    genes: pd.DataFrame
    kind: str
    model: str

    def __repr__(self) -> str:
        return f"{self.genes.round(4).to_string()}\n\n{self.verdict}"

    @property
    def verdict(self) -> str:
        """What the numbers show, in one or two sentences."""
        table = self.genes
        what = "deletion" if self.kind == "delete" else "overexpression"
        if not table["n_null"].any():
            return f"{what} in {self.model}: without null genes there is nothing to compare the effects with."
        n = int(table["p_adjusted"].notna().sum())
        ours, linear = (int((table[c] < 0.05).sum()) for c in ("p_adjusted", "pca_p_adjusted"))
        text = (
            f"{what} in {self.model}: {ours} of {n} genes move the cells more than genes of like expression do "
            f"(adjusted p < 0.05); in the principal components of these cells {linear} of {n}."
        )
        both = table[["cosine", "pca_cosine"]].dropna()
        if len(both) > 2:
            agreement = both["cosine"].corr(both["pca_cosine"], method="spearman")
            text += f" Rank correlation of the two effects over genes: {agreement:.2f}."
        return text


def perturb(
    adata: AnnData,
    genes: str | Sequence[str | Sequence[str]],
    kind: Kind = "delete",
    model: str | Path | models.FoundationModel = "scfm-mini",
    *,
    null: int = 100,
    towards: str | Mapping[str, NDArray[np.floating[Any]]] | None = None,
    checkpoint: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Perturbation:
    """Delete or overexpress genes in silico, and measure how far the cells move.

    The edit is made in the tokens of each cell: a deleted gene's token goes (or gets the value of an absent gene); an
    overexpressed gene comes first in a ranked list, or gets the highest value of the cell. A deletion is made in the
    cells that have the gene as a token, an overexpression in all of them; where a list is full, the genes that had to
    make room are left out of the cell before, too.

    Parameters
    ----------
    adata
        The cells, with raw counts somewhere; only read. The work is cells times (genes + null genes).
    genes
        Names of columns, or of genes of the model; a tuple of names is edited together.
    kind
        ``"delete"`` or ``"overexpress"``.
    model
        See `scfm.tl.embed`, as for all that is not named here.
    null
        Random genes of like mean expression that are edited in the same way for each gene; 0: none.
    towards
        A column of ``obs``, whose values become states at the mean vector of their cells; or (d,) vectors by name.
    seed
        Of the null genes and of everything random in the tokenizer.

    Returns
    -------
    Perturbation
        Nothing is written into ``adata``.

    Raises
    ------
    GeneMatchError
        If a gene is unknown to the data and to the model, or in no cell.
    ConfigError, CountsError, TokenizerError, CheckpointError
        Before the long work, if something does not fit.

    Notes
    -----
    The effect of an edit alone says little: a highly expressed gene moves every cell. That is why each gene stands beside
    genes of like expression, and beside the same edit among plain principal components. ``cosine`` is defined in
    `scfm.models._perturbation.Perturber`.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()[:50].copy()
    >>> result = scfm.tl.perturb(adata, ["CD79A", "LYZ"], null=10, progress=False)
    >>> list(result.genes.index)
    ['CD79A', 'LYZ']
    """
    if kind not in ("delete", "overexpress"):
        raise ConfigError(f"kind={kind!r}; it must be 'delete' or 'overexpress'")
    if null < 0:
        raise ConfigError(f"null={null}; it must be a number of genes, 0 for none")
    require("sklearn", "metrics of embeddings need scikit-learn", "robustness")
    loaded = open_model(
        model, checkpoint=checkpoint, family=family, revision=revision, context=context, device=device, dtype=dtype
    )
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
    wanted = _edits(genes, opened)
    tokens, expression = _read(opened, seed)
    missing = [name for name, edit in wanted.items() if not len(taking_part(tokens, edit, kind))]
    if missing:
        raise GeneMatchError(
            f"no cell has {', '.join(missing[:5])} among its tokens, so there is nothing to {kind}; choose other cells or genes"
        )
    states = _states(towards, adata, loaded, tokens, pooling, hidden_layer)
    nulls = _null_edits(wanted.values(), expression[:, : loaded.tokenizer.n_ids], null, seed)
    edits = list(dict.fromkeys([*wanted.values(), *(edit for drawn in nulls.values() for edit in drawn)]))
    effects = _apply(loaded, tokens, edits, kind, pooling, hidden_layer, states, progress=progress)
    linear = LinearEffect.fit(expression, seed=seed)
    return _tables(wanted, nulls, effects, linear, adata.obs_names, kind, loaded.card.name)


def _edits(genes: str | Sequence[str | Sequence[str]], opened: Opened) -> dict[str, Genes]:
    """Vocabulary ids of each edit by its name: those of columns of the data, else of genes of the model."""
    columns = dict(zip(opened.source.var.index.astype(str), opened.match.columns.tolist(), strict=True))
    vocabulary = opened.model.vocabulary
    names = {**vocabulary.index, **{s: i for i, s in enumerate(vocabulary.symbols or ()) if s}}
    known = {**names, **{name: i for name, i in columns.items() if i >= 0}}
    is_gene = vocabulary.is_gene & (np.arange(len(vocabulary)) < opened.model.tokenizer.n_ids)
    out: dict[str, Genes] = {}
    for entry in [genes] if isinstance(genes, str) else genes:
        members = (entry,) if isinstance(entry, str) else tuple(entry)
        unknown = [g for g in members if g not in known or not is_gene[known[g]]]
        if unknown:
            raise GeneMatchError(
                f"{', '.join(unknown[:5])}: neither a matched column of the data (e.g. "
                f"{', '.join(list(columns)[:3])}) nor a gene of {opened.model.card.name} (e.g. "
                f"{', '.join(vocabulary.display(np.flatnonzero(vocabulary.is_gene)[:3]))})"
            )
        out["+".join(members)] = tuple(known[g] for g in members)
    if not out:
        raise ConfigError("genes= is empty; name at least one gene")
    return out


def _read(opened: Opened, seed: int) -> tuple[Tokens, csr_matrix]:
    """The tokens of all cells, and their log1p expression per 10,000 counts (n, V)."""
    job = Job(match=opened.match, context=opened.context, seed=seed)
    columns = np.asarray(opened.match.columns, dtype=np.int64)
    size = len(opened.model.vocabulary)
    tokens, rows = [], []
    for block in opened.source.blocks(BLOCK_ROWS):
        tokens.append(tokenize(opened.model, block, job))
        cell = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
        ids = columns[block.indices]
        total = np.bincount(cell, block.data, minlength=block.n_cells) if block.totals is None else block.totals
        there = ids >= 0
        scaled = block.data[there] * (1e4 / np.maximum(total, 1))[cell[there]]
        part = csr_matrix((scaled, (cell[there], ids[there])), shape=(block.n_cells, size))
        rows.append(part.log1p())
    return concatenate(tokens), csr_matrix(vstack(rows))


def _states(
    towards: str | Mapping[str, NDArray[np.floating[Any]]] | None,
    adata: AnnData,
    model: models.FoundationModel,
    tokens: Tokens,
    pooling: str | None,
    hidden_layer: int | None,
) -> dict[str, NDArray[np.floating[Any]]]:
    width = model.embedding_width(pooling, hidden_layer)
    if towards is None:
        return {}
    if isinstance(towards, str):
        if towards not in adata.obs:
            raise ConfigError(
                f"towards={towards!r} is not a column of obs; there are {', '.join(adata.obs.columns[:10])}"
            )
        vectors = model.embed_block(tokens, Budget("auto", model.device), pooling, hidden_layer)
        labels = adata.obs[towards].astype("category").cat
        codes = np.asarray(labels.codes)
        return {str(name): np.nanmean(vectors[codes == i], axis=0) for i, name in enumerate(labels.categories)}
    wrong = {name: np.shape(v) for name, v in towards.items() if np.shape(v) != (width,)}
    if wrong:
        raise ConfigError(f"states are vectors of shape ({width},) in this model; found {wrong}")
    return {name: np.asarray(v) for name, v in towards.items()}


def _null_edits(edits: Any, expression: csr_matrix, n: int, seed: int) -> dict[Genes, list[Genes]]:
    """For each edit, edits of as many random genes of like expression."""
    mean = np.asarray(expression.mean(axis=0)).ravel()
    edits = list(edits)
    exclude = np.array(sorted({g for edit in edits for g in edit}))
    out: dict[Genes, list[Genes]] = {}
    for edit in edits:
        # the draw depends on the gene, not on what else is asked
        rng = np.random.default_rng([seed, *edit])
        drawn = [rng.permutation(matched_genes(mean, gene, n, exclude, rng)).tolist() for gene in edit]
        out[edit] = [tuple(together) for together in zip(*drawn, strict=False) if len(set(together)) == len(edit)]
    return out


def _apply(
    model: models.FoundationModel,
    tokens: Tokens,
    edits: list[Genes],
    kind: Kind,
    pooling: str | None,
    hidden_layer: int | None,
    states: Mapping[str, NDArray[np.floating[Any]]],
    *,
    progress: bool,
) -> dict[Genes, Effect]:
    parts: dict[Genes, list[Effect]] = {edit: [] for edit in edits}
    with tqdm(
        total=len(tokens) * len(edits), desc=f"{model.card.name} {kind}", unit="cell", disable=not progress
    ) as bar:
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            perturber = Perturber(model, chunk, pooling, hidden_layer, states)
            for edit in edits:
                effect = perturber.apply(edit, kind)
                parts[edit].append(Effect(effect.cells + start, effect.cosine, effect.shifts))
                bar.update(len(chunk))
    return {edit: _joined(found) for edit, found in parts.items()}


def _joined(parts: Sequence[Effect]) -> Effect:
    return Effect(
        np.concatenate([p.cells for p in parts]),
        np.concatenate([p.cosine for p in parts]),
        {name: np.concatenate([p.shifts[name] for p in parts]) for name in parts[0].shifts},
    )


def _tables(
    wanted: Mapping[str, Genes],
    nulls: Mapping[Genes, list[Genes]],
    effects: Mapping[Genes, Effect],
    linear: LinearEffect,
    names: pd.Index,
    kind: Kind,
    model: str,
) -> Perturbation:
    from scipy.stats import false_discovery_control

    def linear_of(edit: Genes) -> NDArray[np.float64]:
        return linear.cosine(effects[edit].cells, np.array(edit), kind)

    cells, rows = [], []
    for name, edit in wanted.items():
        effect, pca = effects[edit], linear_of(edit)
        shifts = {f"towards_{state}": values for state, values in effect.shifts.items()}
        table = pd.DataFrame({"cosine": effect.cosine, "pca_cosine": pca, **shifts})
        cells.append(table.assign(gene=name, cell=names[effect.cells])[["gene", "cell", *table.columns]])
        means = table.mean()
        null = np.array([*_means(effects[e].cosine for e in nulls[edit])])
        pca_null = np.array([*_means(linear_of(e) for e in nulls[edit])])
        rows.append(
            {
                "n_cells": len(effect.cells),
                "cosine": means["cosine"],
                "null_cosine": np.nanmean(null) if len(null) else np.nan,
                "n_null": int(np.count_nonzero(~np.isnan(null))),
                "p_value": empirical_p(means["cosine"], null),
                "pca_cosine": means["pca_cosine"],
                "pca_null_cosine": np.nanmean(pca_null) if len(pca_null) else np.nan,
                "pca_p_value": empirical_p(means["pca_cosine"], pca_null),
                **{c: means[c] for c in shifts},
            }
        )
    table = pd.DataFrame(rows, index=pd.Index([*wanted], name="gene"))
    for prefix in ("", "pca_"):
        p = table[f"{prefix}p_value"]
        adjusted = pd.Series(np.nan, index=p.index)
        if p.notna().any():
            adjusted[p.notna()] = false_discovery_control(p.dropna())
        table.insert([*table.columns].index(p.name) + 1, f"{prefix}p_adjusted", adjusted)
    return Perturbation(pd.concat(cells, ignore_index=True), table, kind, model)


def _means(each: Any) -> Iterator[float]:
    """Means over the cells of each edit; NaN where no cell took part."""
    for values in each:
        there = values[~np.isnan(values)]
        yield float(there.mean()) if len(there) else np.nan
