"""Commands on models: models, verify, convert, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c, say


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Show everything that is known of this model.")] = None,
) -> None:
    """List the models, or show the card of one.

    [bold]Examples[/bold]

      scfm models
      scfm models geneformer-v2-104m
    """
    from scfm.cli._models import card_text, table_text

    typer.echo(table_text() if name is None else card_text(name))


@app.command()
def doctor() -> None:
    """Say what is installed, what this machine can do, and what is missing and how to get it."""
    from scfm.cli._doctor import report

    typer.echo(report())


@app.command(no_args_is_help=True)
def verify(
    model: Annotated[str, typer.Argument(help="A name from `scfm models`, a folder, or owner/repository of the hub.")],
    device: Annotated[str | None, typer.Option(help="Default: the best there is.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision.")] = "float32",
    attn: Annotated[str | None, typer.Option(help="Attention implementation; default: the fastest.")] = None,
    family: Annotated[str | None, typer.Option(help="Read a folder as this family's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Weight set, for files that hold several.")] = None,
) -> None:
    """Check a model on this machine: its files, its tokens, its numbers.

    Files: SHA-256 against the published sums, where they are known.
    Tokens: recorded cells must give the recorded tokens.
    Numbers: made-up cells on this device against the CPU in float32.
    The exit code is 1 where a check fails.

    [bold]Examples[/bold]

      scfm verify scfm-mini
      scfm verify geneformer-v2-104m --device cuda --dtype bfloat16
    """
    from scfm.models._verify import verify as run

    result = run(model, family, revision, checkpoint, device=device, dtype=dtype, attn_implementation=attn)
    typer.echo(result)
    if not result.passed:
        say("Error: the model is not what it should be on this machine; see the lines that FAIL")
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A name from `scfm models`, a folder, or owner/repository of the hub.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; it must not exist, or be empty.")],
    family: Annotated[str | None, typer.Option(help="Read a folder as this family's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Weight set, for files that hold several.")] = None,
) -> None:
    """Write a published model in scfm's own layout: safetensors, one configuration, one vocabulary.

    The folder loads faster, holds nothing that could be executed, and is read again and
    compared, tensor by tensor, before it appears.

    [bold]Examples[/bold]

      scfm convert scGPT_human scgpt-human
      scfm convert downloads/models.ckpt-folder scf-rde --family scfoundation --checkpoint rde
    """
    from scfm.cli._convert import convert as run

    with ending_like_ctrl_c():
        typer.echo(run(source, out, family, revision, checkpoint))
