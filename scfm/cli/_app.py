"""The commands and their help."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._shell import Commands, ending_like_ctrl_c, say

app = typer.Typer(
    name="scfm",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WHAT, HOW, GENES, MACHINE = "What is embedded", "How", "Genes", "Machine"


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


@app.command(no_args_is_help=True)
def embed(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Cells: h5ad, zarr, 10x h5, a folder with 10x matrix.mtx, or loom."),
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The h5ad to write; it may be IN. Not needed with --dry-run.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name from `scfm models`, a folder, or owner/repository of the hub.")
    ] = "scfm-mini",
    key_added: Annotated[
        str | None, typer.Option(help="Name of the results; default: the model's.", show_default=False)
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer with the counts; default: found.", rich_help_panel=WHAT)
    ] = None,
    use_raw: Annotated[
        bool | None,
        typer.Option("--use-raw/--no-use-raw", help="Take .raw, or never do; default: found.", rich_help_panel=WHAT),
    ] = None,
    gene_key: Annotated[
        str | None,
        typer.Option(help="Column of var with gene ids or symbols; default: found.", rich_help_panel=WHAT),
    ] = None,
    gene_matching: Annotated[
        Literal["resolve", "published"],
        typer.Option(help="Resolve old names and aliases, or follow the family's own rule.", rich_help_panel=WHAT),
    ] = "resolve",
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A fact about the cells that the model takes: a value, or a column of obs. May be repeated.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="Read-out of a cell; default: the model's.", rich_help_panel=HOW)
    ] = None,
    hidden_layer: Annotated[
        int | None, typer.Option(help="Layer to read, -1 the last; default: the model's.", rich_help_panel=HOW)
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Weight set, for files that hold several.", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[int, typer.Option(help="Key of what is random in the tokenizer.", rich_help_panel=HOW)] = 0,
    family: Annotated[str | None, typer.Option(help="Read a folder as this family's.", rich_help_panel=HOW)] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.", rich_help_panel=HOW)] = None,
    gene_embeddings: Annotated[
        Literal["auto", "contextual", "input", "none"],
        typer.Option(help="Mean state over the cells, the model's own vector, or none.", rich_help_panel=GENES),
    ] = "auto",
    groupby: Annotated[
        str | None,
        typer.Option(help="Column of obs: gene vectors for each of its groups too.", rich_help_panel=GENES),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens per batch; default: by the device.", min=1, rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best there is.", rich_help_panel=MACHINE)
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision.", rich_help_panel=MACHINE)
    ] = "float32",
    attn: Annotated[
        str | None,
        typer.Option(
            help="Attention implementation, see `scfm doctor`; default: the fastest.", rich_help_panel=MACHINE
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time about 64 cells, say what all would take, write nothing.")
    ] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    r"""Embed the cells of IN and write them, with the embedding, to OUT.

    OUT is IN with these slots added: obsm\["X_<key>"], varm\["<key>"],
    obs\["<key>_n_tokens"], uns\["scfm"]\["<key>"]. It appears at once when all is
    done: an error, Ctrl-C, a kill or a full disk leave what stood there before.

    [bold]Examples[/bold]

      scfm embed cells.h5ad out.h5ad
      scfm embed cells.h5ad cells.h5ad --model geneformer-v2-104m
      scfm embed cells.h5ad out.h5ad --device cuda --dtype bfloat16
      scfm embed cells.h5ad out.h5ad --layer counts --gene-key gene_ids
      scfm embed cells.h5ad out.h5ad --groupby cell_type
      scfm embed filtered_feature_bc_matrix out.h5ad --model scGPT_human
      scfm embed cells.h5ad out.h5ad --context assay=assay_column
    """
    from scfm.cli._embed import embed_file

    if out is None and not dry_run:
        raise typer.BadParameter("name the file to write, for example out.h5ad", param_hint="OUT")
    with ending_like_ctrl_c():
        told = embed_file(
            source,
            out,
            model,
            context=context or [],
            dry_run=dry_run,
            load={"family": family, "revision": revision, "checkpoint": checkpoint},
            options={
                "key_added": key_added,
                "layer": layer,
                "use_raw": use_raw,
                "gene_key": gene_key,
                "gene_matching": gene_matching,
                "pooling": pooling,
                "hidden_layer": hidden_layer,
                "gene_embeddings": None if gene_embeddings == "none" else gene_embeddings,
                "groupby": groupby,
                "batch_tokens": batch_tokens or "auto",
                "device": device,
                "dtype": dtype,
                "attn_implementation": attn,
                "seed": seed,
                "progress": not no_progress,
            },
        )
    typer.echo(told)


@app.command(no_args_is_help=True)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Cells, in any format that `scfm embed` reads.")],
    layer: Annotated[str | None, typer.Option(help="Look at this layer only.")] = None,
    use_raw: Annotated[
        bool | None, typer.Option("--use-raw/--no-use-raw", help="Look at .raw only, or not at all.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Also match the genes to this model's vocabulary.")] = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene ids or symbols.")] = None,
) -> None:
    """Say where the counts of a file are and, with --model, how its genes fit.

    Nothing is changed. The exit code is 1 where no usable counts are found.

    [bold]Examples[/bold]

      scfm inspect cells.h5ad
      scfm inspect cells.h5ad --model geneformer-v1-10m
    """
    from scfm.cli._embed import inspect_file

    text, usable = inspect_file(file, layer, use_raw, model, gene_key)
    typer.echo(text)
    if not usable:
        raise typer.Exit(1)


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
