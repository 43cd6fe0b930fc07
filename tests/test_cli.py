"""The command line: what it prints, what it writes, and what it leaves alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import anndata
import numpy as np
import pytest
import tqdm
from golden_cases import case
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.cli._doctor import OPTIONAL
from scfm.cli._files import PARTIAL
from scfm.tl import _embed

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "embed",
    "embed-genes",
    "embed-sequences",
    "inspect",
    "models",
    "doctor",
    "verify",
    "convert",
    "robustness",
    "annotate",
    "annotator",
)


def geneformer() -> Path:
    return case("geneformer_v1") / "checkpoint" / "Geneformer-V1-tiny"


def scgpt() -> Path:
    return case("scgpt") / "checkpoint" / "pretrained"


MODELS = {"geneformer": geneformer, "scgpt": scgpt, "scfm-mini": lambda: "scfm-mini"}


def run(*args, code: int | None = 0):
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    if code is not None:
        assert result.exit_code == code, result.output
    return result


def fails_in_one_line(*args) -> str:
    """Run a command that must fail, and return its only line on stderr."""
    result = run(*args, code=1)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert not result.stdout
    return lines[0]


def process(*args, before=None) -> subprocess.Popen:
    command = [sys.executable, "-m", "scfm", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """The cells that scanpy ships: scaled X, log-normalised raw, labels with slashes."""
    scanpy = pytest.importorskip("scanpy")
    path = tmp_path_factory.mktemp("real") / "pbmc68k.h5ad"
    scanpy.datasets.pbmc68k_reduced().write_h5ad(path)
    return path


@pytest.fixture
def cells(tmp_path) -> Path:
    """A few cells with the genes of the scGPT case, in a file of their own."""
    path = tmp_path / "cells.h5ad"
    path.write_bytes((case("scgpt") / "cells.h5ad").read_bytes())
    return path


def no_leftovers(folder: Path) -> bool:
    return not list(folder.glob(f"*{PARTIAL}*"))


# help


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_every_command_teaches_with_an_example(command):
    text = run(*command, "--help").output
    assert "scfm " in text
    assert command == ("doctor",) or f"scfm {' '.join(command)}".strip() in text.replace("Usage", "")
    assert "Traceback" not in text


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom scfm.cli import app\n"
        "assert CliRunner().invoke(app, ['embed', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'anndata', 'pandas', 'numba', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_printed():
    assert run("--version").stdout.strip() == scfm.__version__


# embed


@pytest.mark.parametrize("name", MODELS)
def test_real_cells_from_file_to_file(real, tmp_path, name, caplog):
    if name == "scfm-mini" and name not in scfm.models.cards():
        pytest.skip("the built-in model is not there")
    out = tmp_path / "out.h5ad"
    groups = () if name == "scfm-mini" else ("--groupby", "bulk_labels")
    result = run("embed", real, out, "--model", MODELS[name](), "--key-added", "a/b", "--no-progress", *groups)
    assert 'obsm["X_a_b"]' in result.stdout
    assert "computed back" in result.stderr
    assert "effective rank" in caplog.text
    before, after = anndata.read_h5ad(real), anndata.read_h5ad(out)
    np.testing.assert_array_equal(after.X, before.X)
    assert (after.raw.X != before.raw.X).nnz == 0
    assert list(after.obs.columns) == [*before.obs.columns, "a_b_n_tokens"]
    assert set(after.uns) == {*before.uns, "scfm"}
    assert set(after.obsm) == {*before.obsm, "X_a_b"}
    frame = scfm.get.embedding(after)
    assert len(frame) == before.n_obs
    in_memory = before.copy()
    scfm.tl.embed(in_memory, MODELS[name](), key_added="a/b", progress=False)
    np.testing.assert_array_equal(after.obsm["X_a_b"], in_memory.obsm["X_a_b"])
    if groups:
        assert list(after.uns["scfm"]["a_b"]["groups"]) == list(before.obs["bulk_labels"].cat.categories)


@pytest.mark.filterwarnings("ignore")
def test_options_reach_the_verb(cells, tmp_path):
    options = (
        "--hidden-layer",
        -1,
        "--pooling",
        "mean",
        "--gene-embeddings",
        "none",
        "--batch-tokens",
        50,
        "--seed",
        3,
    )
    run("embed", cells, tmp_path / "out.h5ad", "--model", scgpt(), "--key-added", "x", "--no-progress", *options)
    after = anndata.read_h5ad(tmp_path / "out.h5ad")
    used = after.uns["scfm"]["x"]["parameters"]
    assert (used["hidden_layer"], used["pooling"], used["seed"]) == (-1, "mean", 3)
    assert "x" not in after.varm


def test_out_may_be_in_and_a_second_run_replaces_the_first(cells):
    before = anndata.read_h5ad(cells)
    for options in (("--groupby", "celltype"), ()):
        run("embed", cells, cells, "--model", scgpt(), "--no-progress", *options)
    after = anndata.read_h5ad(cells)
    assert (after.X != before.X).nnz == 0
    assert list(after.varm) == ["pretrained"]
    assert list(after.obs.columns) == [*before.obs.columns, "pretrained_n_tokens"]
    assert no_leftovers(cells.parent)


def test_other_formats_are_written_as_h5ad(cells, tmp_path):
    anndata.read_h5ad(cells).write_zarr(tmp_path / "cells.zarr")
    for source, out in ((cells, "a.h5ad"), (tmp_path / "cells.zarr", "b.h5ad")):
        run("embed", source, tmp_path / out, "--model", scgpt(), "--no-progress")
    a, b = (anndata.read_h5ad(tmp_path / name) for name in ("a.h5ad", "b.h5ad"))
    np.testing.assert_array_equal(a.obsm["X_pretrained"], b.obsm["X_pretrained"])
    assert (a.X != b.X).nnz == 0


def test_a_table_of_cells_of_before_anndata_0_7_is_written_anew(cells, tmp_path):
    import h5py

    names = {"obs": anndata.read_h5ad(cells).obs_names, "var": anndata.read_h5ad(cells).var["feature_name"]}
    with h5py.File(cells, "r+") as file:
        for table, index in names.items():
            del file[table]
            file[table] = np.array([(str(i).encode(),) for i in index], dtype=[("index", "S40")])
        file.attrs.clear()
        matrix = file["X"].attrs
        matrix.update({"h5sparse_format": "csr", "h5sparse_shape": matrix["shape"]})
        del matrix["encoding-type"], matrix["encoding-version"]
    run("embed", cells, tmp_path / "out.h5ad", "--model", scgpt(), "--no-progress")
    assert "pretrained_n_tokens" in anndata.read_h5ad(tmp_path / "out.h5ad").obs


def test_dry_run_needs_no_output_and_writes_none(cells):
    result = run("embed", cells, "--model", scgpt(), "--dry-run")
    assert "cells/s" in result.stdout
    assert list(cells.parent.iterdir()) == [cells]


def test_a_symbolic_link_stays_a_link_to_the_new_file(cells, tmp_path):
    link = tmp_path / "link.h5ad"
    link.symlink_to(cells)
    run("embed", link, link, "--model", scgpt(), "--no-progress")
    assert link.is_symlink()
    assert "X_pretrained" in anndata.read_h5ad(cells).obsm


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(cells, tmp_path):
    cells.chmod(0o640)
    run("embed", cells, cells, "--model", scgpt(), "--no-progress")
    assert cells.stat().st_mode & 0o777 == 0o640
    other = tmp_path / "any"
    other.touch()
    run("embed", cells, tmp_path / "new.h5ad", "--model", scgpt(), "--no-progress")
    assert (tmp_path / "new.h5ad").stat().st_mode == other.stat().st_mode


# errors


def test_errors_are_one_line_that_says_what_to_do(cells, tmp_path):
    out = tmp_path / "out.h5ad"
    model = ("--model", scgpt())
    assert "no file" in fails_in_one_line("embed", tmp_path / "nope.h5ad", out, *model)
    assert "no layer 'nope'" in fails_in_one_line("embed", cells, out, *model, "--layer", "nope")
    assert "geneformer-v1-10m" in fails_in_one_line("embed", cells, out, "--model", "gene-nope")
    assert "mkdir -p" in fails_in_one_line("embed", cells, tmp_path / "nope" / "out.h5ad", *model)
    assert "end in .h5ad" in fails_in_one_line("embed", cells, tmp_path / "out.csv", *model)
    assert "is a folder" in fails_in_one_line("embed", cells, folder(tmp_path / "f.h5ad"), *model)
    assert "name=value" in fails_in_one_line("embed", cells, out, *model, "--context", "assay")
    assert "'nope' is not registered" in fails_in_one_line("models", "nope").replace(
        "no model 'nope' is", "'nope' is not"
    )
    assert "no model 'nope'" in fails_in_one_line("verify", "nope")
    assert "no file" in fails_in_one_line("inspect", tmp_path / "nope.h5ad")
    assert not out.exists()
    assert no_leftovers(tmp_path)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_error_found_late_removes_the_unfinished_file(cells, tmp_path):
    result = run("embed", cells, tmp_path / "out.h5ad", "--model", scgpt(), "--gene-key", "nope", code=1)
    assert result.stderr.startswith("Error: ")
    assert "'nope' is not in var" in result.stderr
    assert no_leftovers(tmp_path)


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for args in (("--debug", "inspect", tmp_path / "nope"), ("inspect", tmp_path / "nope", "--debug")):
        result = run(*args, code=1)
        assert isinstance(result.exception, scfm.errors.CountsError)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_an_unwritable_folder_is_named(cells, tmp_path):
    closed = folder(tmp_path / "closed")
    closed.chmod(0o500)
    # the superuser may write everywhere but where the system itself says no
    place = closed if os.geteuid() else Path("/proc")
    message = fails_in_one_line("embed", cells, place / "out.h5ad", "--model", scgpt())
    assert str(place) in message


@pytest.mark.parametrize("room", ["for nothing", "for the cells but not the embedding", "for a part of other formats"])
def test_a_full_disk_leaves_the_old_file(cells, tmp_path, room):
    """In a process of its own, whose end is looked at too: HDF5 does not survive a write that was refused."""
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"the old file")
    source, size = cells, cells.stat().st_size
    if room == "for a part of other formats":
        source = tmp_path / "cells.zarr"
        anndata.read_h5ad(cells).write_zarr(source)
    n_bytes = size + 1000 if room == "for the cells but not the embedding" else size // 2

    def no_larger_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

    running = process("embed", source, out, "--model", scgpt(), "--no-progress", before=no_larger_files)
    told = running.communicate()[1]
    assert running.returncode == 1, told
    assert len(told.strip().splitlines()) <= 2  # the health of the embedding, and the error
    assert "the disk is full" in told.splitlines()[-1]
    assert out.read_bytes() == b"the old file"
    assert no_leftovers(tmp_path)


# kills


def started_writing(running: subprocess.Popen, folder: Path) -> Path:
    """Wait until the process has begun its unfinished file."""
    while running.poll() is None:
        found = list(folder.glob(f"*{PARTIAL}*"))
        if found:
            return found[0]
        time.sleep(0.005)
    pytest.fail(f"the process ended before it could be stopped: {running.communicate()}")


def test_a_kill_leaves_the_old_file_and_the_next_run_names_the_unfinished_one(real, cells, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"the old file")
    running = process("embed", real, out, "--model", geneformer())
    unfinished = started_writing(running, tmp_path)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert out.read_bytes() == b"the old file"
    assert unfinished.exists()
    assert unfinished.name in run("embed", cells, out, "--model", scgpt(), "--no-progress").stderr
    assert "X_pretrained" in anndata.read_h5ad(out).obsm


def test_ctrl_c_leaves_nothing_behind(cells, tmp_path, monkeypatch):
    class Bar(tqdm.tqdm):
        def update(self, n=1):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_embed, "tqdm", Bar)
    before = cells.read_bytes()
    result = run("embed", cells, cells, "--model", scgpt(), "--no-progress", code=130)
    assert result.stderr.splitlines()[-1] == "interrupted: nothing was written"
    assert cells.read_bytes() == before
    assert list(tmp_path.iterdir()) == [cells]


def test_a_request_to_end_leaves_nothing_behind(real, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"the old file")
    running = process("embed", real, out, "--model", geneformer(), "--no-progress")
    started_writing(running, tmp_path)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert "nothing was written" in said
    assert "Traceback" not in said
    assert out.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [out]


# inspect, models, doctor


def test_inspect_says_where_counts_are_and_how_genes_fit(real):
    text = run("inspect", real, "--model", geneformer()).stdout
    assert "counts from raw" in text
    assert "765" in text
    assert "bulk_labels" in text
    assert "genes matched by" in text


def test_inspect_ends_with_an_error_where_there_are_no_counts(real):
    result = run("inspect", real, "--no-use-raw", code=1)
    assert "scaled" in result.stdout


def test_models_lists_all_and_one_in_full():
    table = run("models").stdout
    for name, card in scfm.models.cards().items():
        assert name in table
        text = run("models", name).stdout
        assert card.licence in text
        assert all(file in text for file in card.files)
        assert all(checksum in text for checksum in card.checksums.values())


def test_doctor_tells_versions_devices_attention_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "models"))
    folder(tmp_path / "models")
    folder(tmp_path / "models" / "scgpt-human")
    text = run("doctor").stdout
    assert scfm.__version__ in text
    assert "sdpa" in text
    assert "flash_attention_2" in text
    assert f"{tmp_path / 'models'}" in text
    assert "scgpt-human" in text
    present = {distribution.name for distribution in importlib.metadata.distributions()}
    for row in OPTIONAL:
        installed = row.package in present or importlib.util.find_spec(row.package.replace("-", "_")) is not None
        (line,) = [li for li in text.splitlines() if li.strip().startswith(f"{row.package} ")]
        assert installed or f'pip install "scfm[{row.extra}]"' in line


def test_doctor_names_extras_that_exist_and_bring_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for row in OPTIONAL:
        brought = " ".join(extras[row.extra])
        assert row.package in brought, f"{row.package} is not in the extra {row.extra}"
