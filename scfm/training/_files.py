"""How do files reach the disk? Whole or not at all, and one process at a time."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from scfm.errors import ConfigError, OutputError

PARTIAL = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What the system, torch and safetensors raise when a file cannot be written."""
OF_TORCH = ("PytorchStreamWriter", "inline_container")
"""In what torch says when its writer of archives fails; it gives no number."""


def to_disk(path: Path) -> None:
    """Force a file, or the entries of a folder, out of the caches of the system."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finish_folder(partial: Path, final: Path) -> None:
    """Give a folder that is written its name, after everything in it is on disk."""
    for path in sorted(partial.rglob("*")):
        to_disk(path)
    to_disk(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.replace(final)
    to_disk(final.parent)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside ``final`` that takes its name when the block ends well.

    Raises
    ------
    OutputError
        If it cannot be written, for example on a full disk; ``final`` is as it was.
    """
    partial = final.with_name(final.name + PARTIAL)
    with telling(final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        finish_folder(partial, final)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file at once."""
    partial = path.with_name(path.name + PARTIAL)
    with telling(path):
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        to_disk(partial)
        partial.replace(path)
        to_disk(path.parent)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as ``npy``; numpy's own writing to a file does not notice a disk that is full at the end."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what the system says of writing into a line that says what to do.

    Raises
    ------
    OutputError
        If the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OutputError:
        raise
    except UNWRITTEN as error:
        full = is_full(error)
        if not full and not isinstance(error, OSError):
            raise
        reason = "the disk is full, or a quota is reached" if full else getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{path} could not be written: {reason}. Make room or choose another place") from error


def is_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in FULL)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in OF_TORCH)


def check_space(folder: Path, n_bytes: int, what: str) -> None:
    """Raise if a file system has less than ``n_bytes`` free.

    Raises
    ------
    OutputError
        With both numbers.
    """
    there = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        raise OutputError(
            f"{what} needs about {n_bytes / 1e9:.3g} GB, but {there} has {free / 1e9:.3g} GB free; make room or choose "
            "another place"
        )


_held: set[Path] = set()


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder against others; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    ConfigError
        If another run holds it.
    OutputError
        If the folder cannot be made.
    """
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    place = folder.resolve()
    with file:
        try:
            if place in _held:
                raise BlockingIOError
            _lock(file)
        except OSError as error:
            raise ConfigError(
                f"another process is writing {what} into {folder}; wait for it, or choose another folder"
            ) from error
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


def _lock(file: Any) -> None:
    """A lock of this process alone: workers that are forked from it, and may outlive it, do not hold it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
