"""Which token is this name?

A vocabulary is frozen at its own annotation, so both sides are led to genes of the gene table and meet there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import NamedTuple

from scfm.genes._names import MISSING, GeneNames, How, names_of, respellings, strip_version
from scfm.genes._orthologues import Orthologues
from scfm.genes._table import canonical_species, has_table
from scfm.genes._vocabulary import GeneVocabulary

Found = tuple[int, How]
REMEMBERED = 2**17
"""Names whose answer is kept: data sets of a session share most of their genes, and several columns of one the names."""


class _Claims(NamedTuple):
    """Token (-1: none) and kind of name per row of the gene table, and token per main row of genes with several ids."""

    token: list[int]
    how: list[How]
    token_of_main: dict[int, int]


class Lookup:
    """Tokens of a vocabulary by any name of their genes (policy "resolve").

    The answer depends on the name and the vocabulary alone, never on the other columns of the data.
    """

    def __init__(self, vocabulary: GeneVocabulary) -> None:
        genes = vocabulary.is_gene.tolist()
        self.vocabulary = vocabulary
        self.species = canonical_species(vocabulary.species)
        self.upper = vocabulary.rule.upper and vocabulary.namespace == "symbol"
        self.exact = {name: i for i, name in enumerate(vocabulary.names) if genes[i]}
        self.find = lru_cache(maxsize=REMEMBERED)(self._find)

    def _find(self, name: str) -> Found | None:
        """Token id and how the name was recognised; None where the model has no such gene."""
        token = self.exact.get(name)
        if token is not None and name not in MISSING:
            return token, How.EXACT
        if name in MISSING:
            return None
        return self._by_name(name) or self._respelled(name)

    def find_orthologue(self, name: str, orthologues: Orthologues) -> Found | None:
        """The same for a name of another species: an exact name, else the token of its orthologue."""
        token = self.exact.get(name)
        if name in MISSING or token is not None:
            return None if token is None or name in MISSING else (token, How.EXACT)
        target = orthologues.find(name)
        if target is None and not orthologues.knows(name):
            target = next(filter(None, map(orthologues.find, respellings(name))), None)
        if target is None:
            return None
        token = self.exact.get(target)
        found = (token, How.EXACT) if token is not None else self._by_name(target)
        return None if found is None else (found[0], How.ORTHOLOGUE)

    def rivals(self, name: str) -> list[int]:
        """Several tokens whose genes share this symbol; empty where the symbol is clear."""
        rows = () if self._names is None else self._names.sharing(name)
        if not rows or name in self.exact:
            return []
        tokens = sorted({self._claims.token[row] for row in rows} - {-1})
        return tokens if len(tokens) > 1 else []

    @cached_property
    def _names(self) -> GeneNames | None:
        return names_of(self.species, upper=self.upper) if has_table(self.species) else None

    @cached_property
    def _main_of(self) -> dict[int, int]:
        return {} if self._names is None else self._names.same_gene

    def _by_name(self, name: str) -> Found | None:
        bare = strip_version(name)
        if bare is not None:
            token = self.exact.get(bare, self._versioned.get(bare))
            if token is not None:
                return token, How.VERSION
        if self.vocabulary.rule.upper and name.upper() in self.exact:
            return self.exact[name.upper()], How.UPPER
        found = None if self._names is None else self._names.find(bare or name)
        if found is not None:
            token_and_how = self._by_gene(*found)
            if token_and_how is not None:
                return token_and_how
        if found is None or bare is not None:
            token = self._own.get(bare or name)
            if token is not None:
                return token, How.PUBLISHED
        return None

    def _by_gene(self, how: How, rows: tuple[int, ...]) -> Found | None:
        claims = self._claims
        for row in rows:
            if claims.token[row] >= 0:
                return claims.token[row], max(how, claims.how[row], How.CURRENT)
        for row in rows:
            token = claims.token_of_main.get(self._main_of.get(row, row))
            if token is not None:
                return token, How.REPLACED
        return None

    def _respelled(self, name: str) -> Found | None:
        if self._names is not None and (self._names.knows(name)):
            return None
        for spelling in respellings(name):
            token = self.exact.get(spelling)
            found = (token, How.EXACT) if token is not None else self._by_name(spelling)
            if found is not None and spelling not in MISSING:
                return found[0], How.SPELLING
        return None

    @cached_property
    def _versioned(self) -> dict[str, int]:
        bare = ((strip_version(name), name, token) for name, token in self.exact.items())
        return _clear((stripped, token) for stripped, name, token in bare if stripped and stripped != name)

    @cached_property
    def _own(self) -> dict[str, int]:
        """What the vocabulary itself says: the symbols it lists, and its family's further names.

        With a gene table behind the vocabulary only ids are taken from the family's further names: those symbols were
        compiled without regard to names that several genes had.
        """
        aliases = self.vocabulary.rule.aliases
        own = {
            name: self.exact[target]
            for name, target in aliases.items()
            if target in self.exact and (self._names is None or strip_version(name) == name)
        }
        if self.vocabulary.symbols is not None:
            symbols = self.vocabulary.symbols
            own |= _clear((symbols[token], token) for token in self.exact.values() if symbols[token])
        return own

    @cached_property
    def _claims(self) -> _Claims:
        """The token of each gene of the table, by the best name that the vocabulary has for it.

        A token named by a symbol that several genes had (``QARS``) is the gene among them that no other token means.
        """
        names = self._names
        if names is None:
            return _Claims([], [], {})
        token_of, how_of = [-1] * len(names.ids), [How.ORTHOLOGUE] * len(names.ids)
        unclear = []
        for name, token in self.exact.items():
            found = names.find(strip_version(name) or name)
            if found is None:
                unclear.append((name, token))
                continue
            how, rows = found
            for row in rows:
                if token_of[row] < 0 or (how, token) < (how_of[row], token_of[row]):
                    token_of[row], how_of[row] = token, how
        for name, token in unclear:
            free = [row for row in names.formerly(name) if token_of[row] < 0]
            if len({names.symbols[row] for row in free}) == 1:
                for row in free:
                    token_of[row], how_of[row] = token, How.PREVIOUS
        best: dict[int, tuple[How, int]] = {}
        for row, main in self._main_of.items():
            for r in (row, main):
                if token_of[r] >= 0:
                    claim = how_of[r], token_of[r]
                    best[main] = min(best.get(main, claim), claim)
        return _Claims(token_of, how_of, {main: token for main, (_, token) in best.items()})


def _clear(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Names that occur once."""
    listed = list(pairs)
    times = Counter(name for name, _ in listed)
    return {name: token for name, token in listed if times[name] == 1}


@lru_cache(maxsize=16)
def lookup_of(vocabulary: GeneVocabulary) -> Lookup:
    """The look-up of a vocabulary, kept for the vocabularies used last."""
    return Lookup(vocabulary)
