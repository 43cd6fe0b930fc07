"""Errors that teach: what is missing, and the line that installs it."""

from __future__ import annotations

import pytest

from scfm.errors import MissingDependencyError, require


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"^flying needs wings: pip install 'scfm\[train\]'$"):
        require("no_such_package", "flying needs wings", "train")


def test_a_package_that_is_there_is_no_error() -> None:
    require("json", "reading needs json", "train")
