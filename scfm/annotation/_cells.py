"""From cells in an AnnData to what classifiers see, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from scfm import counts, genes, models
from scfm.annotation._classifiers import Vectors
from scfm.annotation._expression import GeneSpace, Orthologues
from scfm.counts import CountBlock
from scfm.models._stream import BLOCK_ROWS, Job, embed_blocks
from scfm.tokenizers import from_obs
from scfm.tokenizers._context import resolve_context

VECTOR_ROWS = 8192
"""Cells of a block where only vectors are read."""


@dataclass(frozen=True)
class Reading:
    """Where counts and gene names of cells are, as in `scfm.tl.embed`.

    Parameters
    ----------
    layer, use_raw, gene_key, gene_matching, orthologues, context, batch_tokens
        See there.
    """

    layer: str | None = None
    use_raw: bool | None = None
    gene_key: str | None = None
    gene_matching: Literal["resolve", "published"] = "resolve"
    orthologues: Orthologues = None
    context: Mapping[str, Any] | None = None
    batch_tokens: int | Literal["auto"] = "auto"


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive cells.

    Parameters
    ----------
    rows
        Which.
    vectors
        (n, d) of unit length, NaN rows for cells without a gene of the model; None: no embedding is used.
    counts
        (n, G) counts of the genes of the space; None: no expression is used.
    """

    rows: slice
    vectors: Vectors | None
    counts: csr_matrix | None

    @property
    def n_genes(self) -> NDArray[np.int64] | None:
        """(n,) expressed genes; None where no counts are read."""
        return None if self.counts is None else np.diff(self.counts.indptr).astype(np.int64)


@dataclass(eq=False)
class Cells:
    """Cells that are read block by block.

    Parameters
    ----------
    adata
        Only read.
    reading
        Where counts and names are.
    model
        Computes vectors; None: they are stored, or not wanted.
    stored
        (n, d) vectors that are there already.
    space
        The genes whose counts are wanted; None: none.
    """

    adata: AnnData
    reading: Reading
    model: models.FoundationModel | None = None
    stored: NDArray[np.floating[Any]] | None = None
    space: GeneSpace | None = None
    measured: NDArray[np.bool_] | None = field(default=None, init=False)
    """(G,) genes of the space that have a column."""

    def __post_init__(self) -> None:
        reads_counts = self.model is not None or self.space is not None
        self._source = self._match = self._job = None
        if not reads_counts or not self.adata.n_obs:
            return
        r = self.reading
        self._source = counts.find(self.adata, layer=r.layer, use_raw=r.use_raw)
        if self.space is not None:
            self._match = self.space.match(self._source.var, r.gene_key, r.orthologues)
            self.measured = self._match.measured
        if self.model is not None:
            tokenizer = self.model.tokenizer
            match = genes.match(
                self._source.var,
                self.model.vocabulary,
                gene_key=r.gene_key,
                policy=r.gene_matching,
                orthologues=r.orthologues,
            )
            facts = from_obs(tokenizer.context_options, r.context, self.adata.obs)
            resolve_context(tokenizer.context_options, facts, self.adata.n_obs)
            self._job = Job(match=match, context=facts, batch_tokens=r.batch_tokens)

    def parts(self) -> Iterator[Part]:
        """All cells, in order."""
        if self._source is None:
            for start in range(0, self.adata.n_obs, VECTOR_ROWS):
                rows = slice(start, min(start + VECTOR_ROWS, self.adata.n_obs))
                yield Part(rows, self._stored(rows), None)
            return
        for block in self._source.blocks(BLOCK_ROWS):
            rows = slice(block.start, block.start + block.n_cells)
            yield Part(rows, self._vectors(block, rows), self._counts(block))

    def _stored(self, rows: slice) -> Vectors | None:
        return None if self.stored is None else unit(self.stored[rows])

    def _vectors(self, block: CountBlock, rows: slice) -> Vectors | None:
        if self.model is None or self._job is None:
            return self._stored(rows)
        return unit(embed_blocks(self.model, [block], self._job).cells)

    def _counts(self, block: CountBlock) -> csr_matrix | None:
        if self.space is None or self._match is None:
            return None
        return self.space.counts(block, self._match)

    def read(self, rows: NDArray[np.int64], progress: Any = None) -> tuple[Vectors | None, csr_matrix | None]:
        """Vectors and counts of some cells (sorted numbers), held in memory."""
        vectors, matrices = [], []
        for part in self.parts():
            here = rows[np.searchsorted(rows, part.rows.start) : np.searchsorted(rows, part.rows.stop)]
            if part.vectors is not None:
                vectors.append(part.vectors[here - part.rows.start])
            if part.counts is not None:
                matrices.append(part.counts[here - part.rows.start])
            if progress is not None:
                progress.update(part.rows.stop - part.rows.start)
        return (
            np.concatenate(vectors) if vectors else None,
            csr_matrix(vstack(matrices, format="csr")) if matrices else None,
        )


def unit(x: NDArray[np.floating[Any]]) -> Vectors:
    """Rows scaled to length 1; NaN rows stay NaN, rows of zeros stay zeros."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))
