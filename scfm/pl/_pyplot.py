"""matplotlib, where it is installed."""

from __future__ import annotations

from typing import Any

from scfm.errors import MissingDependencyError


def pyplot() -> Any:
    """The module that draws.

    Raises
    ------
    MissingDependencyError
        With the line that installs it.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'scfm[demo]'") from error
    return plt
