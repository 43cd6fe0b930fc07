"""Commands on names of cells: annotate; annotator fit, apply, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c, table_of_pairs

annotator = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Fit an annotator once, apply it to many files."
)
app.add_typer(annotator, name="annotator")

Query = Annotated[Path, typer.Argument(metavar="QUERY", help="Cells, in any format that `scfm embed` reads.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The h5ad to write; it may be QUERY.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Only this name is possible. May be repeated.")]
Rate = Annotated[
    float,
    typer.Option(
        help="Share of cells of known types, measured like the reference, that may be unknown.", min=0, max=0.99
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="No cell of lower novelty is unknown; default: the annotator's own.", min=0, show_default=False),
]
NoReject = Annotated[bool, typer.Option("--no-reject", help="Name every cell.")]
Tree = Annotated[
    Path | None, typer.Option(metavar="OBO", help="Cell Ontology: an unsure cell gets the name of the broader type.")
]
Smooth = Annotated[
    str | None, typer.Option(help="Column of obs with clusters: majority label of each.", show_default=False)
]
Key = Annotated[str | None, typer.Option(help="Name of the results; default: scfm.", show_default=False)]
Pairs = Annotated[
    str | None,
    typer.Option(metavar="TABLE", help="Translate genes of another species: yes, or a table of pairs."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the best there is.")]
Quiet = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]


@app.command(no_args_is_help=True)
def annotate(
    query: Query,
    out: Out,
    reference: Annotated[
        Path | None,
        typer.Option(help="Cells with labels, or an annotator; default: blood and immune cells, which ships."),
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs of the reference with the labels.")] = None,
    model: Annotated[str, typer.Option(help="Embeds the cells, see `scfm models`.")] = "scfm-mini",
    method: Annotated[
        str, typer.Option(help="auto, linear, stack, knn, one classifier, or prompt: the model names the cells itself.")
    ] = "auto",
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs of the reference with donors or batches.")
    ] = None,
    label: Labels = None,
    false_rejection: Rate = 0.05,
    tolerance: Tolerance = None,
    no_reject: NoReject = False,
    ontology: Tree = None,
    smooth: Smooth = None,
    key_added: Key = None,
    orthologues: Pairs = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of folds and samples.")] = 0,
    no_progress: Quiet = False,
) -> None:
    r"""Name the cells of QUERY after a reference and write them to OUT.

    OUT is QUERY with obs\["<key>_label"], _score, _margin, _novelty, _reason,
    obsm\["<key>_proba"], uns\["scfm_annotation"]\["<key>"]. "unknown" are cells
    that the reference does not have, too ambiguous, or too empty; _reason says which.

    [bold]Examples[/bold]

      scfm annotate cells.h5ad out.h5ad
      scfm annotate cells.h5ad out.h5ad --reference atlas.h5ad --label-key cell_type
      scfm annotate cells.h5ad out.h5ad --reference annotator.npz
    """
    from scfm.cli._annotation import annotate_file

    options = _applying(
        label, false_rejection, tolerance, no_reject, ontology, smooth, key_added, orthologues, device, no_progress
    )
    fitting = {"label_key": label_key, "model": model, "method": method, "batch_key": batch_key, "seed": seed}
    with ending_like_ctrl_c():
        told = annotate_file(query, out, reference, {**options, **fitting})
    typer.echo(told)


@annotator.command(no_args_is_help=True)
def fit(
    reference: Annotated[Path, typer.Argument(metavar="REF", help="Cells with labels.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .npz file to write.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")],
    model: Annotated[str, typer.Option(help="Embeds the cells; none: expression alone.")] = "scfm-mini",
    method: Annotated[str, typer.Option(help="auto, linear, stack, knn, or one classifier.")] = "auto",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with donors or batches.")] = None,
    ontology: Tree = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of folds and samples.")] = 0,
    no_progress: Quiet = False,
) -> None:
    """Learn the labels of REF and write an annotator.

    [bold]Example[/bold]

      scfm annotator fit atlas.h5ad atlas.npz --label-key cell_type --batch-key donor
    """
    from scfm.cli._annotation import fit_annotator

    options = {
        "model": None if model == "none" else model,
        "method": method,
        "batch_key": batch_key,
        "ontology": ontology,
        "device": device,
        "seed": seed,
        "progress": not no_progress,
    }
    with ending_like_ctrl_c():
        told = fit_annotator(reference, out, label_key, options)
    typer.echo(told)


@annotator.command(no_args_is_help=True)
def apply(
    fitted: Annotated[Path, typer.Argument(metavar="ANNOTATOR", help="What `scfm annotator fit` wrote.")],
    query: Query,
    out: Out,
    label: Labels = None,
    false_rejection: Rate = 0.05,
    tolerance: Tolerance = None,
    no_reject: NoReject = False,
    ontology: Tree = None,
    smooth: Smooth = None,
    key_added: Key = None,
    orthologues: Pairs = None,
    device: Device = None,
    no_progress: Quiet = False,
) -> None:
    """Name the cells of QUERY by an annotator and write them to OUT.

    [bold]Example[/bold]

      scfm annotator apply atlas.npz cells.h5ad out.h5ad
    """
    from scfm.annotation import Annotator
    from scfm.cli._annotation import annotate_file

    Annotator.load(fitted)
    options = _applying(
        label, false_rejection, tolerance, no_reject, ontology, smooth, key_added, orthologues, device, no_progress
    )
    with ending_like_ctrl_c():
        told = annotate_file(query, out, fitted, options)
    typer.echo(told)


@annotator.command()
def show(
    fitted: Annotated[Path | None, typer.Argument(metavar="ANNOTATOR", help="Default: the one that ships.")] = None,
) -> None:
    """Say what an annotator knows, and what it scored."""
    from scfm.annotation import Annotator, shipped
    from scfm.cli._annotation import about

    typer.echo(about(shipped() if fitted is None else Annotator.load(fitted)))


def _applying(
    label: list[str] | None,
    false_rejection: float,
    tolerance: float | None,
    no_reject: bool,
    ontology: Path | None,
    smooth: str | None,
    key_added: str | None,
    orthologues: str | None,
    device: str | None,
    no_progress: bool,
) -> dict[str, Any]:
    return {
        "labels": label or None,
        "false_rejection": false_rejection,
        "tolerance": tolerance,
        "reject": not no_reject,
        "ontology": ontology,
        "smooth": smooth,
        "key_added": key_added,
        "orthologues": table_of_pairs(orthologues),
        "device": device,
        "progress": not no_progress,
    }
