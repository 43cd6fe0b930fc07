"""Imports go down only: the layers of the house, read off the source of every module.

All imports count, those inside functions too; only what stands under ``if TYPE_CHECKING`` may look sideways or up.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "scfm"

LAYERS = (
    {"errors", "_logging"},
    {"genes", "counts", "ontology"},
    {"tokenizers", "transformer"},
    {"models"},
    {"annotation", "evaluation", "training"},
    {"pp", "tl", "pl", "get", "cli"},
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
TOP = max(HEIGHT.values())

MAY_IMPORT_TORCH = {"transformer", "models", "training"}
ONLY_INSIDE_FUNCTIONS = {"scanpy", "dask", "distributed", "sklearn", "matplotlib"}


@dataclass(frozen=True)
class Import:
    """One imported module."""

    where: str
    part: str
    target: str
    top_level: bool


def module_name(path: Path) -> str:
    """Dotted name of a module of the package, e.g. ``scfm.genes._table``."""
    parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Call, bool]]:
    """Every import that runs, and whether it stands inside a function."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom) or is_import_call(child):
            yield child, inside
        nested = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from statements(child, inside=nested)


def is_import_call(node: ast.AST) -> bool:
    """Whether a node is ``import_module("literal")`` or ``__import__("literal")``."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__"}


def targets(node: ast.Import | ast.ImportFrom | ast.Call, module: str, *, package: bool) -> list[str]:
    """Dotted names that an import statement asks for, relative ones resolved."""
    if isinstance(node, ast.Call):
        return [str(node.args[0].value)]  # type: ignore[attr-defined]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = module.split(".")[: len(module.split(".")) - node.level + package]
        base = ".".join([*above, *([node.module] if node.module else [])])
    if base == ROOT.name:
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def imports_of(source: str, module: str, *, package: bool = False) -> list[Import]:
    """All imports in the source of one module."""
    part = [*module.split("."), ""][1]
    return [
        Import(f"{module}:{node.lineno}", part, target, top_level=not inside)
        for node, inside in statements(ast.parse(source))
        for target in targets(node, module, package=package)
    ]


def all_imports() -> list[Import]:
    """All imports of the package."""
    return [
        found
        for path in sorted(ROOT.rglob("*.py"))
        for found in imports_of(path.read_text(encoding="utf-8"), module_name(path), package=path.name == "__init__.py")
    ]


def height(part: str) -> int:
    """Layer of a part; private modules without a layer (``scfm/_accessor.py``) stand on top, the package above them."""
    return HEIGHT.get(part, TOP + 1 if part else TOP + 2)


def goes_up(found: Import) -> bool:
    """Whether an import of another part of scfm does not go down; verbs may use each other and the package."""
    target = [*found.target.split("."), ""]
    if target[0] != ROOT.name or target[1] == found.part:
        return False
    here = height(found.part)
    return here < TOP and height(target[1]) >= here


def is_forbidden_torch(found: Import) -> bool:
    """Whether torch is imported by a part that must do without."""
    library = found.target.split(".")[0]
    loads_torch = library in {"torch", "accelerate", "peft"} or found.target.startswith("safetensors.torch")
    return loads_torch and found.part not in MAY_IMPORT_TORCH


def is_heavy_at_top(found: Import) -> bool:
    """Whether a heavy library is imported when the module is."""
    return found.top_level and found.target.split(".")[0] in ONLY_INSIDE_FUNCTIONS


def lines(found: list[Import]) -> str:
    """What to show when a rule is broken."""
    return "\n".join(f"{f.where} imports {f.target}" for f in found)


IMPORTS = all_imports()


def test_every_part_has_a_layer() -> None:
    parts = {f.part for f in IMPORTS if f.part and not f.part.startswith("_")}
    assert parts <= HEIGHT.keys(), f"say in LAYERS where these stand: {sorted(parts - HEIGHT.keys())}"


def test_imports_go_down_only() -> None:
    wrong = [f for f in IMPORTS if goes_up(f)]
    assert not wrong, lines(wrong)


def test_torch_is_touched_by_transformer_models_and_training_only() -> None:
    wrong = [f for f in IMPORTS if is_forbidden_torch(f)]
    assert not wrong, lines(wrong)


def test_the_transformer_knows_no_anndata() -> None:
    wrong = [f for f in IMPORTS if f.part == "transformer" and f.target.split(".")[0] == "anndata"]
    assert not wrong, lines(wrong)


def test_heavy_libraries_are_imported_inside_functions() -> None:
    wrong = [f for f in IMPORTS if is_heavy_at_top(f)]
    assert not wrong, lines(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scfm.genes._table", "from scfm.models import load"),
        ("scfm.genes._table", "from scfm import models"),
        ("scfm.genes._table", "from ..models import load"),
        ("scfm.genes._table", "def f():\n    import scfm.tokenizers"),
        ("scfm.genes._table", "import scfm"),
        ("scfm.transformer._model", "class A:\n    def f(self):\n        from scfm import _accessor"),
        ("scfm.models._registry", "import importlib\nimportlib.import_module('scfm.tl')"),
        ("scfm.counts._find", "from scfm.genes import match"),
    ],
)
def test_the_guard_sees_an_import_that_goes_up(module: str, source: str) -> None:
    assert any(goes_up(f) for f in imports_of(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scfm.models._registry", "from scfm.genes import match"),
        ("scfm.models._registry", "from ._cards import Card\nfrom . import _cards\nfrom .families import scgpt"),
        ("scfm.cli", "from scfm import tl"),
        ("scfm.cli", "import scfm"),
        ("scfm.genes._table", "import pandas\nfrom scfm.errors import GeneMatchError"),
        ("scfm.genes._table", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from scfm.models import load"),
    ],
)
def test_the_guard_lets_an_import_that_goes_down_pass(module: str, source: str) -> None:
    assert not any(goes_up(f) for f in imports_of(source, module))


def test_the_guard_tells_top_level_from_inside_a_function() -> None:
    found = imports_of("import scanpy\ndef f():\n    import scanpy.pp\n", "scfm.tl._embed")
    assert [is_heavy_at_top(f) for f in found] == [True, False]
