"""`scfm annotate` and `scfm annotator`: from file to file."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from annotation_cases import TYPES, cells
from typer.testing import CliRunner

from scfm.cli import app

pytest.importorskip("sklearn", reason="fitting an annotator needs scikit-learn")


def run(*args, code: int = 0):
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotation")
    cells().write_h5ad(folder / "reference.h5ad")
    cells(15, seed=1).write_h5ad(folder / "query.h5ad")
    fit = ("annotator", "fit", folder / "reference.h5ad", folder / "a.npz", "--label-key", "cell_type")
    told = run(*fit, "--model", "none", "--no-progress").stdout
    assert "held out: macro F1" in told
    return folder


def test_a_query_is_named_after_a_reference(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    how = ("--reference", files / "reference.h5ad", "--label-key", "cell_type", "--method", "expression-linear")
    told = run("annotate", files / "query.h5ad", out, *how, "--no-progress").stdout
    adata = anndata.read_h5ad(out)
    assert str(out) in told and "60 cells by expression-linear" in told
    assert (adata.obs["scfm_label"].astype(str) == adata.obs["cell_type"].astype(str)).mean() > 0.9
    assert adata.obs["scfm_label"].dtype == "category"
    assert adata.obsm["scfm_proba"].shape == (60, len(TYPES))
    before = anndata.read_h5ad(files / "query.h5ad")
    assert (adata.X != before.X).nnz == 0


def test_a_fitted_annotator_is_applied_to_files(files: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.h5ad", tmp_path / "2.h5ad"
    run("annotator", "apply", files / "a.npz", files / "query.h5ad", first, "--no-progress")
    run("annotate", files / "query.h5ad", second, "--reference", files / "a.npz", "--no-progress")
    one, two = anndata.read_h5ad(first), anndata.read_h5ad(second)
    np.testing.assert_array_equal(one.obsm["scfm_proba"], two.obsm["scfm_proba"])
    run(
        "annotator",
        "apply",
        files / "a.npz",
        first,
        first,
        "--label",
        "B",
        "--label",
        "Mono",
        "--no-reject",
        "--no-progress",
    )
    assert set(anndata.read_h5ad(first).obs["scfm_label"]) == {"B", "Mono"}


def test_the_shipped_annotator_is_shown() -> None:
    told = run("annotator", "show").stdout
    assert "plasma cell" in told and "Human blood" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("annotate", "{q}", "{o}", "--reference", "{r}"), "say with label_key="),
        (("annotate", "{q}", "out.csv"), "must end in .h5ad"),
        (("annotator", "fit", "{r}", "a.h5ad", "--label-key", "cell_type"), "annotators are .npz files"),
        (("annotator", "apply", "{r}", "{q}", "{o}"), "is no annotator"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(files: Path, tmp_path: Path, args, message: str) -> None:
    places = {"q": files / "query.h5ad", "r": files / "reference.h5ad", "o": tmp_path / "o.h5ad"}
    result = run(*(a.format(**places) for a in args), code=1)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not any(tmp_path.iterdir())
