"""matplotlib, where it is installed."""

from __future__ import annotations

from typing import Any

from scfm.errors import require


def pyplot() -> Any:
    """The module that draws.

    Raises
    ------
    MissingDependencyError
        With the line that installs it.
    """
    require("matplotlib.pyplot", "pictures need matplotlib", "demo")
    import matplotlib.pyplot as plt

    return plt
