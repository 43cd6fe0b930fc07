"""How fast are cells ranked? The kernel against a plain argsort loop, and a file against only reading it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from timing import Row, interleaved

from scfm import genes
from scfm.counts import CountBlock
from scfm.genes import GeneVocabulary
from scfm.tokenizers import RankValueTokenizer

N_GENES = 20_000
N_NONZERO = 2_000


def cells(n: int, seed: int = 0) -> sp.csr_matrix:
    """Synthetic cells with 2,000 non-zero counts of 20,000 genes, about 4,400 in all."""
    generator = np.random.default_rng(seed)
    weight = generator.lognormal(0, 1.5, N_GENES)
    race = generator.exponential(size=(min(n, 256), N_GENES)) / weight
    rows = np.argpartition(race, N_NONZERO)[:, :N_NONZERO]
    indices = np.sort(rows[generator.integers(0, len(rows), n)], axis=1)
    counts = generator.geometric(1 / 2.2, indices.shape).astype(np.float32)
    indptr = np.arange(n + 1) * N_NONZERO
    return sp.csr_matrix((counts.ravel(), indices.ravel().astype(np.int32), indptr), shape=(n, N_GENES))


def tokenizer(names: list[str]) -> RankValueTokenizer:
    """A rank tokenizer whose genes stand in another order than the columns."""
    generator = np.random.default_rng(1)
    vocabulary = GeneVocabulary(tuple(generator.permutation(names)), "symbol")
    return RankValueTokenizer(vocabulary, generator.lognormal(0.5, 0.8, len(names)), max_length=N_NONZERO)


def argsort_loop(matrix: sp.csr_matrix, columns: np.ndarray, medians: np.ndarray) -> list[np.ndarray]:
    """The plain way: one row of the matrix after the other, sorted with numpy."""
    ranked = []
    for i in range(matrix.shape[0]):
        row = slice(matrix.indptr[i], matrix.indptr[i + 1])
        tokens = columns[matrix.indices[row]]
        values = matrix.data[row] / matrix.data[row].sum() * 10_000 / medians[tokens]
        ranked.append(tokens[np.argsort(-values, kind="stable")])
    return ranked


def kernel(n: int = 1024) -> Row:
    """Ranking in memory, one thread."""
    matrix = cells(n)
    names = [f"G{i}" for i in range(N_GENES)]
    made = tokenizer(names)
    match = genes.match(names, made.vocabulary, policy="published")
    block = CountBlock(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, matrix.shape[1])
    made.tokenize_block(block, match)  # compiles
    ours, reference, ratio = interleaved(
        lambda: made.tokenize_block(block, match), lambda: argsort_loop(matrix, match.columns, made.scale[0])
    )
    name = f"rank tokens, {N_NONZERO:,} non-zeros, against a numpy argsort loop"
    return name, f"{n / ours:,.0f} cells/s", f"{n / reference:,.0f} cells/s", ratio


def end_to_end(n: int = 12_288) -> Row:
    """From a gzip-compressed h5ad to tokens, against reading it; the ratio is the share of the time spent reading."""
    names = [f"G{i}" for i in range(N_GENES)]
    made = tokenizer(names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        ad.AnnData(cells(n), var=pd.DataFrame(index=names)).write_h5ad(path, compression="gzip")
        made(path, gene_matching="published")
        ours, reference, ratio = interleaved(lambda: made(path, gene_matching="published"), lambda: ad.read_h5ad(path))
    return "gzip h5ad to rank tokens, time against only reading", f"{ours:.2f} s", f"{reference:.2f} s", 1 / ratio


def run() -> list[Row]:
    """Rows of (name, ours, reference, ratio)."""
    return [kernel(), end_to_end()]


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<70} {ours:>16} {reference:>16} {ratio:8.2f}")
