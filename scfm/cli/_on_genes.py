"""Commands on genes and their sequences: embed-genes, embed-sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c, table_of_pairs

WHAT, HOW, MACHINE = "What is embedded", "How", "Machine"


@app.command("embed-genes", no_args_is_help=True)
def embed_genes(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Cells, in any format that `scfm embed` reads.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The h5ad to write; it may be IN.")],
    vectors: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="A model, or a table: Gene2vec .txt, GenePT .pickle, csv, tsv, parquet, npz, h5ad.",
        ),
    ],
    key_added: Annotated[
        str | None, typer.Option(help="Name of the results; default: the source's.", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["auto", "contextual", "input"],
        typer.Option(help="Of a model: mean state over the cells, or its own vector.", rich_help_panel=HOW),
    ] = "auto",
    groupby: Annotated[
        str | None, typer.Option(help="Column of obs: vectors for each of its groups too.", rich_help_panel=HOW)
    ] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with gene ids or symbols; default: found.", rich_help_panel=WHAT)
    ] = None,
    orthologues: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="Cells of another species: `shipped` (human and mouse), or a table of pairs.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    species: Annotated[
        str | None, typer.Option(help="Of the genes of a table; default: recognised.", rich_help_panel=WHAT)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: the best there is.", rich_help_panel=MACHINE)] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    r"""Give the genes of IN vectors, and write them to OUT.

    OUT is IN with varm\["<key>"] and uns\["scfm"]\["<key>"] added.

    [bold]Examples[/bold]

      scfm embed-genes cells.h5ad out.h5ad --source gene2vec_dim_200_iter_9.txt
      scfm embed-genes cells.h5ad out.h5ad --source scGPT_human --kind input
      scfm embed-genes cells.h5ad out.h5ad --source proteins.h5ad --key-added esm2
    """
    from scfm.cli._genes import embed_genes_of_file

    with ending_like_ctrl_c():
        told = embed_genes_of_file(
            source,
            out,
            vectors,
            key_added=key_added,
            kind=kind,
            groupby=groupby,
            gene_key=gene_key,
            orthologues=table_of_pairs(orthologues),
            species=species,
            device=device,
            progress=not no_progress,
        )
    typer.echo(told)


@app.command("embed-sequences", no_args_is_help=True)
def embed_sequences(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins, transcripts or DNA, also gzipped.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The h5ad to write: sequences x numbers.")],
    model: Annotated[
        str, typer.Option(help="A folder with a transformers model, or owner/repository of the hub.")
    ] = "facebook/esm2_t33_650M_UR50D",
    average_by: Annotated[
        str | None,
        typer.Option(
            help="One vector per gene: gene_symbol or gene_id, as the headers name them.", rich_help_panel=HOW
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "last"], typer.Option(help="Which tokens make the vector.", rich_help_panel=HOW)
    ] = "mean",
    too_long: Annotated[
        Literal["windows", "truncate", "error"],
        typer.Option(help="What to do with sequences that the model cannot read at once.", rich_help_panel=HOW),
    ] = "windows",
    hidden_layer: Annotated[
        int | None, typer.Option(help="Layer to read; default: the final state.", rich_help_panel=HOW)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the hub repository.", rich_help_panel=HOW)] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=HOW)
    ] = False,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens per batch; default: by the device.", min=1, rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: the best there is.", rich_help_panel=MACHINE)] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision.", rich_help_panel=MACHINE)
    ] = "float32",
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Embed the sequences of FASTA with a protein or DNA model, and write them to OUT.

    What is computed is kept in $SCFM_HOME/sequences: a run that was stopped goes on where it was.
    OUT can be the --source of `scfm embed-genes`.

    [bold]Examples[/bold]

      scfm embed-sequences pep.all.fa.gz proteins.h5ad --average-by gene_symbol
      scfm embed-sequences promoters.fa dna.h5ad --model InstaDeepAI/nucleotide-transformer-500m-human-ref
    """
    from scfm.cli._genes import embed_sequences_of_file

    with ending_like_ctrl_c():
        told = embed_sequences_of_file(
            fasta,
            out,
            model,
            average_by=average_by,
            pooling=pooling,
            too_long=too_long,
            hidden_layer=hidden_layer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            batch_tokens=batch_tokens or "auto",
            device=device,
            dtype=dtype,
            progress=not no_progress,
        )
    typer.echo(told)
