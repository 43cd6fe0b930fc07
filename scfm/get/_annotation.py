"""`scfm.get.annotation`: the probabilities that `scfm.tl.annotate` wrote, with the names of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError

UNS = "scfm_annotation"
"""Where annotations are told of."""
COLUMNS = ("label", "score", "margin", "novelty", "reason")
"""In ``.obs``, after the key."""


def proba_slot(key: str) -> str:
    """Name of the probabilities in ``.obsm``."""
    return f"{key}_proba"


def annotation_facts(adata: Any, key: str | None = None) -> tuple[str, dict[str, Any]]:
    """Key and facts of an annotation.

    Raises
    ------
    ConfigError
        If there is none of that key, or several and none is named.
    """
    runs: dict[str, Any] = adata.uns.get(UNS, {})
    if not runs:
        raise ConfigError("adata.uns holds no annotation; run scfm.tl.annotate(adata) first")
    if key is None and len(runs) > 1:
        raise ConfigError(f"there are several annotations ({', '.join(runs)}); say which with key=")
    found = next(iter(runs)) if key is None else key
    if found not in runs:
        raise ConfigError(f"no annotation {found!r}; there are {', '.join(runs)}")
    return found, runs[found]


def annotation(adata: Any, key: str | None = None) -> pd.DataFrame:
    """The probability of each class for each cell.

    Parameters
    ----------
    adata
        Annotated data.
    key
        ``key_added`` of `scfm.tl.annotate`; None: the only one.

    Returns
    -------
    (n_obs, K) with ``obs_names`` as index and the classes as columns.

    Raises
    ------
    ConfigError
        If there is no such annotation.
    """
    key, facts = annotation_facts(adata, key)
    slot = proba_slot(key)
    if slot not in adata.obsm:
        raise ConfigError(f"adata.obsm holds no {slot!r}; it was removed, run scfm.tl.annotate again")
    return pd.DataFrame(np.asarray(adata.obsm[slot]), index=adata.obs_names, columns=[*map(str, facts["classes"])])
