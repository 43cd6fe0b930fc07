"""The command that compares embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scfm.cli._app import app
from scfm.cli._shell import ending_like_ctrl_c
from scfm.errors import OutputError


@app.command(no_args_is_help=True)
def robustness(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Cells, in any format that `scfm embed` reads; several: one set each."),
    ],
    report: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.", show_default=False)] = None,
    table: Annotated[Path | None, typer.Option(help="Write all scores as CSV.", show_default=False)] = None,
    batch_key: Annotated[str, typer.Option(help="Column of obs with the assay or batch; `none`: one batch.")] = "assay",
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")] = "cell_type",
    group_key: Annotated[str | None, typer.Option(help="Column of obs with the donor: intervals over donors.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="As for `scfm embed`; may be repeated. Default: scfm-mini.")
    ] = None,
    use_rep: Annotated[
        list[str] | None, typer.Option(help="Key of obsm: an embedding that is there. May be repeated.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="pca, hvg, harmony, ...; may be repeated. Default: all installed.")
    ] = None,
    stress: Annotated[
        list[str] | None,
        typer.Option(help="depth, panel, dropout, ambient, doublets or none; may be repeated. Default: all."),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the counts; default: found.")] = None,
    use_raw: Annotated[bool | None, typer.Option("--use-raw/--no-use-raw", help="Take .raw, or never do.")] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with gene ids or symbols; default: found.")
    ] = None,
    max_cells: Annotated[int, typer.Option(help="Cells of a subsample, where there are more.")] = 8000,
    n_boot: Annotated[int, typer.Option(help="Bootstrap replicates.")] = 500,
    seed: Annotated[int, typer.Option(help="Key of all that is random.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the best there is.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision.")] = "float32",
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Leave out shuffled, random and oracle.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Ask whether an embedding follows biology or the assay, the depth, the gene panel.

    Models are scored beside baselines and controls on the same cells, with intervals.
    FILE is only read. The exit code is 1 where a control does not score as it must.

    [bold]Examples[/bold]

      scfm robustness cells.h5ad --report out.html
      scfm robustness cells.h5ad --batch-key batch --label-key cell_type --group-key donor
      scfm robustness v2.h5ad v3.h5ad --model geneformer-v2-104m --table scores.csv
      scfm robustness cells.h5ad --use-rep X_pca --use-rep X_scVI --stress none
    """
    from scfm import counts, tl
    from scfm.cli._files import replacing
    from scfm.evaluation._stress import LEVELS

    page, csv = _place(report), _place(table)
    if len({f.stem for f in files}) < len(files):
        raise typer.BadParameter("two files have the same name; each set needs a name of its own", param_hint="FILE")
    with ending_like_ctrl_c():
        data = {f.stem: counts.read(f) for f in files}
        altered = [*LEVELS] if stress is None else [s for s in stress if s != "none"]
        found = tl.robustness(
            data,
            batch_key=None if batch_key == "none" else batch_key,
            label_key=label_key,
            group_key=group_key,
            models=model,
            use_rep=use_rep,
            baselines=baseline,
            controls=not no_controls,
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            max_cells=max_cells,
            n_boot=n_boot,
            seed=seed,
            device=device,
            dtype=dtype,
            progress=not no_progress,
            stress=altered,
        )
    if csv is not None:
        with replacing(csv) as unfinished:
            found.to_dataframe().to_csv(unfinished, index=False)
    if page is not None:
        with replacing(page) as unfinished:
            found.to_html(unfinished)
    typer.echo(str(found))


def _place(path: Path | None) -> Path | None:
    """Where a result will stand; raises before the long work if it cannot."""
    if path is None:
        return None
    path = path.expanduser().resolve()
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it, for example {path / 'report.html'}")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} is not there; make it first: mkdir -p {path.parent}")
    return path
