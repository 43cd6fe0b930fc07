"""The commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c


@app.command(no_args_is_help=True)
def tokenize(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILES... ", help="Cells: files, folders of them, patterns in quotes.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer: a name from `scfm models`, or a folder.")],
    keep: Annotated[
        Literal["tokens", "counts"],
        typer.Option(help="Counts for objectives that thin cells or hide genes before they are tokenized."),
    ] = "tokens",
    donor_key: Annotated[str | None, typer.Option(help="Column of obs with the donors; default: found.")] = None,
    dataset_key: Annotated[str | None, typer.Option(help="Column of obs with the data sets; default: found.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with labels, for weights.")] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with gene ids or symbols; default: found.")
    ] = None,
    gene_matching: Annotated[
        Literal["resolve", "published"], typer.Option(help="Resolve old names, or follow the family's own rule.")
    ] = "resolve",
    layer: Annotated[str | None, typer.Option(help="Layer with the counts; default: found.")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A fact about the cells that the tokenizer takes. May be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Write the tokens of many files into a store that training reads.

    What is finished stays after an interruption: run it again to go on.

    [bold]Examples[/bold]

      scfm tokenize data/ --model geneformer-v2-104m --out tokens
      scfm tokenize "data/*.h5ad" --model my-model --out counts --keep counts --workers 8
    """
    from scfm import models
    from scfm.training import Corpus, TokenStore

    facts = dict(_pair(text) for text in context or ())
    with ending_like_ctrl_c():
        corpus = Corpus.open(
            [str(s) for s in sources],
            donor_key=donor_key,
            dataset_key=dataset_key,
            label_key=label_key,
            gene_key=gene_key,
            gene_matching=gene_matching,
            layer=layer,
            context=facts,
        )
        tokenizer = models.load(model).tokenizer
        store = TokenStore.build(corpus, tokenizer, out, keep=keep, n_workers=workers, progress=not no_progress)
    typer.echo(f"{store} in {out}")


@app.command(no_args_is_help=True)
def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What is trained on what, and how.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Replaces an entry. May be repeated.")
    ] = None,
) -> None:
    """Train a model on cells without labels.

    An interrupted run goes on from its last checkpoint when the same command is given again. On several GPUs or
    machines, start it with torchrun: torchrun --nproc-per-node 8 -m scfm pretrain CONFIG.yaml

    [bold]Examples[/bold]

      scfm pretrain config.yaml
      scfm pretrain config.yaml --set run.steps=2000 --set output.folder=run2
    """
    from scfm.training import PretrainConfig
    from scfm.training import pretrain as train
    from scfm.training._config import read_entries
    from scfm.training._fit_projection import MODEL, ProjectionConfig, fit_projection

    entries = read_entries(config, settings or ())
    with ending_like_ctrl_c():
        if "projection" in entries:
            wanted = ProjectionConfig.build(entries)
            model = fit_projection(wanted)
            typer.echo(
                f"{Path(wanted.output.folder) / MODEL}: {model.card.data}, {model.card.details['genes_with_a_vector']:,} genes"
            )
            return
        run = train(None, PretrainConfig.build(entries))
    typer.echo(f"{run.folder / 'model'}: {_scores(dict(run.metrics))}")


def _scores(metrics: dict[str, float]) -> str:
    if not metrics:
        return "no cells were held out"
    return f"held-out loss {metrics['eval_loss']:.4g}, without input {metrics['eval_reference']:.4g}"


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint="--context")
    return name, value
