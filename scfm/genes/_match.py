"""Which token is each column of the data?

`match` chooses the column of ``var`` with the gene names, finds a token for each name and reports what it did.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.errors import GeneMatchError
from scfm.genes._hints import (
    SAMPLE,
    Impression,
    contradicts,
    explain,
    foreign_ids,
    impression,
    namespace_of,
    species_of_ids,
    worth_a_note,
)
from scfm.genes._lookup import Found, lookup_of
from scfm.genes._names import MISSING, How
from scfm.genes._orthologues import Orthologues, read_orthologues
from scfm.genes._report import MatchReport, Policy, counted
from scfm.genes._table import canonical_species
from scfm.genes._vocabulary import Duplicates, GeneVocabulary

INDEX = "var_names"
USUAL_KEYS = (
    "gene_ids",
    "gene_id",
    "ensembl_id",
    "ensembl_ids",
    "ensembl_gene_id",
    "ensembl",
    "feature_id",
    "feature_ids",
    "id",
    "feature_name",
    "gene_name",
    "gene_names",
    "gene_symbols",
    "gene_symbol",
    "symbol",
    "symbols",
    "gene",
    "genes",
    "hgnc_symbol",
    "mgi_symbol",
    "features",
    "accession",
)
SHOWN = 10
GENE_EXPRESSION = "Gene Expression"
Find = Callable[[str], Found | None]


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """The token of each column.

    Parameters
    ----------
    columns
        (n_vars,) int32 token id of each column, -1 where the model has no such gene.
    duplicates
        What happens to several columns of one token.
    report
        What was found and done.
    """

    columns: NDArray[np.int32]
    duplicates: Duplicates
    report: MatchReport

    @property
    def n_matched(self) -> int:
        """Number of columns with a token."""
        return int(np.count_nonzero(self.columns >= 0))

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(V,) True for the tokens that have a column in the data."""
        present = np.zeros(self.report.vocabulary_size, dtype=bool)
        present[self.columns[self.columns >= 0]] = True
        return present


def match(
    var: pd.DataFrame | Sequence[str],
    vocabulary: GeneVocabulary,
    *,
    gene_key: str | None = None,
    policy: Policy = "resolve",
    species: str | None = None,
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
) -> GeneMatch:
    """Find the token of each column.

    Parameters
    ----------
    var
        ``adata.var``, or the names alone.
    vocabulary
        What the model knows.
    gene_key
        Column of ``var`` with the names, ``"var_names"`` for the index. Default: the one with most matches among the
        index and the usual columns (``gene_ids``, ``feature_name``, ``symbol``, ...), else among all columns of text.
    policy
        ``"resolve"``: an exact name; else the Ensembl id without its version; else the gene that the name stands for
        today, stood for formerly or is an alias of, if that is one gene, under whichever name the vocabulary has it.
        Several columns of a gene are summed. ``"published"``: the rule of the model's authors and nothing else.
    species
        Species of the data; default: recognised.
    orthologues
        Translate data of another species: True for the shipped one-to-one orthologues of human and mouse, or a table
        of pairs (a frame or a file).

    Raises
    ------
    GeneMatchError
        Nothing matches, ``gene_key`` is not there, or the names are of another species or in another case.
    """
    if policy not in ("resolve", "published"):
        raise GeneMatchError(f"gene matching {policy!r} is unknown; choose 'resolve' or 'published'")
    candidates = _candidates(var, gene_key)
    own = canonical_species(vocabulary.species)
    given = None if species is None else canonical_species(species)
    if given not in (None, own) and orthologues is None and policy == "resolve":
        raise GeneMatchError(
            f"the data are {species} and the vocabulary is {own}; translate through one-to-one orthologues "
            "(orthologues=True in scfm.genes.match) or choose a model of this species"
        )
    choice = _best(candidates, _finder(vocabulary, policy, None))
    if not choice.n_matched and gene_key is None and isinstance(var, pd.DataFrame):
        others = {str(c): _texts(var[c]) for c in var.columns if str(c) not in candidates and _is_text(var[c])}
        choice = _best(candidates | others, _finder(vocabulary, policy, None))
    if orthologues is not None or 2 * choice.n_evident < len(choice.names):
        idea = impression(choice.names, vocabulary)
    else:
        idea = foreign_ids(choice.unmatched, own)
    translation = None
    if orthologues is not None:
        source = given or _source_species(choice, own, idea)
        if source != own:
            translation = read_orthologues(
                orthologues,
                data_species=source,
                vocabulary_species=own,
                names={name for names in candidates.values() for name in names},
                one_to_one=policy == "resolve",
            )
            choice = _best(candidates, _finder(vocabulary, policy, translation))
    if policy == "resolve":
        choice = _without_other_features(choice, var)
    confused = idea is not None and policy == "resolve" and given is None and contradicts(idea, choice.n_evident)
    if choice.n_matched == 0 or (confused and translation is None):
        raise _mismatch(choice, vocabulary, idea)
    data_species = given or (translation.species if translation else _species(choice, own, idea))
    return _result(choice, vocabulary, policy, data_species, None if translation else idea, translation)


@dataclass(frozen=True)
class _Choice:
    """A column of names and what was found for each."""

    key: str
    names: list[str]
    found: list[Found | None]
    notes: tuple[str, ...] = ()

    @cached_property
    def n_matched(self) -> int:
        return len(self.found) - self.found.count(None)

    @cached_property
    def unmatched(self) -> list[str]:
        """Names without a token."""
        return [name for name, found in zip(self.names, self.found, strict=True) if found is None]

    def recognised(self, how: How) -> list[str]:
        """Names that were found in this way."""
        return [name for name, found in zip(self.names, self.found, strict=True) if found and found[1] is how]

    @cached_property
    def n_evident(self) -> int:
        """Matches that did not need another case."""
        return sum(f is not None and f[1] is not How.UPPER for f in self.found)


def _candidates(var: Any, gene_key: str | None) -> dict[str, list[str]]:
    """Candidates for the column of names, the preferred one first."""
    if not isinstance(var, pd.DataFrame):
        if isinstance(var, str):
            raise GeneMatchError(f"gene names must be a sequence of names or adata.var; found the text {var!r}")
        if gene_key not in (None, INDEX):
            raise GeneMatchError(f"gene_key={gene_key!r} needs adata.var; only a list of names was given")
        return {INDEX: _texts(var)}
    if gene_key is not None:
        if gene_key in var.columns:
            return {gene_key: _texts(var[gene_key])}
        if gene_key in (INDEX, "index", var.index.name):
            return {INDEX: _texts(var.index)}
        raise GeneMatchError(
            f"gene_key={gene_key!r} is not in var; its columns are {', '.join(map(str, var.columns)) or '(none)'}, "
            f"and {INDEX!r} means the index"
        )
    usual = {key: place for place, key in enumerate(USUAL_KEYS)}
    known = [c for c in var.columns if str(c).lower() in usual]
    known.sort(key=lambda c: usual[str(c).lower()])
    return {INDEX: _texts(var.index)} | {str(c): _texts(var[c]) for c in known}


def _texts(values: Any) -> list[str]:
    return [value if isinstance(value, str) else "" if value is None else str(value) for value in list(values)]


def _is_text(values: Any) -> bool:
    return not pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)


def _finder(vocabulary: GeneVocabulary, policy: Policy, translation: Orthologues | None) -> Find:
    if policy == "resolve":
        lookup = lookup_of(vocabulary)
        if translation is None:
            return lookup.find
        return lambda name: lookup.find_orthologue(name, translation)
    return _published(vocabulary, {} if translation is None else translation.partner)


def _published(vocabulary: GeneVocabulary, partner: Mapping[str, str]) -> Find:
    rule = vocabulary.rule
    exact = lookup_of(vocabulary).exact

    def find(name: str) -> Found | None:
        if name in MISSING:
            return None
        how = How.ORTHOLOGUE if name in partner else How.EXACT
        name = partner.get(name, name)
        if rule.upper and name != name.upper():
            name, how = name.upper(), max(how, How.UPPER)
        if name in exact:
            return exact[name], how
        target = rule.aliases.get(name)
        return (exact[target], max(how, How.PUBLISHED)) if target in exact else None

    return find


def _best(candidates: Mapping[str, list[str]], find: Find) -> _Choice:
    """The candidate with most matches; among equals the one with most exact ones, then the first."""
    choices = [_Choice(key, names, [find(name) for name in names]) for key, names in candidates.items()]
    return max(choices, key=lambda c: (c.n_matched, sum(f is not None and f[1] is How.EXACT for f in c.found)))


def _without_other_features(choice: _Choice, var: Any) -> _Choice:
    """Antibodies and other features beside gene expression have no token, whatever they are called."""
    if not isinstance(var, pd.DataFrame) or "feature_types" not in var:
        return choice
    kinds = _texts(var["feature_types"])
    if GENE_EXPRESSION not in kinds:
        return choice
    found = [f if kind == GENE_EXPRESSION else None for f, kind in zip(choice.found, kinds, strict=True)]
    others = Counter(kind for kind in kinds if kind != GENE_EXPRESSION)
    if not others:
        return choice
    shown = ", ".join(f"{n:,} {kind}" for kind, n in others.most_common(3))
    return replace(choice, found=found, notes=(f"columns beside gene expression have no token ({shown})",))


def _source_species(choice: _Choice, own: str, idea: Impression | None) -> str:
    """Species to translate from."""
    if idea is not None and not idea.wrong_case and idea.n > choice.n_evident:
        return idea.species
    return own if 2 * choice.n_matched >= len(choice.names) else "unknown"


def _species(choice: _Choice, own: str, idea: Impression | None) -> str:
    """Species to report."""
    ids = species_of_ids(choice.names)
    if ids is not None and 2 * ids.n > len(choice.names):
        return ids.species
    return idea.species if idea is not None and idea.n > choice.n_evident else own


def _mismatch(choice: _Choice, vocabulary: GeneVocabulary, idea: Impression | None) -> GeneMatchError:
    own = canonical_species(vocabulary.species)
    genes = np.flatnonzero(vocabulary.is_gene)[:SHOWN]
    what = f"only {choice.n_matched:,}" if choice.n_matched else "none"
    advice = "name the column of var that holds Ensembl ids or gene symbols with gene_key="
    return GeneMatchError(
        f"{what} of the {len(choice.names):,} gene names of the data ({choice.key!r}: "
        f"{', '.join(map(repr, choice.names[:SAMPLE]))}, ...) fit the vocabulary of {own} {vocabulary.namespace} names "
        f"({', '.join(repr(vocabulary.names[i]) for i in genes[:SAMPLE])}, ...). "
        + (explain(idea, own) if idea is not None else f"Next step: {advice}")
    )


def _result(
    choice: _Choice,
    vocabulary: GeneVocabulary,
    policy: Policy,
    species: str,
    idea: Impression | None,
    translation: Orthologues | None,
) -> GeneMatch:
    duplicates: Duplicates = "sum" if policy == "resolve" else vocabulary.rule.duplicates
    columns_of: dict[int, list[int]] = defaultdict(list)
    columns = np.full(len(choice.names), -1, dtype=np.int32)
    for column, found in enumerate(choice.found):
        if found is not None:
            columns[column] = found[0]
            columns_of[found[0]].append(column)
    several = {token: where for token, where in columns_of.items() if len(where) > 1}
    if duplicates == "first":
        for where in several.values():
            columns[where[1:]] = -1
    how = Counter(found[1] for found, token in zip(choice.found, columns, strict=True) if found and token >= 0)
    report = MatchReport(
        policy=policy,
        gene_key=choice.key,
        namespace=namespace_of(choice.names),
        species=species,
        vocabulary_species=canonical_species(vocabulary.species),
        vocabulary_namespace=vocabulary.namespace,
        vocabulary_size=len(vocabulary),
        n_vocabulary_genes=int(vocabulary.is_gene.sum()),
        n_vars=len(choice.names),
        n_matched=int(np.count_nonzero(columns >= 0)),
        n_genes=len(columns_of),
        n_duplicates=sum(len(where) - 1 for where in several.values()),
        duplicates=duplicates,
        duplicate_names={
            vocabulary.display([token])[0]: tuple(choice.names[c] for c in several[token])
            for token in sorted(several)[:SAMPLE]
        },
        how={kind.label: how[kind] for kind in sorted(how)},
        unmatched=tuple(choice.unmatched[:SHOWN]),
        notes=choice.notes + tuple(_notes(choice, vocabulary, policy, idea, translation)),
    )
    return GeneMatch(columns, duplicates, report)


def _notes(
    choice: _Choice,
    vocabulary: GeneVocabulary,
    policy: Policy,
    idea: Impression | None,
    translation: Orthologues | None,
) -> Iterator[str]:
    if translation is not None:
        partners = sum(translation.find(name) is not None for name in choice.names)
        left_out = (
            f", {translation.n_left_out:,} pairs that are not one-to-one left out" if translation.n_left_out else ""
        )
        yield (
            f"{translation.species} names were translated through {translation.source}: {partners:,} of "
            f"{len(choice.names):,} have an orthologue{left_out}"
        )
    respelled = choice.recognised(How.SPELLING)
    if respelled:
        yield f"{counted(len(respelled), 'name')} read without a suffix or in their plain spelling ({_some(respelled)})"
    if policy == "resolve" and translation is None:
        lookup = lookup_of(vocabulary)
        unclear = [name for name in dict.fromkeys(choice.recognised(How.CURRENT)) if lookup.rivals(name)]
        if unclear:
            yield f"{counted(len(unclear), 'symbol')} shared by several ids; the first protein-coding one taken ({_some(unclear)})"
    if idea is not None and worth_a_note(idea, len(choice.names)):
        yield explain(idea, canonical_species(vocabulary.species))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SAMPLE]) + (", ..." if len(names) > SAMPLE else "")
