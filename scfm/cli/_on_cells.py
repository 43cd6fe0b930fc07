"""Commands on cells: embed, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c, table_of_pairs

WHAT, HOW, GENES, MACHINE = "What is embedded", "How", "Genes", "Machine"


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
    orthologues: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="Cells of another species than the model: `shipped` (human and mouse), or a table of pairs.",
            rich_help_panel=WHAT,
        ),
    ] = None,
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
      scfm embed mouse.h5ad out.h5ad --model geneformer-v2-104m --orthologues shipped
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
                "orthologues": table_of_pairs(orthologues),
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
