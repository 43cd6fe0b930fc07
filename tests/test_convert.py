"""A published model in our own layout is the same model."""

from __future__ import annotations

import numpy as np
import pytest
import test_contract
from golden_cases import case
from typer.testing import CliRunner

import scfm
from scfm.cli import app


def run(*args, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, args)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", [*test_contract.CHECKPOINTS])
def test_a_converted_model_gives_identical_results(name, tmp_path):
    source = case(name) / "checkpoint" / test_contract.CHECKPOINTS[name]
    told = run(source, tmp_path / "own")
    assert "model.safetensors" in told
    official, own = scfm.models.load(source), scfm.models.load(tmp_path / "own")
    for note in official.notes:
        assert note in told
    adata = test_contract.cells_for(name)
    ours, theirs = (test_contract.embedded(model, adata) for model in (own, official))
    np.testing.assert_array_equal(ours, theirs)
    assert [*own.heads] == [*official.heads]


def test_what_stands_there_is_not_overwritten(tmp_path):
    source = case("scgpt") / "checkpoint" / "pretrained"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    assert "is there already" in run(source, tmp_path / "full", code=1)
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    assert "does not exist" in run(source, tmp_path / "none" / "own", code=1)


def test_a_source_that_is_no_model_leaves_nothing(tmp_path):
    (tmp_path / "source").mkdir()
    assert "not recognised" in run(tmp_path / "source", tmp_path / "own", code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
