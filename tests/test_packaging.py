"""What reaches a user: the files in the wheel and in the source distribution."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import scfm

pytest.importorskip("hatchling", reason="builds the package with hatchling, which is not installed")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scfm"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    """Names of the files in the wheel."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """Names of the files in the source distribution, below its top folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def test_wheel_holds_every_module_and_data_file(wheel: set[str]) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "scfm/py.typed" in files
    assert files <= wheel


def test_wheel_holds_the_package_and_its_metadata_only(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"scfm", f"scfm-{scfm.__version__}.dist-info"}


@pytest.mark.parametrize("name", ["LICENSE", "THIRD_PARTY.md"])
def test_licences_are_in_wheel_and_source_distribution(wheel: set[str], sdist: set[str], name: str) -> None:
    assert any(path.endswith(f".dist-info/licenses/{name}") for path in wheel)
    assert name in sdist


def test_every_shipped_table_is_named_in_the_third_party_notices() -> None:
    notices = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    tables = [path for path in PACKAGE.glob("*/data/*") if path.is_dir() or path.suffix != ".md"]
    assert tables
    unnamed = [path.name for path in tables if f"`{path.name}`" not in notices]
    assert not unnamed, f"say in THIRD_PARTY.md where these come from: {unnamed}"


def test_source_distribution_holds_what_tests_and_docs_need(sdist: set[str]) -> None:
    needed = {"Makefile", "constraints.txt", "pyproject.toml", "README.md", "docs/conf.py", "scripts/demo.py"}
    golden = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "golden").rglob("*") if path.is_file()}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")}
    assert needed | golden | tests <= sdist


def test_command_line_is_registered(built: Path) -> None:
    assert "scfm = scfm.cli:app" in read_metadata(built, "entry_points.txt").splitlines()


def test_core_requirements_name_no_plotting_or_graph_library(built: Path) -> None:
    requirements = message_from_string(read_metadata(built, "METADATA")).get_all("Requires-Dist", [])
    core = [line for line in requirements if "extra ==" not in line]
    assert any(line.startswith("torch") for line in core)
    assert not any(line.startswith(("scanpy", "matplotlib", "scikit-learn", "dask")) for line in core)


def read_metadata(built: Path, name: str) -> str:
    """One text file of the wheel's metadata."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"scfm-{scfm.__version__}.dist-info/{name}").decode()
