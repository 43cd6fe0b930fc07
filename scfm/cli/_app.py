"""The program: what `scfm` alone says; its commands are in the modules named ``_on_...``."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from scfm.cli._shell import Commands

app = typer.Typer(
    name="scfm",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(metadata.version("scfm"))
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cell and gene embeddings of single-cell foundation models, from file to file.

    [bold]A first session[/bold]

      scfm doctor                       is everything there?
      scfm inspect cells.h5ad           where are the counts?
      scfm embed cells.h5ad --dry-run   what would it take?
      scfm embed cells.h5ad out.h5ad    embed with the built-in model
      scfm models                       which other models are there?

    Results go to standard output; progress and warnings to standard error.
    An error is one line, and an exit code other than 0.
    """
