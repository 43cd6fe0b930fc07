"""Every recorded array is accounted for: reproduced by a named test, or said why not."""

from __future__ import annotations

import ast
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from golden_cases import ROOT, case
from golden_inventory import INVENTORY, Row

TESTS = Path(__file__).parent


def names_of(family: str) -> list[str]:
    with np.load(case(family) / "arrays.npz", allow_pickle=False) as file:
        return list(file.files)


def patterns(family: str) -> list[tuple[str, Row]]:
    return [(name, row) for row in INVENTORY[family] for name in row.names.split()]


def functions_of(module: str) -> set[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_golden_inventory_knows_every_case() -> None:
    cases = {folder.parent.parent.name for folder in ROOT.glob("*/tiny/arrays.npz")}
    assert cases <= INVENTORY.keys(), f"say in golden_inventory.py what became of {sorted(cases - INVENTORY.keys())}"


@pytest.mark.parametrize("family", [*INVENTORY])
def test_golden_inventory_lists_every_array_once(family: str) -> None:
    listed = patterns(family)
    times = Counter({name: sum(fnmatchcase(name, p) for p, _ in listed) for name in names_of(family)})
    assert not [n for n, k in times.items() if k == 0], "these arrays are not listed"
    assert not [n for n, k in times.items() if k > 1], "these arrays are listed more than once"


@pytest.mark.parametrize("family", [*INVENTORY])
def test_golden_inventory_lists_nothing_that_is_not_recorded(family: str) -> None:
    names = names_of(family)
    assert not [p for p, _ in patterns(family) if not any(fnmatchcase(n, p) for n in names)]


@pytest.mark.parametrize("family", [*INVENTORY])
def test_golden_inventory_names_tests_that_exist_and_reasons(family: str) -> None:
    for row in INVENTORY[family]:
        if row.fate in ("reproduced", "given"):
            assert row.where, row
        else:
            assert row.why, row
        if row.where:
            module, function = row.where.split("::")
            assert function in functions_of(module), row.where
            assert "golden" in function
