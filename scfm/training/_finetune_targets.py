"""What is to be learnt? Columns of labels or numbers, and classes of genes, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.errors import ConfigError, GeneMatchError
from scfm.genes import GeneVocabulary

Kind = Literal["classes", "number", "genes"]
KINDS = ("classes", "number")
GENES = "genes"
PREFIX = "tuned_"
"""Of the names of heads."""
FEW_NUMBERS = 12
"""Up to so many different whole numbers may as well be codes of classes: the user is asked."""
SHOWN = 5
MOST_CLASSES = 2000
ClassWeights = Literal["balanced"] | Mapping[str, float] | None


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to learn.

    Parameters
    ----------
    name
        Of the head.
    source
        Column of ``obs`` that it is from; ``genes`` for classes of genes.
    kind
        ``classes`` or ``number`` of cells, or classes of ``genes``.
    values
        (n,) code of each cell's class (-1: none), or its number (NaN: none); for genes (V,) codes.
    classes
        K names.
    weights
        (K,) how much a cell of each class counts.
    prior
        (K,) shares of the classes among what is trained on.
    center, scale
        Mean and standard deviation of the numbers that are trained on.
    """

    name: str
    source: str
    kind: Kind
    values: NDArray[Any]
    classes: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    prior: NDArray[np.float64] | None = None
    center: float = 0.0
    scale: float = 1.0

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where there is something to learn."""
        return ~np.isnan(self.values) if self.kind == "number" else self.values >= 0

    @property
    def n_outputs(self) -> int:
        """Of the head."""
        return max(len(self.classes), 1)

    def fitted(self, train: NDArray[np.int64], class_weights: ClassWeights) -> Target:
        """With weights, shares and scale of what is trained on.

        Parameters
        ----------
        train
            Cells, or for genes ids, that are trained on.
        class_weights
            ``"balanced"``: each class counts the same; or a number by name.
        """
        values = self.values[train][self.known[train]]
        if self.kind == "number":
            return replace(self, center=float(values.mean()), scale=float(values.std()) or 1.0)
        sizes = np.bincount(values, minlength=len(self.classes)).astype(np.float64)
        prior = (sizes + 1) / (sizes + 1).sum()
        return replace(self, weights=_weights(self, sizes, class_weights), prior=prior)

    def masked(self, keep: NDArray[np.integer]) -> Target:
        """With nothing to learn of genes beside ``keep``."""
        values = np.full_like(self.values, -1)
        values[keep] = self.values[keep]
        return replace(self, values=values)

    def about(self) -> dict[str, Any]:
        """What is stored with a tuned model."""
        return {"name": self.name, "source": self.source, "kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def told(cls, about: Mapping[str, Any]) -> Target:
        """The inverse of `about`, with nothing to learn."""
        return cls(
            str(about["name"]), str(about["source"]), about["kind"], np.empty(0), tuple(map(str, about["classes"]))
        )


def _weights(target: Target, sizes: NDArray[np.float64], asked: ClassWeights) -> NDArray[np.float32]:
    if asked is None:
        return np.ones(len(sizes), dtype=np.float32)
    if asked == "balanced":
        return (sizes.sum() / (np.maximum((sizes > 0).sum(), 1) * np.maximum(sizes, 1))).astype(np.float32)
    if not isinstance(asked, Mapping):
        raise ConfigError(f"class_weights={asked!r}; it is 'balanced', a number by class, or None")
    unknown = sorted(set(asked) - set(target.classes))
    if unknown:
        raise ConfigError(
            f"class_weights names {unknown[0]!r}, which is no class of {target.source!r}; there are {_some(target.classes)}"
        )
    weights = np.array([float(asked.get(name, 1.0)) for name in target.classes], dtype=np.float32)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ConfigError("class_weights must be numbers from 0 on, and some must be above 0")
    return weights


def cell_targets(
    obs: pd.DataFrame,
    columns: str | Sequence[str],
    kind: Literal["auto", "classes", "number"] | Mapping[str, str] = "auto",
    missing: Literal["error", "drop"] = "error",
) -> tuple[Target, ...]:
    """Targets of columns of ``obs``.

    Parameters
    ----------
    obs
        Of n cells.
    columns
        One or several names.
    kind
        ``classes`` or ``number``, for all or by column; ``auto``: told by the column's type.
    missing
        What happens to cells without a value: an error, or they are left out.

    Raises
    ------
    ConfigError
        If a column is not there, lacks values, has one class, a class of one cell, one number only, or does not say
        whether it holds classes or numbers.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names:
        raise ConfigError("target= names nothing to learn; give a column of obs, several, or classes of genes")
    if len(set(names)) != len(names):
        raise ConfigError(f"target= names a column twice: {', '.join(names)}")
    if missing not in ("error", "drop"):
        raise ConfigError(f"missing={missing!r}; it is 'error' or 'drop'")
    asked = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(names, kind)
    unknown = sorted(set(asked) - set(names))
    if unknown:
        raise ConfigError(f"kind= names {unknown[0]!r}, which is no target; targets are {', '.join(names)}")
    return tuple(_of_column(obs, name, asked.get(name, "auto"), missing) for name in names)


def _of_column(obs: pd.DataFrame, name: str, kind: str, missing: str) -> Target:
    if name not in obs.columns:
        there = ", ".join(map(repr, obs.columns[:12])) or "no columns"
        raise ConfigError(f"obs has no column {name!r} to learn; it has {there}")
    column = obs[name]
    kind = _kind(column, name, kind)
    known = column.notna().to_numpy()
    if kind == "number":
        values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        known &= np.isfinite(values)
        values = np.where(known, values, np.nan)
    else:
        known &= column.astype(str).str.strip().to_numpy() != ""
    if not known.all() and missing == "error":
        lacking = obs.index[~known]
        raise ConfigError(
            f"obs[{name!r}] has no value for {len(lacking):,} of {len(obs):,} cells (e.g. {_some(lacking)}); pass "
            "missing='drop' to leave them out, or fill them in"
        )
    if kind == "number":
        if len(np.unique(values[known])) < 2:
            raise ConfigError(f"obs[{name!r}] holds one number for all cells; there is nothing to learn from it")
        return Target(_head_name(name), name, "number", values)
    texts = column.astype(str).to_numpy()
    classes, codes = np.unique(texts[known], return_inverse=True)
    _check_classes(f"obs[{name!r}]", classes, np.bincount(codes.ravel(), minlength=len(classes)), "cell")
    values = np.full(len(obs), -1, dtype=np.int64)
    values[known] = codes.ravel()
    return Target(_head_name(name), name, "classes", values, tuple(map(str, classes)))


def _kind(column: pd.Series, name: str, asked: str) -> str:
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    different = column.dropna().unique()
    as_numbers = pd.to_numeric(pd.Series(different, dtype=object), errors="coerce")
    if asked == "number":
        if as_numbers.isna().any() or pd.api.types.is_bool_dtype(column.dtype):
            found = different[np.flatnonzero(as_numbers.isna())[:1]]
            raise ConfigError(
                f"kind='number', but obs[{name!r}] holds {found[0] if len(found) else 'true and false'!r}; pass "
                "kind='classes', or a column of numbers"
            )
        return "number"
    if asked == "classes":
        if numeric and len(different) > max(FEW_NUMBERS, len(column) // 4):
            raise ConfigError(
                f"kind='classes', but obs[{name!r}] holds {len(different):,} different numbers in {len(column):,} cells; "
                "pass kind='number', or cut them into classes with pandas.cut"
            )
        return "classes"
    if asked != "auto":
        raise ConfigError(f"kind={asked!r}; it is 'auto', 'classes' or 'number'")
    if numeric:
        whole = bool((as_numbers.to_numpy(dtype=float) % 1 == 0).all())
        if whole and len(different) <= FEW_NUMBERS:
            raise ConfigError(
                f"obs[{name!r}] holds {len(different)} different whole numbers: codes of classes, or amounts? Say so with "
                "kind='classes' or kind='number'"
            )
        return "number"
    if len(different) > FEW_NUMBERS and not as_numbers.isna().any() and len(different) > len(column) // 4:
        raise ConfigError(
            f"obs[{name!r}] holds numbers as text ({_some(different)}); pass kind='number' to learn them as numbers, or "
            "kind='classes'"
        )
    return "classes"


def _check_classes(what: str, classes: Sequence[str] | NDArray[Any], sizes: NDArray[np.int64], unit: str) -> None:
    if len(classes) < 2:
        found = f"one class only, {classes[0]!r}" if len(classes) else "no class"
        raise ConfigError(f"{what} holds {found}; at least two are needed to tell {unit}s apart")
    if len(classes) > MOST_CLASSES:
        raise ConfigError(f"{what} holds {len(classes):,} classes, at most {MOST_CLASSES:,} are possible; name another")
    single = [str(c) for c, n in zip(classes, sizes, strict=True) if n < 2]
    if single:
        raise ConfigError(
            f"{what} has {len(single)} of {len(classes)} classes with one {unit} only ({_some(single)}): none could be held "
            f"out. Leave these {unit}s out, or join the classes to others"
        )


def gene_target(classes: Mapping[str, Any], vocabulary: GeneVocabulary, measured: NDArray[np.bool_]) -> Target:
    """The target of classes of genes.

    Parameters
    ----------
    classes
        Class by id or symbol of a gene.
    vocabulary
        Of the model.
    measured
        (V,) genes that the cells have a column for; the others are left out.

    Raises
    ------
    ConfigError
        If there is one class, or a class with one gene.
    GeneMatchError
        If none of the genes is known and measured.
    """
    by_symbol = {s: i for i, s in reversed([*enumerate(vocabulary.symbols or ())]) if s}
    found = {name: vocabulary.index.get(name, by_symbol.get(name)) for name in map(str, classes)}
    usable = {n: i for n, i in found.items() if i is not None and measured[i] and vocabulary.is_gene[i]}
    if not usable:
        raise GeneMatchError(
            f"none of the {len(found):,} genes of target= ({_some([*found])}) is known to the model and measured in the cells; "
            "name them by Ensembl id or symbol of the model's species"
        )
    labels = [str(classes[n]) for n in usable]
    names, codes = np.unique(labels, return_inverse=True)
    _check_classes("target=", names, np.bincount(codes.ravel(), minlength=len(names)), "gene")
    values = np.full(len(vocabulary), -1, dtype=np.int64)
    values[[*usable.values()]] = codes.ravel()
    return Target(_head_name(GENES), GENES, "genes", values, tuple(map(str, names)))


def _head_name(column: str) -> str:
    """A name that a module may have: columns are called ``type`` or ``half``, as are methods of modules."""
    return PREFIX + "".join(c if c.isalnum() or c == "_" else "_" for c in column)


def _some(names: Sequence[Any] | NDArray[Any] | pd.Index) -> str:
    shown = ", ".join(repr(str(n)) for n in names[:SHOWN])
    return shown + (", ..." if len(names) > SHOWN else "")
