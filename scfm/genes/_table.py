"""What is known about the genes of a species?

Reads the tables that ship with the package: lazily, once per process.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from scfm.errors import GeneMatchError

ID_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}
OTHER_NAMES = {
    "homo sapiens": "human",
    "hsapiens": "human",
    "h sapiens": "human",
    "9606": "human",
    "ncbitaxon:9606": "human",
    "mus musculus": "mouse",
    "mmusculus": "mouse",
    "m musculus": "mouse",
    "10090": "mouse",
    "ncbitaxon:10090": "mouse",
}


def table(species: str) -> pd.DataFrame:
    """Genes of a species, current and retired.

    Parameters
    ----------
    species
        ``"human"`` or ``"mouse"`` (Latin names and NCBI taxon ids are understood too).

    Returns
    -------
    One row per Ensembl id, in ascending order: ``ensembl_id``, ``symbol``, ``previous_symbols``, ``alias_symbols``
    and ``older_symbols`` (separated by ``|``), ``biotype``, ``chromosome``, ``start`` (1-based, GRCh38 or GRCm39;
    0 where unknown), ``status`` (``current``, or ``retired_e109``, ``retired_e90``: last seen in that release of
    Ensembl). Unknown text is the empty string. The frame is a copy, free to change.

    Raises
    ------
    GeneMatchError
        No table ships for this species.
    """
    name = canonical_species(species)
    if not has_table(name):
        raise GeneMatchError(
            f"no gene table ships for species {species!r}; there are tables for {', '.join(ID_PREFIX)}. "
            "Names of other species are matched exactly"
        )
    frame = pd.DataFrame(gene_columns(name))
    frame["start"] = np.array([int(s or 0) for s in frame["start"]], dtype=np.int64)
    return frame


def protein_coding(species: str) -> pd.DataFrame:
    """The current protein-coding genes of a species, a part of its `table`, by ascending Ensembl id.

    Raises
    ------
    GeneMatchError
        No table ships for this species.
    """
    every = table(species)
    coding = every[(every["status"] == "current") & (every["biotype"] == "protein_coding")]
    return coding.sort_values("ensembl_id", ignore_index=True)


def orthologues() -> pd.DataFrame:
    """One-to-one orthologues of human and mouse.

    Returns
    -------
    One row per pair: ``human_ensembl_id``, ``mouse_ensembl_id``, ``human_symbol``, ``mouse_symbol`` (empty where the
    gene has none), ``agrees_with_hgnc_mgi`` (``"1"``: HGNC lists this mouse gene for the human gene, ``"0"``: it lists
    another one, ``""``: unknown). Each id occurs once.
    """
    columns = _read("orthologues_human_mouse.txt.xz")
    frame = pd.DataFrame(
        {f"{s}_ensembl_id": _ids(columns[f"{s}_ensembl_id"], prefix) for s, prefix in ID_PREFIX.items()}
    )
    for species in ID_PREFIX:
        genes = gene_columns(species)
        symbol = dict(zip(genes["ensembl_id"], genes["symbol"], strict=True))
        frame[f"{species}_symbol"] = [symbol.get(i, "") for i in frame[f"{species}_ensembl_id"]]
    frame["agrees_with_hgnc_mgi"] = columns["agrees_with_hgnc_mgi"]
    return frame


def canonical_species(species: str) -> str:
    """``"human"`` for ``"Homo_sapiens"`` and the like; other names in lower case."""
    name = species.strip().lower().replace("_", " ").replace(".", "")
    return OTHER_NAMES.get(name, name.replace(" ", "_"))


def has_table(species: str) -> bool:
    """Whether a gene table ships for this species (its canonical name)."""
    return species in ID_PREFIX


@cache
def gene_columns(species: str) -> dict[str, list[str]]:
    """The table as lists of text, one per column; not to be changed."""
    columns = _read(f"genes_{species}.txt.xz")
    columns["ensembl_id"] = _ids(columns["ensembl_id"], ID_PREFIX[species])
    return columns


def _read(file: str) -> dict[str, list[str]]:
    packed = (resources.files("scfm.genes") / "data" / file).read_bytes()
    blocks = lzma.decompress(packed).decode().split("\f")
    columns = {}
    for block in blocks:
        name, *values = block.split("\n")
        columns[name] = values
    return columns


def _ids(differences: list[str], prefix: str) -> list[str]:
    numbers = np.cumsum(np.array(differences, dtype=np.int64))
    return [f"{prefix}{n:011d}" for n in numbers.tolist()]
