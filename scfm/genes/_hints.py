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


def impression(names: Sequence[str], vocabulary: GeneVocabulary) -> Impression | None:
    """What the names look like if not like the vocabulary's; None without a better idea.

    Looks at Ensembl ids of other species, at symbols of the species with a gene table, and at names of the vocabulary
    (or symbols of its species) in another case.
    """
    own = canonical_species(vocabulary.species)
    ideas = []
    by_id = species_of_ids(names)
    if by_id is not None and by_id.species != own:
        ideas.append(by_id)
    for species in ID_PREFIX:
        if species != own and not vocabulary.rule.upper:
            known = [name for name in names if names_of(species).is_symbol(name)]
            ideas.append(Impression(species, len(known), examples=tuple(known[:SAMPLE])))
    folded = {name.upper(): name for name, gene in zip(vocabulary.names, vocabulary.is_gene, strict=True) if gene}
    table = names_of(own) if has_table(own) else None
    if table is not None:
        folded |= {symbol.upper(): symbol for symbol in table.symbols if symbol and table.is_symbol(symbol)}
    cased = [name for name in names if folded.get(name.upper(), name) != name and not (table and table.knows(name))]
    ideas.append(Impression(own, len(cased), wrong_case=True, examples=tuple(cased[:SAMPLE])))
    best = max(ideas, key=lambda idea: idea.n)
    return best if best.n else None


def contradicts(idea: Impression, n_matched: int) -> bool:
    """Whether so many names look like something else that the few matches must be chance."""
    return idea.n >= OVERWHELMING * max(n_matched, 1)


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
