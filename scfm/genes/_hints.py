"""Why do these names not fit? The likely species and case of names, for reports and errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scfm.genes._names import MISSING, names_of, strip_version
from scfm.genes._table import ID_PREFIX, canonical_species, has_table
from scfm.genes._vocabulary import GeneVocabulary

ENSEMBL_PREFIX = re.compile(r"ENS([A-Z]*)G\d{11}")
ENSEMBL_SPECIES = {
    "": "human",
    "MUS": "mouse",
    "RNO": "rat",
    "DAR": "zebrafish",
    "MMU": "macaque",
    "MFA": "crab-eating macaque",
    "PTR": "chimpanzee",
    "GGO": "gorilla",
    "CJA": "marmoset",
    "MIC": "mouse lemur",
    "GAL": "chicken",
    "SSC": "pig",
    "BTA": "cow",
    "CAF": "dog",
    "OCU": "rabbit",
    "XET": "frog",
}
SAMPLE = 5
Namespace = Literal["ensembl", "symbol", "mixed", "unknown"]
OVERWHELMING = 5


@dataclass(frozen=True)
class Impression:
    """What names look like: a species, how many of them speak for it, and whether their case is unusual."""

    species: str
    n: int
    wrong_case: bool = False
    examples: tuple[str, ...] = ()


def namespace_of(names: Sequence[str]) -> Namespace:
    """``"ensembl"``, ``"symbol"`` or ``"mixed"`` (at least one in twenty of the other kind); ``"unknown"`` if empty."""
    present = [name for name in names if name not in MISSING]
    if not present:
        return "unknown"
    share = sum(strip_version(name) is not None for name in present) / len(present)
    return "ensembl" if share > 0.95 else "symbol" if share < 0.05 else "mixed"


def species_of_ids(names: Sequence[str]) -> Impression | None:
    """The species with most Ensembl ids; None without ids."""
    prefixes = Counter(found[1] for name in names if (found := ENSEMBL_PREFIX.match(name)))
    if not prefixes:
        return None
    prefix, n = prefixes.most_common(1)[0]
    examples = [name for name in names if (m := ENSEMBL_PREFIX.match(name)) and m[1] == prefix][:SAMPLE]
    return Impression(ENSEMBL_SPECIES.get(prefix, f"species of ENS{prefix}G ids"), n, examples=tuple(examples))


def foreign_ids(names: Sequence[str], own: str) -> Impression | None:
    """The other species with most Ensembl ids; None without such ids."""
    prefix = ID_PREFIX.get(own)
    found = species_of_ids([n for n in names if strip_version(n) and not (prefix and n.startswith(prefix))])
    return found if found is not None and found.species != own else None


def impression(names: Sequence[str], vocabulary: GeneVocabulary) -> Impression | None:
    """What the names look like if not like the vocabulary's; None without a better idea.

    Looks at Ensembl ids of other species, at symbols of the species with a gene table, and at names of the vocabulary
    (or symbols of its species) in another case.
    """
    own = canonical_species(vocabulary.species)
    table = names_of(own) if has_table(own) else None
    strange = [name for name in names if name not in vocabulary.index and not (table and table.is_symbol(name))]
    ideas: list[Impression] = []
    if by_id := foreign_ids(strange, own):
        ideas.append(by_id)
    for species in ID_PREFIX:
        if species != own:
            known = [name for name in strange if names_of(species).is_symbol(name)]
            ideas.append(Impression(species, len(known), examples=tuple(known[:SAMPLE])))
    folded = {name.upper() for name, gene in zip(vocabulary.names, vocabulary.is_gene, strict=True) if gene}
    if table is not None:
        folded.update(symbol.upper() for symbol in table.symbols if table.is_symbol(symbol))
    cased = [name for name in strange if name.upper() in folded and not (table and table.knows(name))]
    if not vocabulary.rule.upper:
        ideas.append(Impression(own, len(cased), wrong_case=True, examples=tuple(cased[:SAMPLE])))
    best = max(ideas, key=lambda idea: idea.n, default=None)
    return best if best is not None and best.n else None


def contradicts(idea: Impression, n_evident: int) -> bool:
    """Whether so many names look like something else that the few that fit as they are must be chance."""
    return idea.n >= OVERWHELMING * max(n_evident, 1)


def worth_a_note(idea: Impression, n_names: int) -> bool:
    """Whether a twentieth of the names or more look like something else."""
    return 20 * idea.n >= n_names


def explain(idea: Impression, own: str) -> str:
    """What was recognised and what to do next."""
    shown = ", ".join(map(repr, idea.examples))
    if idea.wrong_case:
        verb = "capitalize" if own == "mouse" else "upper"
        return (
            f"{idea.n:,} names ({shown}) are {own} gene names in another case: restore it before matching, for example "
            f"with adata.var_names = adata.var_names.str.{verb}()"
        )
    advice = "translate them through one-to-one orthologues (orthologues=True in scfm.genes.match)"
    if {idea.species, own} != set(ID_PREFIX):
        advice = "translate them first, or give a table of orthologues to scfm.genes.match(..., orthologues=)"
    return (
        f"{idea.n:,} names ({shown}) look like {idea.species} genes, while the vocabulary is {own}: {advice}, "
        "or choose a model of this species"
    )
