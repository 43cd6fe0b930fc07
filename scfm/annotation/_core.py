"""What is fitted on reference cells, and what it says of others: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scfm.annotation._classifiers import N_NEIGHBORS, Codes, Knn, Linear, Vectors, stratified
from scfm.annotation._novelty import Distance

N_COMPONENTS = 50
MOST_DECOMPOSED = 20_000
"""Cells that principal components are fitted on."""


@dataclass(frozen=True)
class Member:
    """A classifier that an annotator may use.

    Parameters
    ----------
    view
        What it reads: ``"embedding"`` (of unit length), ``"expression"`` (log values), ``"components"`` (their principal
        components).
    kind
        ``"knn"`` or ``"linear"``.
    weight
        In a mean with others. What reads expression counts twice as much as what reads an embedding: across assays it
        is the more reliable.
    c
        Inverse strength of the penalty of a regression.
    """

    view: str
    kind: str
    weight: float
    c: float = 1.0


MEMBERS: dict[str, Member] = {
    "embedding-knn": Member("embedding", "knn", 1.0),
    "embedding-linear": Member("embedding", "linear", 1.0, c=50.0),
    "expression-knn": Member("components", "knn", 2.0),
    "expression-linear": Member("expression", "linear", 2.0),
}
METHODS: dict[str, tuple[str, ...]] = {
    "linear": ("embedding-linear", "expression-linear"),
    "stack": tuple(MEMBERS),
    "knn": ("embedding-knn",),
    **{name: (name,) for name in reversed(MEMBERS) if name != "embedding-knn"},
}
"""Members of each method, in the order in which ``auto`` prefers them where none is better."""
DISTANCES = ("embedding", "components")
"""Views in which novelty is measured."""


@dataclass(frozen=True, eq=False)
class Views:
    """Some cells as the members see them; what nobody reads is None.

    Parameters
    ----------
    embedding
        (n, d) of unit length.
    expression
        (n, g) log values.
    fill
        (g,) to be added to every row of it.
    """

    embedding: Vectors | None = None
    expression: csr_matrix | None = None
    fill: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return 0 if self.first is None else int(self.first.shape[0])

    @property
    def first(self) -> Any:
        """The one that is there."""
        return self.embedding if self.embedding is not None else self.expression

    def __getitem__(self, rows: Any) -> Views:
        embedding = None if self.embedding is None else self.embedding[rows]
        expression = None if self.expression is None else self.expression[rows]
        return Views(embedding, expression, self.fill)


@dataclass(frozen=True, eq=False)
class Core:
    """Fitted members, principal components and distances.

    Parameters
    ----------
    members
        By name, see `MEMBERS`.
    distances
        By view, see `DISTANCES`.
    components
        (g, p) axes of expression; None where nobody needs them.
    centre
        (p,) the reference's mean on these axes.
    """

    members: Mapping[str, Knn | Linear]
    distances: Mapping[str, Distance]
    components: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None

    @classmethod
    def fit(
        cls, views: Views, codes: Codes, n_classes: int, names: Sequence[str], k: int = N_NEIGHBORS, seed: int = 0
    ) -> Core:
        """Fit members on cells whose classes are known.

        Parameters
        ----------
        views
            Of n reference cells.
        codes
            (n,) classes.
        n_classes
            Number of classes, whether or not they occur.
        names
            Members to fit.
        k
            Neighbours that vote.
        seed
            Of samples and decompositions.
        """
        empty = cls({}, {})
        if views.expression is not None:
            axes, centre = _principal(views.expression, codes, seed)
            empty = replace(empty, components=axes, centre=centre)
        members: dict[str, Knn | Linear] = {}
        for name in names:
            about = MEMBERS[name]
            x = empty.see(views, about.view)
            if about.kind == "knn":
                members[name] = Knn(np.ascontiguousarray(x), codes, n_classes, k)
            else:
                members[name] = Linear.fit(x, codes, n_classes, about.c, seed)
        there = [view for view in DISTANCES if empty.has(views, view)]
        distances = {view: Distance.fit(empty.see(views, view), codes, n_classes) for view in there}
        return replace(empty, members=members, distances=distances)

    def has(self, views: Views, view: str) -> bool:
        """Whether cells can be seen in a view."""
        return views.embedding is not None if view == "embedding" else views.expression is not None

    def see(self, views: Views, view: str) -> Any:
        """Cells in a view."""
        if view == "embedding":
            return views.embedding
        x = views.expression
        if view == "expression":
            return x
        assert x is not None and self.components is not None and self.centre is not None
        shift = 0 if views.fill is None else views.fill @ self.components
        return (np.asarray(x @ self.components) + shift - self.centre).astype(np.float32)

    def probabilities(self, views: Views) -> dict[str, Vectors]:
        """(n, K) of each member."""
        seen: dict[str, Any] = {}
        out = {}
        for name, member in self.members.items():
            view = MEMBERS[name].view
            if view not in seen:
                seen[view] = self.see(views, view)
            out[name] = member.proba(seen[view], views.fill if view == "expression" else None)
        return out

    def novelty(self, views: Views) -> dict[str, NDArray[np.float64]]:
        """(n,) distance from the reference in each view."""
        return {view: distance(self.see(views, view)) for view, distance in self.distances.items()}

    def only(self, names: Sequence[str]) -> Core:
        """With some of the members."""
        return replace(self, members={name: self.members[name] for name in names})

    def restricted(self, kept: Codes) -> Core:
        """With some of the classes."""
        return replace(
            self,
            members={name: member.restricted(kept) for name, member in self.members.items()},
            distances={view: distance.restricted(kept) for view, distance in self.distances.items()},
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays by name; see `from_arrays`."""
        out = {
            f"member/{name}/{part}": value
            for name, member in self.members.items()
            for part, value in member.arrays().items()
        }
        for view, distance in self.distances.items():
            out |= {f"distance/{view}/{part}": value for part, value in distance.arrays().items()}
        if self.components is not None and self.centre is not None:
            out |= {"components": self.components, "centre": self.centre}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Core:
        """The inverse of `arrays`; other entries are ignored."""
        kinds = {"knn": Knn, "linear": Linear}
        members: dict[str, Knn | Linear] = {}
        for name, parts in _grouped(arrays, "member").items():
            members[name] = kinds[MEMBERS[name].kind].from_arrays(parts)  # type: ignore[attr-defined]
        distances = {view: Distance.from_arrays(parts) for view, parts in _grouped(arrays, "distance").items()}
        floats = {n: arrays[n].astype(np.float32) for n in ("components", "centre") if n in arrays}
        return cls(members, distances, **floats)


def _grouped(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, dict[str, NDArray[Any]]]:
    out: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == prefix:
            owner, _, part = rest.partition("/")
            out.setdefault(owner, {})[part] = value
    return out


def _principal(x: csr_matrix, codes: Codes, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Axes (g, p) of log values and the mean (p,) on them."""
    from sklearn.decomposition import TruncatedSVD

    rows = stratified(codes, MOST_DECOMPOSED, seed)
    n = min(N_COMPONENTS, len(rows) - 1, x.shape[1] - 1)
    if n < 1:
        axes = np.zeros((x.shape[1], 1), dtype=np.float32)
    else:
        axes = TruncatedSVD(n, n_iter=4, random_state=seed).fit(x[rows].astype(np.float64)).components_.T
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    return axes.astype(np.float32), (mean @ axes).astype(np.float32)


def mean_probability(each: Mapping[str, Vectors], names: Sequence[str]) -> NDArray[np.float64]:
    """(n, K) mean over members by their weights; NaN rows stay NaN."""
    weights = np.array([MEMBERS[name].weight for name in names])
    total = sum(w * each[name].astype(np.float64) for w, name in zip(weights / weights.sum(), names, strict=True))
    return np.asarray(total)
