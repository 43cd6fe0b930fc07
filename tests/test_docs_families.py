"""The examples on the pages of the families run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scfm
from scfm.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "families").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example_runs_and_says_the_right_shapes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scanpy")
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(example, str(page), "exec"), names)
    shapes = re.findall(r'adata\.obsm\["(\w+)"\]  # \((\d+), (\d+)\)', example)
    assert shapes
    for key, rows, columns in shapes:
        assert names["adata"].obsm[key].shape == (int(rows), int(columns))  # type: ignore[attr-defined]


def test_every_family_has_a_page_that_names_its_models() -> None:
    text = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
    for card in scfm.models.cards().values():
        if card.family in FAMILIES:
            assert card.name.removeprefix(card.family) in text[card.family]
