"""Where do results stand in an AnnData? One place that names, writes and reads the slots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError

UNS = "scfm"


def key_of(name: str) -> str:
    """A name as a key: every character outside ``[A-Za-z0-9_]`` becomes ``_``.

    Free text as a key of ``.obsm`` or ``.uns`` cannot be read back from an h5ad where it holds a ``/``.
    """
    return re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"


def plain(value: Any) -> Any:
    """A value that an h5ad can hold: numbers, strings, arrays and dictionaries of them; None is left out."""
    if isinstance(value, Mapping):
        return {key_of(str(k)): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, bool | np.bool_ | str | int | float | np.number | np.ndarray):
        return value
    if isinstance(value, list | tuple):
        if all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in value):
            return np.asarray(value)
        return np.asarray([str(v) for v in value], dtype=object)
    return str(value)


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
        lines = []
        for name, value in self.facts.items():
            if isinstance(value, Mapping):
                lines.append(f"{name}:")
                lines += [f"  {k}: {_short(v)}" for k, v in value.items()]
            else:
                lines.append(f"{name}: {_short(value)}")
        return "\n".join(lines)

    __repr__ = __str__


def _short(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray):
        shown = ", ".join(map(str, value.ravel()[:5]))
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
    key = key_of(key).removeprefix("X_")
    if key not in runs:
        raise ConfigError(f"no result {key!r}; there are {', '.join(runs)}")
    return key, runs[key]


def embedding(adata: Any, key: str | None = None) -> pd.DataFrame:
    """The cell embedding that `scfm.tl.embed` wrote.

    Parameters
    ----------
    adata
        Annotated data.
    key
        ``key_added`` of the call or the model's name; None: the only one.

    Returns
    -------
    (n_obs, d) with ``obs_names`` as index and columns ``<key>_1`` onwards.

    Raises
    ------
    ConfigError
        If there is no such result.
    """
    key, _facts = _stored(adata, key)
    values = np.asarray(adata.obsm[f"X_{key}"])
    return pd.DataFrame(values, index=adata.obs_names, columns=[f"{key}_{i + 1}" for i in range(values.shape[1])])


def report(adata: Any, key: str | None = None) -> EmbedReport:
    """What `scfm.tl.embed` found and did: model, parameters, coverage, counts, health.

    Raises
    ------
    ConfigError
        If there is no such result.
    """
    return EmbedReport(_stored(adata, key)[1])
