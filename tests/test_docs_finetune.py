"""The page on fine-tuning runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sequence_cases

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "finetune.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("scanpy")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    sequence_cases.esm2(tmp_path / "esm2_tiny")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    plt.close("all")
    assert {p.name for p in (tmp_path / "blood-run").iterdir()} >= {"log.csv", "tuned"}
    kept = sum(f.stat().st_size for f in (tmp_path / "disease-adapter").iterdir())
    assert kept < 100_000
    assert names["genes"].about["forgetting"]["objective"] == "masked_genes"
    assert names["adata"].obsm["X_tuned"].shape[0] == names["adata"].n_obs
    assert names["located"].predict({"new": "MKTAYIAKHR"}).shape == (1, 2)
    assert set(names["layers"].table["layer"]) == {0, 1, 2}
