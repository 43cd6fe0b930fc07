"""Which gene of the other species is this?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from scfm.errors import GeneMatchError
from scfm.genes._names import names_of, strip_version
from scfm.genes._table import ID_PREFIX, canonical_species, has_table, orthologues

OrthologueTable: TypeAlias = Literal[True] | str | Path | pd.DataFrame


@dataclass(frozen=True)
class Orthologues:
    """Names of one species with their partners in another.

    Parameters
    ----------
    species
        Species of the data.
    partner
        Name in the species of the vocabulary, for each name (ids without version).
    source
        Where the pairs are from, in words.
    n_left_out
        Pairs that are not one-to-one and were left out.
    """

    species: str
    partner: dict[str, str]
    source: str
    n_left_out: int = 0

    def find(self, name: str) -> str | None:
        """The partner of an id or symbol; None where it has none."""
        for known in self._same_gene(name):
            partner = self.partner.get(known)
            if partner is not None:
                return partner
        return None

    def knows(self, name: str) -> bool:
        """Whether this is a name of any gene of the species."""
        return has_table(self.species) and names_of(self.species).knows(strip_version(name) or name)

    def _same_gene(self, name: str) -> list[str]:
        bare = strip_version(name) or name
        known = [name, bare]
        if has_table(self.species):
            names = names_of(self.species)
            _, rows = names.find(bare) or (None, ())
            for row in (*rows, *(names.same_gene.get(r, r) for r in rows)):
                known += [names.ids[row], names.symbols[row]]
        return [k for k in known if k]


def read_orthologues(
    table: OrthologueTable,
    *,
    data_species: str,
    vocabulary_species: str,
    names: Collection[str],
    one_to_one: bool = True,
) -> Orthologues:
    """Make a table of orthologues ready for the names of the data.

    Parameters
    ----------
    table
        True for the table of human and mouse that ships with scfm; a frame or a file (csv, tsv, also gzipped) with
        one pair per row. The columns are found by their names (with ``human`` or ``mouse`` in them) or by what they
        hold: Ensembl ids of the species, or names of the data.
    data_species, vocabulary_species
        From which species to which.
    names
        Names of the data.
    one_to_one
        Leave out names with several partners; otherwise the first row of a name counts.

    Raises
    ------
    GeneMatchError
        The table lacks one of the species, or no table ships for this pair.
    """
    if table is True:
        if {data_species, vocabulary_species} != set(ID_PREFIX):
            raise GeneMatchError(
                f"the shipped orthologues join human and mouse, not {data_species} and {vocabulary_species}; give a table "
                "of your own with orthologues=<DataFrame or path>, one column of names for each species"
            )
        frame, source = orthologues(), "the shipped one-to-one table"
        from_column, to_column = f"{data_species}_ensembl_id", f"{vocabulary_species}_ensembl_id"
    else:
        frame, source = (
            (table, "the table given") if isinstance(table, pd.DataFrame) else (_read(table), Path(table).name)
        )
        bare_names = {strip_version(name) or name for name in names}
        from_column = _column(frame, data_species, bare_names)
        rest = frame.drop(columns=from_column)
        to_column = _column(rest, vocabulary_species, ())
    return _pairs(frame, from_column, to_column, data_species, source, one_to_one)


def _read(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise GeneMatchError(f"no table of orthologues at {str(path)!r}; give a csv or tsv file, a DataFrame, or True")
    return pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)


def _column(frame: Any, species: str, names: Collection[str]) -> str:
    """The column that holds a species' names: by what it holds first, then by its title."""
    prefix = ID_PREFIX.get(canonical_species(species))
    share = {}
    for column in frame.columns:
        values = [v for v in frame[column].astype(str) if v]
        ids = sum(prefix is not None and v.startswith(prefix) and strip_version(v) is not None for v in values)
        own = sum((strip_version(v) or v) in names for v in values)
        share[column] = max(ids, own) + 0.5 * (species in str(column).lower()) * bool(values)
    best = max(share, key=share.__getitem__, default=None)
    if best is None or share[best] == 0:
        raise GeneMatchError(
            f"the table of orthologues has no column of {species} names (columns: {', '.join(map(str, frame.columns))}); "
            f"name one '{species}_ensembl_id' or '{species}_symbol'"
        )
    return str(best)


def _pairs(
    frame: Any, from_column: str, to_column: str, data_species: str, source: str, one_to_one: bool
) -> Orthologues:
    listed: dict[tuple[str, str], None] = {}
    for a, b in zip(frame[from_column].astype(str), frame[to_column].astype(str), strict=True):
        if a and b and a != "nan" and b != "nan":
            listed[strip_version(a) or a, strip_version(b) or b] = None
    left, right = Counter(a for a, _ in listed), Counter(b for _, b in listed)
    partner: dict[str, str] = {}
    for a, b in listed:
        if not one_to_one or left[a] == right[b] == 1:
            partner.setdefault(a, b)
    return Orthologues(data_species, partner, source, n_left_out=len(listed) - len(partner))
