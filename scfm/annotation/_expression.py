"""What does a classifier see of a cell's counts? Log expression of the genes of the reference, whatever the query measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scfm import genes
from scfm.counts import CountBlock
from scfm.errors import GeneMatchError
from scfm.genes import GeneMatch, GeneVocabulary

Orthologues: TypeAlias = Literal[True] | str | Path | pd.DataFrame | None
TARGET = 1e4
"""Counts that a cell is scaled to before the logarithm."""
N_GENES = 3000
"""Most variable genes that classifiers of expression read."""


@dataclass(frozen=True, eq=False)
class GeneSpace:
    """The genes that a reference measured.

    Parameters
    ----------
    names
        G names: current Ensembl ids where there is a gene table of the species, else as they stand in the data.
    species
        Of the genes; ``"unknown"``: names are compared as they are.
    """

    names: tuple[str, ...]
    species: str

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """For `scfm.genes.match`."""
        return GeneVocabulary(self.names, "ensembl" if self.species != "unknown" else "symbol", species=self.species)

    def match(self, var: pd.DataFrame, gene_key: str | None = None, orthologues: Orthologues = None) -> GeneMatch:
        """Which gene each column is.

        Raises
        ------
        GeneMatchError
            If no gene is common.
        """
        try:
            return genes.match(var, self.vocabulary, gene_key=gene_key, orthologues=orthologues)
        except GeneMatchError as error:
            raise GeneMatchError(f"the query and the reference have no gene in common: {error}") from error

    def counts(self, block: CountBlock, match: GeneMatch) -> csr_matrix:
        """(n, G) counts; several columns of one gene are added up, others are left out."""
        columns = np.asarray(match.columns, dtype=np.int64)[block.indices]
        there = columns >= 0
        indptr = np.concatenate([[0], np.cumsum(there)])[block.indptr]
        x = csr_matrix((block.data[there].astype(np.float32), columns[there], indptr), shape=(block.n_cells, len(self)))
        x.sum_duplicates()
        return x


def gene_space(var: pd.DataFrame, species: str, gene_key: str | None, orthologues: Orthologues) -> GeneSpace:
    """The genes of a reference: protein-coding ones where a table of the species ships, else all names as they are.

    Parameters
    ----------
    var
        Of the reference.
    species
        Of the genes that the annotator speaks of.
    gene_key, orthologues
        See `scfm.genes.match`.
    """
    try:
        vocabulary = GeneVocabulary(tuple(genes.protein_coding(species)["ensembl_id"]), "ensembl", species=species)
        found = genes.match(var, vocabulary, gene_key=gene_key, orthologues=orthologues)
    except GeneMatchError:
        if orthologues is not None:
            raise
        names = var.index if gene_key in (None, "var_names") else var[gene_key]
        return GeneSpace(tuple(dict.fromkeys(names.astype(str))), "unknown")
    return GeneSpace(tuple(vocabulary.names[i] for i in np.flatnonzero(found.measured)), species)


def shared(space: GeneSpace, var: pd.DataFrame, gene_key: str | None, orthologues: Orthologues) -> GeneSpace:
    """The genes of a space that a query measures, too."""
    measured = space.match(var, gene_key, orthologues).measured
    return GeneSpace(tuple(name for name, there in zip(space.names, measured, strict=True) if there), space.species)


def log_values(counts: csr_matrix, target: float = TARGET) -> csr_matrix:
    """log(1 + counts per ``target`` counts) of each cell (n, G); cells without counts stay zero."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scaled = counts.data * np.repeat(target / np.maximum(total, 1e-9), np.diff(counts.indptr))
    return csr_matrix((np.log1p(scaled).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def variable_genes(values: csr_matrix, n: int = N_GENES) -> NDArray[np.int64]:
    """Sorted columns of the genes whose log values vary most."""
    mean = np.asarray(values.mean(axis=0), dtype=np.float64).ravel()
    squares = np.asarray(values.multiply(values).mean(axis=0), dtype=np.float64).ravel()
    variance = squares - mean**2
    kept = np.argsort(-variance, kind="stable")[:n]
    return np.sort(kept[variance[kept] > 0])


@dataclass(frozen=True, eq=False)
class Expression:
    """How counts become the values that classifiers were fitted on.

    Parameters
    ----------
    selected
        (g,) genes of the space that are read.
    mean
        (g,) their mean log value in the reference: what stands in for a gene that a query did not measure.
    share
        (G,) mean share of a cell's counts in each gene of the space. Where a query lacks genes, its cells are scaled to
        the share that the others have in the reference.
    """

    selected: NDArray[np.int64]
    mean: NDArray[np.float32]
    share: NDArray[np.float32]

    @classmethod
    def fit(cls, counts: csr_matrix, values: csr_matrix) -> Expression:
        """From the counts and log values (n, G) of a reference."""
        selected = variable_genes(values)
        total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        weights = 1 / np.maximum(total, 1e-9) / max(int((total > 0).sum()), 1)
        share = np.asarray(counts.T @ weights, dtype=np.float32).ravel()
        mean = np.asarray(values[:, selected].mean(axis=0), dtype=np.float32).ravel()
        return cls(selected, mean, share)

    def values(self, counts: csr_matrix, measured: NDArray[np.bool_]) -> csr_matrix:
        """(n, g) log values of cells that measured some genes (G,) of the space."""
        return log_values(counts, TARGET * float(self.share[measured].sum()))[:, self.selected]

    def fill(self, measured: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(g,) what is added to every cell: the mean of the genes that were not measured."""
        return np.where(measured[self.selected], 0, self.mean).astype(np.float32)


def cell_keys(counts: csr_matrix) -> NDArray[np.uint64]:
    """(n,) number of each cell by its counts: equal cells have equal numbers, others hardly ever; 0 without counts."""
    rng: Any = np.random.default_rng(20260)
    weights = rng.integers(1, 2**63, counts.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        products = np.rint(counts.data).astype(np.uint64) * weights[counts.indices]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
        return np.asarray(sums[counts.indptr[1:]] - sums[counts.indptr[:-1]], dtype=np.uint64)
