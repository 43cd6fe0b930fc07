"""Vectors of genes by name: Gene2vec, GenePT, protein vectors, or any table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scfm import genes
from scfm.errors import CheckpointError, ConfigError, GeneMatchError
from scfm.genes import GeneVocabulary, PublishedRule
from scfm.genes._hints import namespace_of, species_of_ids
from scfm.genes._names import names_of
from scfm.genes._table import ID_PREFIX
from scfm.models._atomic import replacing

log = logging.getLogger("scfm")

SPECIES_SAMPLE = 2000
SHOWN = 5


@dataclass(frozen=True, eq=False)
class GeneTable:
    """Vectors of genes by name.

    Parameters
    ----------
    names
        Symbols or Ensembl ids, each once.
    vectors
        (g, d) float32, finite. A row of zeros is kept: in GenePT it stands for a gene without a text.
    source
        Where they are from, in words.
    species
        Of the genes; ``"unknown"``: names are matched exactly.
    n_repeated
        Rows that were left out because their name had occurred before.

    Examples
    --------
    >>> import scfm
    >>> table = scfm.models.gene_table({"TP53": [1.0, 0.0], "ENSG00000141510": [0.0, 1.0]})
    >>> table
    GeneTable(2 genes x 2, human, from a dictionary)
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    source: str = "a table"
    species: str = "human"
    n_repeated: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"GeneTable({len(self):,} genes x {self.width}, {self.species}, from {self.source})"

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    @property
    def n_zero(self) -> int:
        """Genes with a vector of zeros."""
        return int((~self.vectors.any(axis=1)).sum())

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """The names, for `scfm.genes.match`; the rule of the published code is an exact name, column by column."""
        namespace: Literal["ensembl", "symbol"] = "ensembl" if namespace_of(self.names) == "ensembl" else "symbol"
        return GeneVocabulary(self.names, namespace, species=self.species, rule=PublishedRule(duplicates="keep"))

    def rows(self, columns: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """(n, d) vectors of the ids (n,) of the vocabulary, NaN where the id is -1."""
        out = self.vectors[np.maximum(columns, 0)]
        out[np.asarray(columns) < 0] = np.nan
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row per gene."""
        return pd.DataFrame(
            self.vectors, index=pd.Index(self.names, name="gene"), columns=[*map(str, range(self.width))]
        )

    def save(self, path: str | Path) -> None:
        """Write as npz, parquet, csv or tsv, by the ending of the name; at once or not at all.

        Raises
        ------
        ConfigError
            If the ending is another one.
        """
        path = Path(path)
        if path.suffix not in WRITERS:
            raise ConfigError(f"{path.name} ends in {path.suffix!r}; tables are written as {', '.join(WRITERS)}")
        with replacing(path) as unfinished:
            WRITERS[path.suffix](self, unfinished)


WRITERS = {
    ".npz": lambda t, path: np.savez(path, names=np.array(t.names), vectors=t.vectors),
    ".parquet": lambda t, path: t.to_frame().to_parquet(path),
    ".csv": lambda t, path: t.to_frame().to_csv(path),
    ".tsv": lambda t, path: t.to_frame().to_csv(path, sep="\t"),
}


def make_table(
    names: Iterable[Any], vectors: Sequence[ArrayLike] | NDArray[Any], source: str, species: str | None = None
) -> GeneTable:
    """A table of names and vectors.

    Parameters
    ----------
    names
        One per vector. The first row of a name counts.
    vectors
        Numbers of one length; (1, d) is taken as (d,). Rows of NaN only are no vectors and left out.
    source
        In words, for messages.
    species
        None: recognised by the names.

    Raises
    ------
    CheckpointError
        If there are none, their lengths differ, or they hold something else than finite numbers.
    """
    listed = [str(name) for name in names]
    matrix = _matrix(listed, vectors, source)
    there = ~np.isnan(matrix).all(axis=1) if matrix.shape[1] else np.zeros(len(matrix), dtype=bool)
    if not there.any():
        raise CheckpointError(f"{source} holds no vector of a gene")
    wrong = there & ~np.isfinite(matrix).all(axis=1)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise CheckpointError(
            f"{source}: the vector of {listed[at]!r} holds NaN or infinite numbers; correct or remove it"
        )
    first: dict[str, int] = {}
    for row in np.flatnonzero(there).tolist():
        first.setdefault(listed[row], row)
    n_repeated = int(there.sum()) - len(first)
    if n_repeated:
        twice = [name for name, n in Counter(listed[r] for r in np.flatnonzero(there)).items() if n > 1][:SHOWN]
        log.warning("%s lists %d names again (%s); the first row of each counts", source, n_repeated, ", ".join(twice))
    rows = np.fromiter(first.values(), dtype=np.int64)
    kept = matrix if len(rows) == len(matrix) else matrix[rows]
    return GeneTable(tuple(first), kept, source, species or species_of(tuple(first)), n_repeated)


def _matrix(names: list[str], vectors: Any, source: str) -> NDArray[np.float32]:
    if not (isinstance(vectors, np.ndarray) and vectors.dtype.kind in "fiu"):
        vectors = [_vector(name, v, source) for name, v in zip(names, vectors, strict=True)]
        widths = Counter(len(v) for v in vectors)
        if len(widths) > 1:
            usual = widths.most_common(1)[0][0]
            odd = next(name for name, v in zip(names, vectors, strict=True) if len(v) != usual)
            raise CheckpointError(
                f"{source}: vectors differ in length ({', '.join(map(str, sorted(widths)))}); that of {odd!r} is not "
                f"{usual} long like most; the file may be cut off"
            )
        vectors = np.stack(vectors) if vectors else np.zeros((0, 0))
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise CheckpointError(
            f"{source} holds an array of shape {vectors.shape} for {len(names):,} names; one row per gene is needed"
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _vector(name: str, value: Any, source: str) -> NDArray[np.float32]:
    try:
        vector = np.asarray(value.float() if isinstance(value, Tensor) else value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: what stands under {name!r} is no vector of numbers but {type(value).__name__}"
        ) from error
    if vector.ndim == 0 or vector.size != vector.shape[-1]:
        raise CheckpointError(f"{source}: what stands under {name!r} has shape {vector.shape}; one vector is needed")
    return vector.reshape(-1)


def species_of(names: Sequence[str]) -> str:
    """Species that most names belong to: by Ensembl ids, else by symbols of human and mouse; else ``"unknown"``."""
    sample = names[:: max(1, len(names) // SPECIES_SAMPLE)]
    ids = species_of_ids(sample)
    if ids is not None and 2 * ids.n > len(sample):
        return ids.species
    known = {species: sum(names_of(species).is_symbol(name) for name in sample) for species in ID_PREFIX}
    best = max(known, key=known.__getitem__)
    by_id = ids.n if ids is not None and ids.species == best else 0
    return best if 4 * (known[best] + by_id) > len(sample) else "unknown"


def frozen_table(
    table: GeneTable,
    vocabulary: GeneVocabulary,
    *,
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    seed: int = 0,
) -> Tensor:
    """Vectors for every token of a vocabulary: what a transformer with a frozen gene term looks its genes up in.

    The idea is that of UCE: genes are read by what is known of them (their protein, their text), so that genes and
    species that the transformer was not trained on can be read too. Special tokens get random vectors of the mean
    length of the others.

    Parameters
    ----------
    table
        Vectors by name.
    vocabulary
        Of the tokenizer.
    orthologues
        Translates genes of another species than the table's, see `scfm.genes.match`.
    seed
        Of the vectors of special tokens.

    Returns
    -------
    (V, d) float32, for ``TermSpec("table", rows=V, width=d, frozen=True, mlp=...)`` under ``terms.gene.table`` of a new
    model, and for `with_genes` of a trained one.

    Raises
    ------
    GeneMatchError
        If a gene has no vector; leave it out of the vocabulary.
    """
    is_gene = vocabulary.is_gene
    names = [name for name, gene in zip(vocabulary.names, is_gene, strict=True) if gene]
    columns = genes.match(
        names, table.vocabulary, species=_if_known(vocabulary, table), orthologues=orthologues
    ).columns
    missing = [name for name, column in zip(names, columns, strict=True) if column < 0]
    if missing:
        raise GeneMatchError(
            f"{len(missing):,} of {len(names):,} genes of the vocabulary have no vector in {table.source} "
            f"({', '.join(missing[:SHOWN])}); leave them out of the vocabulary"
        )
    length = float(np.linalg.norm(table.vectors, axis=1).mean())
    noise = torch.randn((len(vocabulary), table.width), generator=torch.Generator().manual_seed(seed))
    out = length * noise / noise.norm(dim=1, keepdim=True)
    out[torch.as_tensor(is_gene)] = torch.as_tensor(table.vectors[columns])
    return out


def _if_known(vocabulary: GeneVocabulary, table: GeneTable) -> str | None:
    return vocabulary.species if "unknown" not in (vocabulary.species, table.species) else None


def as_mapping(table: GeneTable) -> Mapping[str, NDArray[np.float32]]:
    """The vectors by name, as `add_species` takes them."""
    return dict(zip(table.names, table.vectors, strict=True))
