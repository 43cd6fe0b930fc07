"""A cell as a sentence: its genes in the order of their expression (GenePT-s, Chen & Zou 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from scfm.counts import CountBlock
from scfm.errors import TokenizerError

PREFIX = "A cell with genes ranked by expression: "
N_GENES = 1000


def sentences(block: CountBlock, names: Sequence[str], n_genes: int = N_GENES, prefix: str = PREFIX) -> list[str]:
    """One text per cell.

    Parameters
    ----------
    block
        Raw counts of n cells. Their order is that of normalised values, too.
    names
        Of the columns, usually symbols.
    n_genes
        At most so many genes, the highest first; zeros are left out, ties stand in the order of the columns.
    prefix
        Stands before the genes.

    Raises
    ------
    TokenizerError
        If there are not as many names as columns, or no gene is asked for.
    """
    if len(names) != block.n_columns:
        raise TokenizerError(f"{len(names):,} names were given for {block.n_columns:,} columns")
    if n_genes < 1:
        raise TokenizerError(f"n_genes={n_genes}; a sentence holds at least one gene")
    counts = sparse.csr_array((block.data, block.indices, block.indptr), shape=(block.n_cells, block.n_columns))
    counts = counts.copy()
    counts.sum_duplicates()
    out = []
    for begin, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        order = np.argsort(-counts.data[begin:end], kind="stable")[:n_genes]
        out.append(prefix + " ".join(names[c] for c in counts.indices[begin:end][order]))
    return out
