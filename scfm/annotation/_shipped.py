"""Names without a reference: the annotator that ships with the package."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from scfm.annotation._annotator import Annotator

FILE = "blood.npz"


@cache
def shipped() -> Annotator:
    """The annotator of human blood and immune cells that ships with the package.

    Its ``about`` holds the scope, the data sets it was fitted on, and its scores on sets that it never saw.
    """
    with resources.as_file(resources.files("scfm.annotation").joinpath("data", FILE)) as path:
        return Annotator.load(Path(path))
