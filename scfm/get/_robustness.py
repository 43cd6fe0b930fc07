"""The robustness report that was written into an AnnData."""

from __future__ import annotations

from typing import Any

from scfm.errors import ConfigError
from scfm.evaluation import RobustnessReport
from scfm.get._slots import ROBUSTNESS


def robustness(adata: Any, key: str | None = None) -> RobustnessReport:
    """The report of `scfm.tl.robustness`, as stored in ``.uns``.

    Parameters
    ----------
    adata
        Annotated data.
    key
        ``key_added`` of the call; None: the usual one.

    Raises
    ------
    ConfigError
        If there is none.
    """
    key = key or ROBUSTNESS
    if key not in adata.uns:
        raise ConfigError(f"adata.uns holds no {key!r}; run scfm.tl.robustness(adata) first")
    return RobustnessReport.from_dict(adata.uns[key])
