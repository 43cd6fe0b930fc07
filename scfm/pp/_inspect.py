"""What is in these data? Counts, genes, cells and what is odd about them, without changing anything."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm import counts, genes
from scfm.errors import GeneMatchError

FEW_GENES = 5_000
MANY_COUNTS = 20_000
LOW_TOTAL = 200
SPECIES = ("human", "mouse")


class HasVocabulary(Protocol):
    """A loaded model, or anything else with a vocabulary."""

    vocabulary: genes.GeneVocabulary


@dataclass(frozen=True)
class CellFacts:
    """Numbers about the cells that were looked at.

    Parameters
    ----------
    n_cells
        Cells looked at.
    n_empty
        Of these, without any count.
    total
        Least, median and greatest total count of the others.
    genes
        Least, median and greatest number of genes of the others.
    largest
        Largest single count.
    """

    n_cells: int
    n_empty: int
    total: tuple[float, float, float]
    genes: tuple[float, float, float]
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {**asdict(self), "total": list(self.total), "genes": list(self.genes)}

    def __str__(self) -> str:
        (low, mid, high), (few, some, many) = self.total, self.genes
        return (
            f"{self.n_cells:,} cells looked at: {low:,.0f} ... {mid:,.0f} ... {high:,.0f} counts and "
            f"{few:,.0f} ... {some:,.0f} ... {many:,.0f} genes per cell (least, median, most), {self.n_empty:,} empty, "
            f"largest count {self.largest:,.6g}"
        )


@dataclass(frozen=True)
class InspectReport:
    """What `inspect` found; ``print`` it, or take `to_dict`.

    Parameters
    ----------
    shape
        (n_obs, n_vars) of the object.
    counts
        Where counts are, and what every matrix holds.
    genes
        How the genes were recognised; None: not at all.
    against
        What the genes were compared with.
    cells
        Numbers about cells; None without usable counts.
    notes
        What a user should look at, one sentence each.
    """

    shape: tuple[int, int]
    counts: counts.CountReport
    genes: genes.MatchReport | None
    against: str
    cells: CellFacts | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "shape": list(self.shape),
            "counts": self.counts.to_dict(),
            "genes": None if self.genes is None else self.genes.to_dict(),
            "against": self.against,
            "cells": None if self.cells is None else self.cells.to_dict(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        found = f"not recognised in {self.against}" if self.genes is None else f"in {self.against}\n{self.genes}"
        lines = [f"{self.shape[0]:,} cells x {self.shape[1]:,} genes", "", str(self.counts), "", f"genes {found}"]
        if self.cells is not None:
            lines += ["", str(self.cells)]
        if self.notes:
            lines += ["", *(f"! {note}" for note in self.notes)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def inspect(
    adata: AnnData | str | Path,
    vocabulary: genes.GeneVocabulary | None = None,
    *,
    model: str | Path | HasVocabulary | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
) -> InspectReport:
    """Report what data hold before any work: where the counts are, whose genes these are, what is odd.

    A sample of the cells is read; nothing is changed.

    Parameters
    ----------
    adata
        An AnnData object, or the path of a file (see `scfm.counts.read`).
    vocabulary
        Compare the genes with these. Default: all genes of human and of mouse, whichever fits better.
    model
        Compare the genes with the vocabulary of a model: a loaded one, or a name or path to load.
    layer, use_raw
        Where the counts are. Default: found; every place is looked at.
    gene_key
        Column of ``var`` with the gene names. Default: found.

    Raises
    ------
    CountsError
        If there are no cells, or what was asked for is not there. That no counts are found is no error here.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> report = scfm.pp.inspect(sc.datasets.pbmc68k_reduced())
    >>> report.counts.where, report.counts.kind
    ('raw', 'log1p')
    """
    adata = adata if isinstance(adata, AnnData) else counts.read(adata)
    source, found = counts.search(adata, layer=layer, use_raw=use_raw, thorough=True)
    var = adata.var if source is None else source.var
    against, matched = _genes(var, _vocabularies(vocabulary, model), gene_key)
    report, cells = None if matched is None else matched.report, None
    if source is not None:
        block = source.sample()
        cells = _cells(block)
        if matched is not None:
            here = float(block.data[matched.columns[block.indices] >= 0].sum(dtype=np.float64))
            report = replace(matched.report, counts_matched=here, counts_total=float(block.data.sum(dtype=np.float64)))
    notes = tuple(_notes(adata, source, found, report, cells, var))
    return InspectReport(adata.shape, found, report, against, cells, notes)


def _vocabularies(
    vocabulary: genes.GeneVocabulary | None, model: str | Path | HasVocabulary | None
) -> Mapping[str, genes.GeneVocabulary]:
    """What to compare the genes with, by name."""
    if vocabulary is not None:
        return {"the vocabulary": vocabulary}
    if isinstance(model, str | Path):
        from scfm import models

        return {f"the vocabulary of {model}": models.load(model).vocabulary}
    if model is not None:
        return {"the vocabulary of the model": model.vocabulary}
    return {f"the {species} gene table": _all_genes(species) for species in SPECIES}


def _all_genes(species: str) -> genes.GeneVocabulary:
    return genes.GeneVocabulary(tuple(genes.table(species)["ensembl_id"]), "ensembl", species=species)


def _genes(
    var: pd.DataFrame, vocabularies: Mapping[str, genes.GeneVocabulary], gene_key: str | None
) -> tuple[str, genes.GeneMatch | None]:
    """The best match, and with what."""
    best: tuple[str, genes.GeneMatch | None] = (" or ".join(vocabularies), None)
    for name, vocabulary in vocabularies.items():
        try:
            match = genes.match(var, vocabulary, gene_key=gene_key)
        except GeneMatchError:
            continue
        if best[1] is None or match.n_matched > best[1].n_matched:
            best = (name, match)
    return best


def _cells(block: counts.CountBlock) -> CellFacts:
    rows = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
    total = np.bincount(rows, weights=block.data, minlength=block.n_cells) if block.totals is None else block.totals
    cell_of, _ = np.divmod(np.unique(rows * block.n_columns + block.indices), block.n_columns)
    n_genes = np.bincount(cell_of, minlength=block.n_cells)
    filled = n_genes > 0
    return CellFacts(
        block.n_cells,
        int((~filled).sum()),
        _spread(total[filled]),
        _spread(n_genes[filled]),
        float(block.data.max(initial=0)),
    )


def _spread(values: Any) -> tuple[float, float, float]:
    """Least, median, greatest."""
    if not len(values):
        return 0.0, 0.0, 0.0
    return float(values.min()), float(np.median(values)), float(values.max())


def _notes(
    adata: AnnData,
    source: counts.CountSource | None,
    found: counts.CountReport,
    matched: genes.MatchReport | None,
    cells: CellFacts | None,
    var: pd.DataFrame,
) -> Iterator[str]:
    """What is odd."""
    for name, index in (("cell", adata.obs_names), ("gene", var.index)):
        twice = index[index.duplicated()].unique()
        if len(twice):
            yield f"{len(twice):,} {name} names occur more than once ({', '.join(map(str, twice[:3]))})"
    types = var.get("feature_types")
    if types is not None and (others := types.astype(str).value_counts().drop("Gene Expression", errors="ignore")).size:
        yield f"not only genes: {', '.join(f'{n:,} {kind}' for kind, n in others.items())}; subset var to 'Gene Expression'"
    spikes = int(var.index.astype(str).str.match(r"ERCC[-_]?\d{5}").sum())
    if spikes:
        yield f"{spikes} ERCC spike-ins are among the genes; totals contain them"
    if source is None:
        yield "no usable counts: " + found.candidates[0].remedy
        return
    if source.shape[1] < FEW_GENES:
        yield f"only {source.shape[1]:,} genes: a panel, or a subset (models were trained on most genes of the genome)"
    if source.is_backed and "CSC" in source.reader.storage:
        yield "the matrix is stored by column: it is turned in passes over the file; store it as CSR to read faster"
    if cells is not None:
        if cells.n_empty:
            yield f"{cells.n_empty:,} of the {cells.n_cells:,} cells looked at are empty"
        if 0 < cells.total[1] < LOW_TOTAL:
            yield f"the median cell has {cells.total[1]:,.0f} counts: empty droplets, or a panel?"
        if cells.largest > MANY_COUNTS:
            yield f"the largest count is {cells.largest:,.0f}: reads and not molecules (UMIs)?"
    if matched is None:
        yield "the gene names are not known; look at adata.var and pass gene_key="
    elif matched.n_matched < matched.n_vars / 2:
        yield f"more than half of the gene names are not known: {', '.join(matched.unmatched[:3])}"
