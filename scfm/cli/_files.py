"""How does a result reach the disk? All of it or none of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scfm.cli._hdf5 import opened
from scfm.errors import OutputError

SUFFIX = ".h5ad"
PARTIAL = ".partial"
BYTES_PER_CELL = 4096
"""Room for the results of a cell when free space is looked at: 1,000 numbers."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked_output(out: Path, source: Path) -> Path:
    """Where the result will stand, symbolic links followed.

    Parameters
    ----------
    out
        As the user named it.
    source
        The input, for the message where the name is no h5ad.

    Raises
    ------
    OutputError
        If the name does not end in ``.h5ad``, is a folder, or its folder is not there or not writable.
    """
    if out.suffix != SUFFIX:
        raise OutputError(
            f"OUT is {str(out)!r}; results are written as AnnData files, so its name must end in {SUFFIX}: "
            f"{out.with_suffix(SUFFIX) if out.suffix else source.with_suffix(SUFFIX).name}"
        )
    out = out.expanduser().resolve()
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file in it, for example {out / ('result' + SUFFIX)}")
    if not out.parent.is_dir():
        raise OutputError(f"the folder {out.parent} is not there; make it first: mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {out.parent} is not writable for you; choose another place for OUT")
    return out


def check_space(out: Path, n_bytes: int) -> None:
    """Raise if the file system of ``out`` has less than ``n_bytes`` free.

    Raises
    ------
    OutputError
        With both numbers.
    """
    free = shutil.disk_usage(out.parent).free
    if free < n_bytes:
        raise OutputError(
            f"{out.name} needs about {_size(n_bytes)}, but {out.parent} has {_size(free)} free (a new file is finished "
            "before an old one goes); make room or choose another place for OUT"
        )


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _size(n_bytes: int) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if n_bytes >= u), (1e3, "kB"))
    return f"{n_bytes / unit:.1f} {name}"


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new file beside ``out`` that takes its place at once when the block ends well.

    Whatever happens before, an error, Ctrl-C, a kill or a power cut, ``out`` is as it was. After a kill the unfinished
    file stays behind under the name of ``out`` with ``.partial`` in it.

    Parameters
    ----------
    out
        An absolute path; see `checked_output`.

    Raises
    ------
    OutputError
        If the file cannot be made or finished, for example on a full disk.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f"{out.stem}.", suffix=f"{PARTIAL}{SUFFIX}", dir=out.parent)
    except OSError as error:
        raise _failed(out, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_mode(out))
        _to_disk(temporary)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OutputError) or not _is_about_writing(error, temporary):
            raise
        raise _failed(out, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be synchronised; the file itself was
        _to_disk(out.parent)


def _is_about_writing(error: OSError, temporary: Path) -> bool:
    return error.errno in FULL or temporary.name in str(error)


def _failed(out: Path, error: BaseException) -> OutputError:
    full = getattr(error, "errno", None) in FULL or any(os.strerror(n) in str(error) for n in FULL)
    reason = "the disk is full, or a limit on file sizes or a quota is reached" if full else str(error).splitlines()[0]
    kept = "; the old file is as it was" if out.exists() else ""
    return OutputError(f"{out} could not be written: {reason}{kept}. Make room or choose another place for OUT")


def _mode(out: Path) -> int:
    """Permissions of the old file, or those that a new file of this process gets."""
    if out.exists():
        return out.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_h5ad(path: Path) -> bool:
    """Whether a file is an AnnData in HDF5, whatever its name."""
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(file)


def copy_file(source: Path, target: Path, out: Path) -> None:
    """Copy the input to the file that will become ``out``.

    Raises
    ------
    OutputError
        If there is no room.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise _failed(out, error) from error


def add_results(target: Path, adata: Any, key: str, out: Path) -> None:
    """Write the slots of one embedding into a copy of the input; nothing else of the file is read or touched.

    Parameters
    ----------
    target
        An h5ad file.
    adata
        Holds the results.
    key
        Of the embedding.
    out
        What the file will be called, for messages.

    Raises
    ------
    OutputError
        If there is no room.
    """
    from anndata.io import write_elem

    from scfm.get._slots import UNS, Slots

    names = Slots(key)
    with writing(target, "r+", out) as file:
        if names.n_tokens in adata.obs:
            add_column(file, adata.obs, names.n_tokens)
        for group in ("obsm", "varm", "uns"):
            if group not in file:
                write_elem(file, group, {})
        if names.cells in adata.obsm:
            write_elem(file["obsm"], names.cells, adata.obsm[names.cells])
        for name in names.of_genes:
            if name in adata.varm:
                write_elem(file["varm"], name, adata.varm[name])
            elif name in file["varm"]:
                del file["varm"][name]
        if UNS not in file["uns"]:
            write_elem(file["uns"], UNS, {})
        write_elem(file["uns"][UNS], key, adata.uns[UNS][key])


def add_column(file: Any, obs: Any, name: str) -> None:
    """Add a column to ``obs``; files of before anndata 0.7 hold it as one table, which is written anew."""
    from anndata.io import write_elem

    stored = file["obs"]
    order = stored.attrs.get("column-order")
    if order is None:
        write_elem(file, "obs", obs)
        return
    write_elem(stored, name, obs[name].array if obs[name].dtype == "category" else obs[name].to_numpy())
    columns = [c for c in order if c != name]
    stored.attrs["column-order"] = [*columns, name]


def write_all(target: Path, adata: Any, out: Path) -> None:
    """Write a whole AnnData.

    Raises
    ------
    OutputError
        If there is no room.
    """
    from anndata.io import write_elem

    with writing(target, "w", out) as file:
        write_elem(file, "/", adata)


@contextlib.contextmanager
def writing(target: Path, mode: str, out: Path) -> Iterator[Any]:
    """The file of HDF5 that will become ``out``; `OutputError` if there is no room."""
    try:
        with opened(target, mode) as file:
            yield file
    except OSError as error:
        raise _failed(out, error) from error
