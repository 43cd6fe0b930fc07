"""`scfm verify`: a model on this machine is what it was when it was published and tested."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_cases import case
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.models import _recorded, _verify

ROOT = Path(__file__).resolve().parents[1]


def geneformer() -> Path:
    return case("geneformer_v1") / "checkpoint" / "Geneformer-V1-tiny"


def scgpt() -> Path:
    return case("scgpt") / "checkpoint" / "pretrained"


def scfoundation() -> Path:
    return case("scfoundation") / "checkpoint"


MODELS = {"geneformer": geneformer, "scgpt": scgpt, "scfoundation": scfoundation, "scfm-mini": lambda: "scfm-mini"}


def check(*args, code: int = 0):
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("name", MODELS)
def test_verify_passes_on_this_machine(name):
    if name == "scfm-mini" and name not in scfm.models.cards():
        pytest.skip("the built-in model is not there")
    text = check("verify", MODELS[name]()).stdout
    assert "FAIL" not in text
    assert any(line.startswith("PASS  tokens") for line in text.splitlines())
    assert any(line.startswith("PASS  numbers on") for line in text.splitlines())


def test_verify_in_bfloat16_is_within_its_own_limits():
    assert "bfloat16" in check("verify", scgpt(), "--dtype", "bfloat16").stdout


def test_verify_fails_on_files_that_are_not_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    shutil.copytree(geneformer(), tmp_path / "geneformer-v1-10m")
    shutil.copytree(geneformer().parent / "geneformer", tmp_path / "geneformer")
    result = check("verify", "geneformer-v1-10m", code=1)
    assert any(line.startswith("FAIL  file model.safetensors") for line in result.stdout.splitlines())
    assert "FAILED" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize("family", ["geneformer", "scgpt"])
def test_recorded_tokens_tell_a_wrong_tokenizer(family):
    for record in _recorded.recorded(family):
        assert record.difference() is None
        wrong = record.tokens.ids.copy()
        wrong[-1] += 1
        assert "tokens differ" in replace(record, tokens=replace(record.tokens, ids=wrong)).difference()
        shorter = replace(record.tokenizer, max_length=record.tokenizer.max_length // 2)
        assert "recorded are" in replace(record, tokenizer=shorter, draws={}).difference()


def test_recorded_tokens_are_what_their_script_makes(tmp_path):
    spec = importlib.util.spec_from_file_location("build_verify_tables", ROOT / "scripts" / "build_verify_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    _recorded.write(list(script.all_records()), tmp_path / "new.zip")
    shipped = Path(scfm.models.__file__).parent / "data" / _recorded.FILE
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(shipped) as old:
        assert new.namelist() == old.namelist()
        differing = [name for name in new.namelist() if new.read(name) != old.read(name)]
    assert not differing, "run scripts/build_verify_tables.py"


def test_distance_is_relative_to_scale_and_nan_fails():
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert _verify.distance(a, a) == (0.0, pytest.approx(1.0))
    difference, cosine = _verify.distance(np.array([[1.0, 2.4], [3.0, 4.0]]), a)
    assert difference == pytest.approx(0.1)
    assert cosine < 1
    assert not _verify.distance(a * np.nan, a)[0] <= 1
