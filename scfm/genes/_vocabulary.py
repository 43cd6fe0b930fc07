"""What tokens does a model know?

A vocabulary is the frozen list of a model's token names; the position of a name is its id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.errors import GeneMatchError

Duplicates = Literal["sum", "keep", "first", "mean"]


@dataclass(frozen=True)
class PublishedRule:
    """How a family's own code turns the names of the data into tokens.

    Parameters
    ----------
    upper
        The name is upper-cased before the look-up.
    aliases
        Further names, each with the vocabulary name it stands for.
    duplicates
        What happens to several columns of one gene: counts summed, each kept as a token of its own,
        only the first used, or averaged (half to even).
    """

    upper: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)
    duplicates: Duplicates = "sum"


@dataclass(frozen=True, eq=False)
class GeneVocabulary:
    """The token names of a model.

    Parameters
    ----------
    names
        Token name of each id: Ensembl ids or symbols for genes, any text for special tokens.
    namespace
        What the gene names are.
    specials
        Role of each special token (``"pad"``, ``"mask"``, ``"cls"``, ``"eos"``, ...) and its id.
        Every other id is a gene.
    species
        Species of the genes.
    symbols
        Names to show to people, one per id; ``names`` where absent.
    rule
        The family's own matching rule, used with ``gene_matching="published"``.
    """

    names: tuple[str, ...]
    namespace: Literal["ensembl", "symbol"]
    specials: Mapping[str, int] = field(default_factory=dict)
    species: str = "human"
    symbols: tuple[str, ...] | None = field(default=None, repr=False)
    rule: PublishedRule = field(default_factory=PublishedRule, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if len(set(self.names)) != len(self.names):
            seen: set[str] = set()
            twice = [n for n in self.names if n in seen or seen.add(n)]  # type: ignore[func-returns-value]
            raise GeneMatchError(
                f"the vocabulary lists {len(twice)} names twice ({', '.join(twice[:3])}); every token name must be unique"
            )
        if self.symbols is not None and len(self.symbols) != len(self.names):
            raise GeneMatchError(f"{len(self.symbols)} symbols were given for {len(self.names)} token names")
        wrong = {role: i for role, i in self.specials.items() if not 0 <= i < len(self.names)}
        if wrong:
            raise GeneMatchError(f"special tokens {wrong} lie outside the {len(self.names)} names of the vocabulary")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        n_genes = int(self.is_gene.sum())
        return (
            f"GeneVocabulary({n_genes:,} genes, {len(self) - n_genes} other tokens, {self.species}, {self.namespace})"
        )

    @cached_property
    def index(self) -> dict[str, int]:
        """Id of each token name."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def is_gene(self) -> NDArray[np.bool_]:
        """(V,) True where the id is a gene."""
        genes = np.ones(len(self.names), dtype=bool)
        genes[list(self.specials.values())] = False
        return genes

    def display(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """Names to show to people."""
        shown = self.symbols or self.names
        return [shown[i] or self.names[i] for i in ids]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "names": list(self.names),
            "namespace": self.namespace,
            "specials": dict(self.specials),
            "species": self.species,
            "symbols": None if self.symbols is None else list(self.symbols),
            "rule": {
                "upper": self.rule.upper,
                "aliases": dict(self.rule.aliases),
                "duplicates": self.rule.duplicates,
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GeneVocabulary:
        """The inverse of `to_dict`."""
        symbols = data.get("symbols")
        return cls(
            names=tuple(data["names"]),
            namespace=data["namespace"],
            specials=dict(data["specials"]),
            species=data["species"],
            symbols=None if symbols is None else tuple(symbols),
            rule=PublishedRule(**data["rule"]),
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> GeneVocabulary:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
