"""Which genes does a UCE model read? Protein tables, places on the chromosomes and rows of the token table, by species."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scfm.errors import CheckpointError, ConfigError
from scfm.models._model import FoundationModel
from scfm.models._reading import read_pickle, read_tensor, read_tensors, require
from scfm.models._species import with_genes
from scfm.tokenizers import ProteinTokenizer, families

log = logging.getLogger("scfm")

SUFFIX = ".gene_symbol_to_embedding_ESM2.pt"
PROTEINS = {
    "human": "Homo_sapiens.GRCh38",
    "mouse": "Mus_musculus.GRCm39",
    "frog": "Xenopus_tropicalis.Xenopus_tropicalis_v9.1",
    "zebrafish": "Danio_rerio.GRCz11",
    "mouse_lemur": "Microcebus_murinus.Mmur_3.0",
    "pig": "Sus_scrofa.Sscrofa11.1",
    "macaca_fascicularis": "Macaca_fascicularis.Macaca_fascicularis_6.0",
    "macaca_mulatta": "Macaca_mulatta.Mmul_10",
}
"""Protein tables of the species that UCE was trained with."""
N_FIXED = 4
"""Rows before the genes: padding, chromosome start (never used), chromosome end, cell."""
CHROMOSOMES_FROM = {145_469: 143_574}
"""First row of a chromosome, by rows of the published token table."""
TABLE = "pe_embedding.weight"
COLUMNS = ("gene_symbol", "chromosome", "start")


@dataclass(frozen=True)
class SpeciesFiles:
    """Where the genes of a species are.

    Parameters
    ----------
    species
        Its name.
    proteins
        Protein table: vectors by gene symbol.
    offsets
        First row of each species in the token table.
    places
        Chromosome and start of each gene.
    rows
        The token table: the weights, or a file of its own.
    in_weights
        Whether it is the weights, whose rows are those of upper-case symbols.
    n_draws
        Genes drawn per cell.
    """

    species: str
    proteins: Path
    offsets: Path
    places: Path
    rows: Path
    in_weights: bool
    n_draws: int

    def __call__(self) -> tuple[ProteinTokenizer, Tensor]:
        """The tokenizer of the species, and the (V, t) vectors of its tokens."""
        table = _token_table(self.rows) if self.in_weights else read_tensor(self.rows, lazy=True)
        offsets = read_pickle(self.offsets)
        first, names = offsets[self.species], self._symbols(self.proteins)
        places = read_places(self.places)
        labels = sorted(set(places["species"] + "_" + places["chromosome"]))
        first_label = len(table) - len(labels)
        end = self._end_of_genes(offsets, len(table))
        if first_label < first + len(names) or (end is not None and first_label != end):
            raise CheckpointError(
                f"{self.places.name} names {len(labels):,} chromosomes, but of the {len(table):,} rows of {self.rows} "
                f"{first_label if end is None else end:,} are not chromosomes: they are of different releases"
            )
        tokenizer = make_tokenizer(
            self.species,
            {name: first + i for i, name in enumerate(names)},
            {label: first_label + i for i, label in enumerate(labels)},
            places[places["species"] == self.species],
            self.n_draws,
        )
        return tokenizer, table[torch.tensor(tokenizer.rows)].float()

    def _symbols(self, proteins: Path) -> list[str]:
        """Upper-case symbols in the order of their rows: the weights have one row for symbols that differ in case only."""
        names = [str(name).upper() for name in read_tensors(proteins, lazy=True)]
        return list(dict.fromkeys(names)) if self.in_weights else names

    def _end_of_genes(self, offsets: Mapping[str, int], n_rows: int) -> int | None:
        """The row behind the last gene of all species, as far as files tell it."""
        last = max(offsets, key=offsets.__getitem__)
        proteins = self.proteins if last == self.species else self.proteins.parent / f"{PROTEINS.get(last)}{SUFFIX}"
        if not proteins.is_file():
            return CHROMOSOMES_FROM.get(n_rows)
        return offsets[last] + len(self._symbols(proteins))


def species_in(folder: Path, weights: Path, n_draws: int) -> dict[str, SpeciesFiles]:
    """The species whose protein tables are in a folder of model files, those of the training first."""
    near = folder / "protein_embeddings"
    known = {species: near / f"{name}{SUFFIX}" for species, name in PROTEINS.items()}
    shared = (folder / "species_offsets.pkl", folder / "species_chrom.csv")
    found = {s: SpeciesFiles(s, p, *shared, weights, True, n_draws) for s, p in known.items() if p.is_file()}
    listed = folder / "new_species_protein_embeddings.csv"
    if listed.is_file():
        for species, path in pd.read_csv(listed, dtype=str)[["species", "path"]].itertuples(index=False):
            own = (folder / f"{species}_offsets.pkl", folder / f"{species}_to_chrom_pos.csv")
            rows, proteins = folder / f"{species}_pe_tokens.torch", near / Path(path).name
            if all(file.is_file() for file in (*own, rows, proteins)):
                found[species] = SpeciesFiles(species, proteins, *own, rows, False, n_draws)
    return found


def _token_table(weights: Path) -> Tensor:
    state = read_tensors(weights, lazy=True)
    table = state.get(TABLE, state.get(f"module.{TABLE}"))
    if not isinstance(table, Tensor):
        raise CheckpointError(f"{weights} has no {TABLE}; it is not a UCE model")
    return table


def read_places(path: Path) -> pd.DataFrame:
    """Chromosome and start of genes, as text and integers.

    Raises
    ------
    CheckpointError
        If the file is missing or has not these columns.
    """
    frame = pd.read_csv(require(path, "the table of chromosomes"), dtype=str, keep_default_na=False)
    missing = [column for column in (*COLUMNS, "species") if column not in frame]
    if missing:
        raise CheckpointError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    return frame.astype({"start": np.int64})


def make_tokenizer(
    species: str, genes: Mapping[str, int], labels: Mapping[str, int], places: pd.DataFrame, n_draws: int
) -> ProteinTokenizer:
    """The tokenizer of a species; genes without a place on a chromosome are left out.

    Parameters
    ----------
    species
        Its name.
    genes
        Row of each upper-case symbol in the token table.
    labels
        Row of each chromosome, called ``<species>_<chromosome>``.
    places
        Columns ``gene_symbol``, ``chromosome`` and ``start``; the first row of a symbol counts.
    n_draws
        Genes drawn per cell.
    """
    symbols = places["gene_symbol"].astype(str).str.upper()
    places = places.assign(gene_symbol=symbols).drop_duplicates("gene_symbol").set_index("gene_symbol")
    placed = {gene: row for gene, row in genes.items() if gene in places.index}
    if not placed:
        raise CheckpointError(f"none of the {len(genes):,} genes of {species} has a chromosome ({_some(genes)})")
    if len(placed) < len(genes):
        lost = [gene for gene in genes if gene not in placed]
        log.warning("%d genes of %s have no chromosome and are left out (%s)", len(lost), species, _some(lost))
    chromosome_of = dict(zip(places.index, places["chromosome"].astype(str), strict=True))
    start_of = dict(zip(places.index, places["start"].astype(int), strict=True))
    here = {c: labels[f"{species}_{c}"] for c in dict.fromkeys(chromosome_of.values())}
    return families.uce(placed, here, chromosome_of, start_of, species, n_draws)


def _some(names: Iterable[str]) -> str:
    return ", ".join([*names][:3])


def add_species(
    model: FoundationModel,
    species: str,
    proteins: Mapping[str, ArrayLike],
    places: pd.DataFrame,
    seed: int = 0,
) -> FoundationModel:
    """A UCE model for another species, made as the authors' notebook does.

    Parameters
    ----------
    model
        Any UCE model; its weights are shared.
    species
        Name of the species.
    proteins
        Vector of each gene symbol, from the protein model that the weights were trained with.
    places
        Columns ``gene_symbol``, ``chromosome`` and ``start``.
    seed
        Of the random vectors that stand for chromosomes; the authors take the NCBI taxonomy id of the species.

    Raises
    ------
    ConfigError
        If the model is no UCE model, a column is missing, or the vectors have another width.

    Examples
    --------
    >>> uce = scfm.models.load("uce-4l")  # doctest: +SKIP
    >>> chicken = scfm.models.add_species(uce, "chicken", vectors, places, seed=9031)  # doctest: +SKIP
    >>> scfm.tl.embed(adata, chicken)  # doctest: +SKIP
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, ProteinTokenizer):
        raise ConfigError(f"{model.card.name} does not read proteins; add_species needs a UCE model")
    missing = [column for column in COLUMNS if column not in places]
    if missing:
        raise ConfigError(f"places has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    fixed = model.transformer.terms["gene"].table[:N_FIXED].cpu().float()  # type: ignore[index, operator]
    vectors = {str(name).upper(): torch.as_tensor(np.asarray(v, dtype=np.float32)) for name, v in proteins.items()}
    widths = {tuple(v.shape) for v in vectors.values()}
    if widths != {tuple(fixed.shape[1:])}:
        raise ConfigError(
            f"the protein vectors have shapes {', '.join(map(str, sorted(widths))) or 'none'}; {model.card.name} needs "
            f"{tuple(fixed.shape[1:])} each, of the protein model that it was trained with"
        )
    labels = sorted({f"{species}_{c}" for c in places["chromosome"].astype(str)})
    noise = torch.randn((len(labels), fixed.shape[1]), generator=torch.Generator().manual_seed(seed))
    first_label = N_FIXED + len(vectors)
    made = make_tokenizer(
        species,
        {name: N_FIXED + i for i, name in enumerate(vectors)},
        {label: first_label + i for i, label in enumerate(labels)},
        places.assign(start=places["start"].astype(np.int64)),
        tokenizer.n_draws,
    )
    rows = torch.cat([fixed, torch.stack([*vectors.values()]), noise])
    return with_genes(model, made, rows[torch.tensor(made.rows)])
