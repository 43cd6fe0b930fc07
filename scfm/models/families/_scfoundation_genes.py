"""Which gene is which position of scFoundation? The authors' list, checked before it is believed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from scfm.errors import CheckpointError
from scfm.models._reading import kind_of, require

GENES = "OS_scRNA_gene_index.19264.tsv"
N_GENES = 19_264
ORDER = "6037e1bc9b3b48a5112ffdc29261383f747a3c3f8b568a8899b0c69d13565df8"
"""SHA-256 of the published symbols, joined by line ends."""


def gene_list(path: Path, n_genes: int, hint: str) -> list[str]:
    """Symbols in the order of their positions.

    Parameters
    ----------
    path
        Folder of the model; the list lies in it or beside it.
    n_genes
        That the weights have positions for.
    hint
        What to say where it is missing.

    Raises
    ------
    CheckpointError
        If the list is missing, damaged, of another length, or in another order than the published one: the weights
        cannot tell.
    """
    near = (path / GENES, path.parent / GENES)
    file = require(next((f for f in near if f.is_file()), near[0]), "the list of genes", hint)
    try:
        table = pd.read_csv(file, sep="\t", keep_default_na=False)
        genes, places = [str(gene) for gene in table["gene_name"]], table["index"].tolist()
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{file} is {kind_of(file)} without the columns gene_name and index ({error}); get it again"
        ) from error
    if len(genes) != n_genes or len(set(genes)) != n_genes or places != [*range(n_genes)]:
        raise CheckpointError(
            f"{file} lists {len(genes):,} genes ({len(genes) - len(set(genes)):,} of them repeated) with the numbers "
            f"{places[0] if places else '-'} to {places[-1] if places else '-'}, but the weights have positions 0 to "
            f"{n_genes - 1:,}, one per gene; the list and the weights are of different models, or the list was edited"
        )
    digest = hashlib.sha256("\n".join(genes).encode()).hexdigest()
    if n_genes == N_GENES and digest != ORDER:
        raise CheckpointError(
            f"{file} has other genes than the published list, or in another order, so that genes would be taken for one "
            "another; get it again from the authors' repository biomap-research/scFoundation"
        )
    return genes
