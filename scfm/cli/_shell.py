"""How does the command line talk? Results on stdout, everything else on stderr, an error in one line."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import typer
from typer.core import TyperGroup

from scfm.errors import ScfmError

INTERRUPTED = 130
DEBUG = "--debug"


class Commands(TyperGroup):
    """Commands whose errors are one line on stderr, unless ``--debug`` stands anywhere on the command line."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run; ``--debug`` may stand before or after the command."""
        given = list(sys.argv[1:] if args is None else args)
        if DEBUG in given:
            given = [DEBUG, *(a for a in given if a != DEBUG)]
        return super().main(given, *rest, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn what may go wrong into a line and an exit code."""
        debug = ctx.params.get("debug", False)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted: nothing was written")
            raise typer.Exit(INTERRUPTED) from None
        except ScfmError as error:
            if debug:
                raise
            say(f"Error: {one_line(str(error))}")
            raise typer.Exit(1) from None


def say(text: str) -> None:
    """A line for the person, on stderr."""
    typer.echo(text, err=True)


def table_of_pairs(asked: str | None) -> Literal[True] | str | None:
    """What ``--orthologues`` means to the verbs: ``shipped`` is the table that comes with scfm."""
    return True if asked == "shipped" else asked


def one_line(text: str) -> str:
    """A message of several lines as one."""
    lines = (line.strip().removeprefix("- ") for line in text.splitlines())
    return "; ".join(line.rstrip(";") for line in lines if line).replace(":; ", ": ")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What concerns the user as a plain line; what libraries say to programmers not at all."""
    if issubclass(category, UserWarning):
        say(f"Warning: {one_line(str(message))}")


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Treat a request to end, as batch systems send it, like Ctrl-C, so that nothing unfinished stays behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def short(path: Path) -> str:
    """A path with ``~`` for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def columns(rows: Iterable[Sequence[str]], indent: str = "") -> str:
    """Rows of texts as a table, columns two blanks apart."""
    table = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(indent + line.rstrip() for line in padded)
