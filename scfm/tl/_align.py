"""`scfm.tl.align`: a corrected copy of an embedding."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm.errors import ConfigError, MissingDependencyError
from scfm.evaluation._baselines import BASELINES
from scfm.evaluation._subjects import aligned


def align(
    adata: AnnData,
    use_rep: str,
    batch_key: str,
    method: Literal["center", "harmony"] = "center",
    *,
    key_added: str | None = None,
    seed: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Write a copy of an embedding in which batches differ less.

    Centring subtracts each batch's mean, so that cosines are those of directions from there. It is right where batches
    hold the same cell types in like shares, and wrong where they do not: it then moves cell types of one batch onto
    others of the next. `scfm.tl.robustness` shows the corrected embedding beside the uncorrected one.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        Key of ``.obsm``.
    batch_key
        Column of ``obs``.
    method
        ``center``, or ``harmony`` (harmonypy, an extra).
    key_added
        Key of ``.obsm`` for the result; None: ``<use_rep>_<method>``.
    seed
        Of Harmony.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written: ``.obsm[key_added]`` (n_obs, d) float32; cells without a vector or a batch stay NaN.

    Raises
    ------
    ConfigError
        If a key is missing, or the method unknown.
    MissingDependencyError
        If harmonypy is needed and not installed.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd, scfm
    >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> adata = anndata.AnnData(obs=pd.DataFrame({"batch": list("aabb")}, index=list("0123")), obsm={"X": x})
    >>> scfm.tl.align(adata, "X", "batch")
    >>> adata.obsm["X_center"].ravel().tolist()
    [5.0, 6.0, 5.0, 6.0]
    """
    x, batch = _checked(adata, use_rep, batch_key, method)
    target = adata.copy() if copy else adata
    target.obsm[key_added or f"{use_rep}_{method}"] = aligned(x, batch, method, seed)
    return target if copy else None


def _checked(adata: AnnData, use_rep: str, batch_key: str, method: str) -> tuple[Any, Any]:
    """Vectors, NaN where they or the batch are missing, and batch codes."""
    if method not in ("center", "harmony"):
        raise ConfigError(f"method={method!r} is neither 'center' nor 'harmony'")
    if use_rep not in adata.obsm:
        there = ", ".join(map(repr, adata.obsm)) or "none"
        raise ConfigError(f"use_rep={use_rep!r} is not in obsm; there are {there}")
    if batch_key not in adata.obs:
        raise ConfigError(
            f"batch_key={batch_key!r} is not a column of obs; there are {', '.join(adata.obs.columns[:10])}"
        )
    harmony = BASELINES["harmony"]
    if method == "harmony" and not harmony.is_here:
        raise MissingDependencyError(f"harmonypy is not installed: {harmony.install}")
    codes, names = pd.factorize(adata.obs[batch_key].astype(object))
    x = np.asarray(adata.obsm[use_rep], dtype=np.float32)
    if len(names) == 0:
        raise ConfigError(f"batch_key={batch_key!r} holds no value; there is nothing to align")
    return np.where((codes < 0)[:, None], np.float32(np.nan), x), codes.astype(np.int64)
