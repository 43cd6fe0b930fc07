"""Which cells are evaluated? Parts with their own genes, and the genes that all parts have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfm import genes
from scfm.counts import CountBlock, CountSource
from scfm.errors import GeneMatchError
from scfm.genes import GeneVocabulary

BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Part:
    """Cells that were measured on the same genes.

    Parameters
    ----------
    name
        Of the data set.
    source
        Their counts.
    common
        (g,) column of each common gene.
    rows
        (n,) place of each cell among all evaluated cells; they follow one another.
    number
        Of the part among all.
    """

    name: str
    source: CountSource
    common: NDArray[np.int64]
    rows: NDArray[np.int64]
    number: int = 0

    def only(self, rows: NDArray[np.int64], start: int) -> Part:
        """Some cells of it, held in memory, as the evaluated cells from ``start`` on."""
        whole = np.array_equal(rows, np.arange(self.source.shape[0])) and not self.source.is_backed
        source = self.source if whole and not self.source.is_dask else self.source.only(rows)
        return Part(self.name, source, self.common, np.arange(start, start + len(rows)), self.number)

    def shared_counts(self, block: CountBlock) -> sp.csr_matrix:
        """(cells of the block, g) counts of the common genes."""
        shape = (block.n_cells, block.n_columns)
        x = sp.csr_matrix((block.data, block.indices, block.indptr), shape=shape)
        if len(self.common) == shape[1] and np.array_equal(self.common, np.arange(shape[1])):
            return x
        return x[:, self.common]


def common_genes(variables: Sequence[pd.DataFrame], species: str | None = None) -> list[NDArray[np.int64]]:
    """Columns of the genes that all parts have, in the same order for all.

    Names are compared as they are; where less than half of the smallest set is common, ids and symbols are resolved
    with the gene table of the species.

    Parameters
    ----------
    variables
        ``var`` of each part.
    species
        Of the gene table; None: human.

    Raises
    ------
    GeneMatchError
        If no gene is common.
    """
    if len(variables) == 1 or all(v.index.equals(variables[0].index) for v in variables[1:]):
        return [np.arange(len(v)) for v in variables]
    found = _intersection([v.index.astype(str) for v in variables])
    if 2 * len(found[0]) < min(map(len, variables)):
        resolved = _resolved(variables, species or "human")
        found = max([found, resolved], key=lambda columns: len(columns[0]))
    if not len(found[0]):
        raise GeneMatchError(
            f"the {len(variables)} data sets have no gene in common by name or id; name the column of ids in var_names, "
            "or compare data sets of one species"
        )
    return found


def _intersection(names: Sequence[pd.Index[str]]) -> list[NDArray[np.int64]]:
    shared = names[0][~names[0].duplicated()]
    for other in names[1:]:
        shared = shared[shared.isin(other)]
    return [n[~n.duplicated()].get_indexer(shared) if n.is_unique else _first(n, shared) for n in names]


def _first(names: pd.Index[Any], wanted: pd.Index[Any]) -> NDArray[np.int64]:
    place = {name: i for i, name in reversed(list(enumerate(names)))}
    return np.array([place[name] for name in wanted], dtype=np.int64)


def _resolved(variables: Sequence[pd.DataFrame], species: str) -> list[NDArray[np.int64]]:
    vocabulary = GeneVocabulary(tuple(genes.protein_coding(species)["ensembl_id"]), "ensembl", species=species)
    try:
        matched = [pd.Index(genes.match(v, vocabulary).columns) for v in variables]
    except GeneMatchError:
        return [np.zeros(0, dtype=np.int64)] * len(variables)
    shared = matched[0][(matched[0] >= 0) & ~matched[0].duplicated()]
    for other in matched[1:]:
        shared = shared[shared.isin(other)]
    return [_first(pd.Index(m), shared) for m in matched]


def shared_matrix(parts: Sequence[Part]) -> sp.csr_matrix:
    """(n, g) counts of all evaluated cells on the common genes."""
    blocks = [part.shared_counts(block) for part in parts for block in part.source.blocks(BLOCK_ROWS)]
    return sp.vstack(blocks, format="csr").astype(np.float32)


def hashes(part: Part) -> Iterator[NDArray[np.uint64]]:
    """(n,) key of the counts of each cell on the common genes, block by block; 0 for cells without any."""
    for block in part.source.blocks(BLOCK_ROWS):
        x = part.shared_counts(block).astype(np.float32).tocsr()
        x.sum_duplicates()
        keys = np.zeros(x.shape[0], dtype=np.uint64)
        for i, (a, b) in enumerate(zip(x.indptr[:-1], x.indptr[1:], strict=True)):
            if b > a:
                entry = x.indices[a:b].astype(np.int32).tobytes() + x.data[a:b].tobytes()
                keys[i] = int.from_bytes(hashlib.blake2b(entry, digest_size=8).digest(), "little")
        yield keys
