"""How the documentation is built: offline, from the sources of this checkout."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

import numpy.typing

T = TypeVar("T")


class NDArray(Generic[T]):
    """Stands in for numpy's alias, which would be spelt out as ``ndarray[tuple[Any, ...], dtype[...]]`` everywhere."""


NDArray.__module__ = "builtins"
numpy.typing.NDArray = NDArray  # before scfm is imported

from scfm import models  # noqa: E402

HERE = Path(__file__).resolve().parent

project = "scfm"
author = "scfm developers"
copyright = "2026, scfm developers"
version = release = metadata.version("scfm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_generated", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# Notebooks are shown as they were committed; `make tutorials` runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A module's page lists what its `__all__` names; a class's page what the class itself defines.
default_role = "py:obj"
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "scfm"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2}


def write_guide_contents() -> None:
    """Bring the notebooks, which live beside ``docs``, into the source folder; list all pages of the guide."""
    tutorials = HERE / "tutorials"
    tutorials.mkdir(exist_ok=True)
    for notebook in sorted(HERE.parent.joinpath("tutorials").glob("*.ipynb")):
        shutil.copyfile(notebook, tutorials / notebook.name)
    first = HERE / "guide" / "getting_started.md"
    pages = [first, *sorted({*first.parent.glob("*.md")} - {first}), *sorted(tutorials.glob("*.ipynb"))]
    names = [page.relative_to(HERE).with_suffix("").as_posix() for page in pages]
    write_generated("guide.md", ["```{toctree}", ":maxdepth: 1", ":caption: Guide", "", *names, "```"])


def write_model_table() -> None:
    """Write the registry as a table, for the page on models to include."""
    columns = ("name", "species", "parameters", "context", "licence", "verified against")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, row in models.list().astype(object).iterrows():
        parameters = f"{row.parameters / 1e6:,.1f} M" if isinstance(row.parameters, int) else "-"
        context = f"{row.context:,}" if isinstance(row.context, int) else "all genes"
        lines.append(f"| `{name}` | {row.species} | {parameters} | {context} | {row.licence} | {row.verified} |")
    write_generated("models.md", lines)


def write_generated(name: str, lines: list[str]) -> None:
    """Write a text for other pages to include."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    folder.joinpath(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


write_guide_contents()
write_model_table()
