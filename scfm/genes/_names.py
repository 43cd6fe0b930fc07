"""Which gene does a name stand for?

Every name of a species' genes (ids, symbols of today and of the past, aliases) with the rows of the gene table it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import cache

from scfm.genes._table import gene_columns

ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?(?:_PAR_Y)?")
NAME_AND_ID = re.compile(r"(?:(.+)[_|])?(ENS[A-Z]*G\d{11})(?:\.\d+)?(?:[_|](.+))?")
REPEATED = re.compile(r"(.+)-\d{1,2}")
MISSING = frozenset({"", "nan", "NaN", "None", "none", "NA", "N/A", "<NA>"})


class How(IntEnum):
    """How a name was recognised, from the best evidence to the weakest."""

    EXACT = 0
    VERSION = 1
    UPPER = 2
    CURRENT = 3
    PREVIOUS = 4
    ALIAS = 5
    OLDER = 6
    REPLACED = 7
    PUBLISHED = 8
    SPELLING = 9
    ORTHOLOGUE = 10

    @property
    def label(self) -> str:
        """Words for people and for `MatchReport.how`."""
        return LABELS[self]


LABELS = {
    How.EXACT: "exact",
    How.VERSION: "version",
    How.UPPER: "upper case",
    How.CURRENT: "current symbol",
    How.PREVIOUS: "previous symbol",
    How.ALIAS: "alias",
    How.OLDER: "older Ensembl name",
    How.REPLACED: "other id of the gene",
    How.PUBLISHED: "the model's own table",
    How.SPELLING: "spelling",
    How.ORTHOLOGUE: "orthologue",
}
N_HOW = len(How)
KINDS = tuple(How)


def strip_version(name: str) -> str | None:
    """The bare Ensembl gene id in ``ENSG00000002586.20_PAR_Y``; None where the name is no Ensembl gene id."""
    if not name.startswith("ENS"):
        return None
    found = ENSEMBL_ID.fullmatch(name)
    return found[1] if found else None


def respellings(name: str) -> Iterator[str]:
    """What a name was before a program changed it.

    The id, else the symbol, in ``PTPRC_ENSG00000081237``; the name before it was made unique (``MATR3-1``) or a legal name in R
    (``HLA.A``, ``X1110004E09Rik``).
    """
    both = NAME_AND_ID.fullmatch(name)
    if both and both[2] != name:
        yield from filter(None, (both[2], both[1], both[3]))
    repeated = REPEATED.fullmatch(name)
    if repeated:
        yield repeated[1]
    plain = name[1:] if name[:1] == "X" and name[1:2].isdigit() else name
    if plain != name:
        yield plain
    if "." in plain:
        yield plain.replace(".", "-")


class GeneNames:
    """Names of all genes of one species.

    Parameters
    ----------
    columns
        The gene table as lists, one per column, ascending Ensembl ids.
    upper
        Names are compared in upper case (ids always as they are).

    Notes
    -----
    A name means, in this order: the gene it is the current symbol of (several ids may share it: protein-coding first,
    X before Y, then the lowest id), the one gene that had it as a symbol before, the one gene it is an alias of, the one
    id that had it in an older Ensembl release, the retired id that had it. A kind of name counts only where no better
    kind knows the name, so an alias that is another gene's symbol, and a name that several genes had, mean nothing.
    """

    def __init__(self, columns: dict[str, list[str]], *, upper: bool = False) -> None:
        self.ids = columns["ensembl_id"]
        self.symbols = columns["symbol"]
        self._upper = upper
        self._row_of_id = {name: row for row, name in enumerate(self.ids)}
        self._preference = [
            (status != "current", biotype != "protein_coding", chromosome == "Y", row)
            for row, (status, biotype, chromosome) in enumerate(
                zip(columns["status"], columns["biotype"], columns["chromosome"], strict=True)
            )
        ]
        current = [status == "current" for status in columns["status"]]
        kinds = (
            (How.CURRENT, self.symbols, True),
            (How.PREVIOUS, columns["previous_symbols"], True),
            (How.ALIAS, columns["alias_symbols"], True),
            (How.OLDER, columns["older_symbols"], True),
            (How.OLDER, self.symbols, False),
        )
        self._meaning: dict[str, int] = {}
        self._further: dict[str, tuple[int, ...]] = {}
        self._unclear: dict[str, tuple[How, tuple[int, ...]]] = {}
        for how, texts, of_current in kinds:
            self._learn(how, texts, [c is of_current for c in current])
        self.same_gene = self._same_gene(columns, current)

    def find(self, name: str) -> tuple[How, tuple[int, ...]] | None:
        """Rows of the gene that a name or (bare) Ensembl id stands for, the preferred one first; None if unknown."""
        row = self._row_of_id.get(name)
        if row is not None:
            return How.EXACT, (row,)
        return self._find_symbol(name.upper() if self._upper else name)

    def formerly(self, name: str) -> tuple[int, ...]:
        """Rows of the several genes that had a name as their symbol; empty for all other names."""
        how, rows = self._unclear.get(name.upper() if self._upper else name, (How.CURRENT, ()))
        return rows if how is How.PREVIOUS else ()

    def sharing(self, symbol: str) -> tuple[int, ...]:
        """Rows of the several ids that share a symbol; empty where it is the symbol of one or of none."""
        return self._further.get(symbol.upper() if self._upper else symbol, ())

    def knows(self, name: str) -> bool:
        """Whether this is a name of any gene, clear or not."""
        return self.find(name) is not None or (name.upper() if self._upper else name) in self._unclear

    def is_symbol(self, name: str) -> bool:
        """Whether a gene is called so today."""
        return self._meaning.get(name, -1) % N_HOW == How.CURRENT

    def _find_symbol(self, name: str) -> tuple[How, tuple[int, ...]] | None:
        code = self._meaning.get(name)
        if code is None:
            return None
        row, how = divmod(code, N_HOW)
        return KINDS[how], self._further.get(name) or (row,)

    def _learn(self, how: How, texts: list[str], wanted: list[bool]) -> None:
        """Add the names of one kind that no better kind knows.

        The meaning is kept as one number (preferred row and kind): a hundred thousand small tuples would keep the
        garbage collector busy.
        """
        first: dict[str, int] = {}
        more: dict[str, list[int]] = {}
        for row, (text, use) in enumerate(zip(texts, wanted, strict=True)):
            if text and use:
                folded = text.upper() if self._upper else text
                for name in folded.split("|") if "|" in folded else (folded,):
                    if first.setdefault(name, row) != row:
                        more.setdefault(name, [first[name]]).append(row)
        for name, row in first.items():
            if name in self._meaning or name in self._unclear:
                continue
            rows = sorted(set(more.get(name, (row,))), key=self._preference.__getitem__) if name in more else [row]
            if len({self.symbols[r] or r for r in rows}) > 1:
                self._unclear[name] = how, tuple(rows)
                continue
            self._meaning[name] = rows[0] * N_HOW + how
            if len(rows) > 1:
                self._further[name] = tuple(rows)

    def _same_gene(self, columns: dict[str, list[str]], current: list[bool]) -> dict[int, int]:
        """Row of the main id, for each row that is one more id of a gene.

        More ids are: the copy of a pseudo-autosomal gene on Y, a second protein-coding id of one symbol on the same
        chromosome, and a retired id whose name belongs to one gene of today on the same chromosome.
        """
        chromosome, biotype = columns["chromosome"], columns["biotype"]
        main: dict[int, int] = {}
        for name, rows in self._further.items():
            if len(rows) == 2 and self.is_symbol(name):
                first, second = rows
                both_coding = biotype[first] == biotype[second] == "protein_coding"
                places = (chromosome[first], chromosome[second])
                if places == ("X", "Y") or (both_coding and places[0] == places[1]):
                    main[second] = first
        coding = [b == "protein_coding" for b in biotype]
        for row, (symbol, is_current) in enumerate(zip(self.symbols, current, strict=True)):
            if symbol and not is_current:
                how, rows = self._find_symbol(symbol.upper() if self._upper else symbol) or (How.OLDER, ())
                genes = {main.get(r, r) for r in rows}
                if how in (How.CURRENT, How.PREVIOUS) and len(genes) == 1:
                    gene = genes.pop()
                    alike = how is How.CURRENT or coding[gene] == coding[row]
                    if alike and chromosome[gene] == chromosome[row]:
                        main[row] = gene
        return main


@cache
def names_of(species: str, *, upper: bool = False) -> GeneNames:
    """The names of a species that has a gene table; built once."""
    return GeneNames(gene_columns(species), upper=upper)
