"""Which label is a kind of which? A tree or graph of labels, given by hand or read from an OBO file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scfm.errors import ConfigError

__all__ = ["Ontology"]


@dataclass(frozen=True)
class Ontology:
    """Labels and what they are kinds of.

    Parameters
    ----------
    parents
        The direct parents of each node; nodes that are nobody's child may be left out.
    names
        Names of nodes, where nodes are ids.
    aliases
        Further names of nodes: lower-case text and node.

    Examples
    --------
    >>> tree = Ontology.of({"CD4 T": "T", "CD8 T": "T", "T": "lymphocyte", "B": "lymphocyte"})
    >>> sorted(tree.ancestors("CD4 T"))
    ['CD4 T', 'T', 'lymphocyte']
    """

    parents: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    aliases: Mapping[str, str]

    @classmethod
    def of(cls, source: Ontology | Mapping[str, str | Iterable[str]] | str | Path) -> Ontology:
        """From parents by label (one, or several), from an OBO file, or as it is.

        Raises
        ------
        ConfigError
            If the file is not there or holds no term, or a label is its own ancestor.
        """
        if isinstance(source, Ontology):
            return source
        if isinstance(source, str | Path):
            return _read_obo(Path(source))
        parents = {str(k): (v,) if isinstance(v, str) else tuple(map(str, v)) for k, v in source.items()}
        found = cls(parents, {}, {})
        for node in parents:
            if any(node in found.ancestors(parent) for parent in parents[node]):
                raise ConfigError(f"in the tree of labels {node!r} is its own ancestor; correct its parents")
        return found

    def node(self, label: str) -> str:
        """The node that a label means: by id, name or alias; the label itself where there is none."""
        if label in self.parents:
            return label
        return self.aliases.get(label.lower(), label)

    def title(self, node: str) -> str:
        """What a node is called."""
        return self.names.get(node, node)

    def ancestors(self, label: str) -> set[str]:
        """The node of a label and everything that it is a kind of."""
        found: set[str] = set()
        todo = [self.node(label)]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo.extend(self.parents.get(node, ()))
        return found

    def groups(self, labels: Iterable[str]) -> dict[str, frozenset[str]]:
        """Names of inner nodes and the labels below each, most specific first.

        Nodes above the same labels are one, the most specific of them; nodes above a single label are left out.
        """
        labels = [*labels]
        above = {label: self.ancestors(label) for label in labels}
        nodes = set().union(*above.values()) if labels else set()
        below = {node: frozenset(label for label in labels if node in above[label]) for node in nodes}
        best: dict[frozenset[str], str] = {}
        for node in sorted(nodes, key=lambda n: (-len(self.ancestors(n)), n)):
            if len(below[node]) > 1:
                best.setdefault(below[node], node)
        ordered = sorted(best.items(), key=lambda pair: (len(pair[0]), pair[1]))
        return {self.title(node): members for members, node in ordered}

    def among(self, labels: Iterable[str]) -> Ontology:
        """Only what stands above some labels, by the names of the labels."""
        labels = [*labels]
        renamed = {self.node(label): label for label in labels}
        nodes = set().union(*(self.ancestors(label) for label in labels)) if labels else set()

        def name(node: str) -> str:
            return renamed.get(node, self.title(node))

        parents = {name(n): tuple(name(p) for p in self.parents[n]) for n in nodes if self.parents.get(n)}
        return Ontology(parents, {}, {})


def _read_obo(path: Path) -> Ontology:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; name an OBO file, such as cl-basic.obo of the Cell Ontology")
    parents: dict[str, tuple[str, ...]] = {}
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for stanza in re.split(r"^\[", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        lines = stanza.splitlines()
        if lines[0] != "Term]" or "is_obsolete: true" in lines:
            continue
        values: dict[str, list[str]] = {}
        for line in lines[1:]:
            tag, colon, value = line.partition(": ")
            if colon:
                values.setdefault(tag, []).append(value)
        if "id" not in values:
            continue
        node = values["id"][0].strip()
        parents[node] = tuple(value.split("!")[0].split("{")[0].strip() for value in values.get("is_a", []))
        if "name" in values:
            names[node] = values["name"][0].strip()
        exact = [m[1] for value in values.get("synonym", []) if (m := re.match(r'"(.*?)" EXACT', value))]
        for alias in exact:
            aliases.setdefault(alias.lower(), node)
    if not parents:
        raise ConfigError(f"{path} holds no [Term]; expected an OBO file, such as cl-basic.obo of the Cell Ontology")
    # a name is stronger than another term's synonym
    return Ontology(parents, names, {**aliases, **{name.lower(): node for node, name in names.items()}})
