"""Where do results stand in an AnnData? One place that names, writes and reads the slots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError

UNS = "scfm"
ROBUSTNESS = "scfm_robustness"
"""In ``.uns``: the report of `scfm.tl.robustness`."""
ORDER = ("model", "family", "version", "parameters", "counts", "coverage", "tokens", "leakage", "health", "groups")
"""In which a report is read."""


def key_of(name: str) -> str:
    """A name as a key: every character outside ``[A-Za-z0-9_]`` becomes ``_``.

    Free text as a key of ``.obsm`` or ``.uns`` cannot be read back from an h5ad where it holds a ``/``.
    """
    return re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"


@dataclass(frozen=True)
class Slots:
    """Names of the slots of one embedding.

    Parameters
    ----------
    key
        See `key_of`.
    """

    key: str

    @property
    def cells(self) -> str:
        """In ``.obsm``: the vectors of the cells."""
        return f"X_{self.key}"

    @property
    def n_tokens(self) -> str:
        """In ``.obs``: tokens per cell."""
        return f"{self.key}_n_tokens"

    @property
    def spread(self) -> str:
        """In ``.obs``: how far the samples of a cell lie apart."""
        return f"{self.key}_spread"

    @property
    def genes(self) -> str:
        """In ``.varm``: the vectors of the genes."""
        return self.key

    @property
    def groups(self) -> str:
        """In ``.varm``: the vectors of the genes in each group of cells."""
        return f"{self.key}_groups"

    @property
    def n_cells(self) -> str:
        """In ``.varm``: how many cells of each group are behind them."""
        return f"{self.key}_n_cells"

    @property
    def of_genes(self) -> tuple[str, ...]:
        """Everything in ``.varm``."""
        return self.genes, self.groups, self.n_cells


def plain(value: Any) -> Any:
    """A value that an h5ad can hold and gives back: numbers, strings, arrays, and dictionaries of them.

    None is left out; a list of dictionaries becomes a dictionary with the keys 0, 1, 2, ...
    """
    if isinstance(value, Mapping):
        return {key_of(str(k)): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, np.number):
        return value.item()
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "biuf" else plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return _plain_list([v for v in value if v is not None])
    return str(value)


def _plain_list(values: list[Any]) -> Any:
    if values and all(isinstance(v, Mapping) for v in values):
        return {str(i): plain(v) for i, v in enumerate(values)}
    if values and all(isinstance(v, bool | int | float | np.number | np.bool_) for v in values):
        return np.asarray(values)
    return np.asarray([str(v) for v in values], dtype=object)


@dataclass(frozen=True)
class EmbedReport:
    """What `scfm.tl.embed` found and did; prints as a short text.

    Parameters
    ----------
    facts
        As stored in ``adata.uns["scfm"][key]``.
    """

    facts: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def to_dict(self) -> dict[str, Any]:
        """All facts, as plain types."""
        return dict(self.facts)

    def __str__(self) -> str:
        known = [name for name in ORDER if name in self.facts]
        others = sorted(name for name in self.facts if name not in ORDER)
        return "\n".join(_lines({name: self.facts[name] for name in (*known, *others)}))

    __repr__ = __str__


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:" if value else f"{indent}{name}: none"
            # by name: an h5ad does not keep the order
            yield from _lines(dict(sorted(value.items())), indent + "  ")
        else:
            yield f"{indent}{name}: {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray):
        shown = ", ".join(map(str, value.ravel()[:5])) or "none"
        return f"{shown}, ..." if value.size > 5 else shown
    return str(value)


def _stored(adata: Any, key: str | None) -> tuple[str, dict[str, Any]]:
    runs: dict[str, Any] = adata.uns.get(UNS, {})
    if not runs:
        raise ConfigError("adata.uns holds no scfm results; run scfm.tl.embed(adata) first")
    if key is None:
        if len(runs) > 1:
            raise ConfigError(f"there are several results ({', '.join(runs)}); say which with key=")
        key = next(iter(runs))
    asked = key_of(key)
    found = next((k for k in (asked, asked.removeprefix("X_")) if k in runs), None)
    if found is None:
        raise ConfigError(f"no result {key!r}; there are {', '.join(runs)}")
    return found, runs[found]


def embedding(adata: Any, key: str | None = None) -> pd.DataFrame:
    """The cell embedding that `scfm.tl.embed` wrote.

    Parameters
    ----------
    adata
        Annotated data.
    key
        ``key_added`` of the call or the model's name; None: the only one of cells.

    Returns
    -------
    (n_obs, d) with ``obs_names`` as index and columns ``<key>_1`` onwards.

    Raises
    ------
    ConfigError
        If there is no such result.
    """
    of_cells = [name for name in adata.uns.get(UNS, {}) if Slots(name).cells in adata.obsm]
    # results of other kinds, such as a layer or gene vectors, are not meant
    key, _facts = _stored(adata, of_cells[0] if key is None and len(of_cells) == 1 else key)
    slot = Slots(key).cells
    if slot not in adata.obsm:
        raise ConfigError(
            f"adata.uns tells of a result {key!r}, but adata.obsm holds no {slot!r}: it was removed, or the result is "
            f"one of genes only (adata.varm[{key!r}])"
        )
    values = np.asarray(adata.obsm[slot])
    return pd.DataFrame(values, index=adata.obs_names, columns=[f"{key}_{i + 1}" for i in range(values.shape[1])])


def report(adata: Any, key: str | None = None) -> EmbedReport:
    """What `scfm.tl.embed` found and did: model, parameters, coverage, counts, health.

    Raises
    ------
    ConfigError
        If there is no such result.
    """
    return EmbedReport(_stored(adata, key)[1])
