"""What an import costs, in modules that a fresh process has loaded afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import scfm

HEAVY = ("torch", "transformers", "scanpy", "sklearn", "matplotlib")
PLOTTING_AND_GRAPHS = ("scanpy", "sklearn", "matplotlib")
PARTS = tuple(name for name in scfm.__all__ if not name.startswith("_"))


def loaded_after(statement: str) -> set[str]:
    """Names of all modules in a fresh process that ran one statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_scfm_loads_nothing_heavy() -> None:
    assert loaded_after("import scfm").isdisjoint(HEAVY)


def test_version_is_known_without_loading_anything_heavy() -> None:
    assert loaded_after("import scfm; assert scfm.__version__").isdisjoint(HEAVY)


@pytest.mark.parametrize("part", ["counts", "errors", "genes", "tokenizers"])
def test_parts_below_the_models_load_no_torch(part: str) -> None:
    loaded = loaded_after(f"import scfm.{part}")
    assert f"scfm.{part}" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_parts_above_load_no_plotting_or_graph_library() -> None:
    loaded = loaded_after(f"import {', '.join(f'scfm.{part}' for part in PARTS)}")
    assert loaded.isdisjoint(PLOTTING_AND_GRAPHS)


def test_every_part_resolves_as_an_attribute() -> None:
    asked = "; ".join(f"assert scfm.{part}.__name__ == 'scfm.{part}'" for part in PARTS)
    assert loaded_after(f"import scfm; {asked}") >= {f"scfm.{part}" for part in PARTS}


def test_dir_lists_every_part() -> None:
    assert set(scfm.__all__) == set(dir(scfm))


def test_an_unknown_part_is_an_attribute_error_that_names_the_parts() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'tool'.*tl"):
        _ = scfm.tool
