"""The first run of the page on pretraining, and its token store, work as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from training_cases import cells, corpus_folder
from typer.testing import CliRunner

from scfm.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "pretrain.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def called(line: str, *more: str) -> None:
    command, *arguments = shlex.split(line)
    assert command == "scfm"
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("scanpy")
    corpus_folder(tmp_path / "cells")
    (tmp_path / "data").symlink_to(tmp_path / "cells")
    cells(20, seed=9).write_h5ad(tmp_path / "new_cells.h5ad")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(blocks("yaml")[0])
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("scfm ")]
    # the configuration of the repository is for its own corpus
    train, tokenize, from_store = [line for line in lines if "configs/" not in line][:3]
    called(train, "--set", "run.steps=20")
    names: dict = {}
    exec(compile(blocks("python")[0], str(PAGE), "exec"), names)
    assert any(key.startswith("X_") for key in names["adata"].obsm)
    called(tokenize.replace("--workers 16", "--workers 2"))
    called(from_store, "--set", "run.steps=20", "--set", "output.folder=second")
    assert (tmp_path / "second" / "model").is_dir()
