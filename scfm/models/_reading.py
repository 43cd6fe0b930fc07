"""What does this file hold? Reading checkpoint files without executing anything in them."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scfm.errors import CheckpointError

KINDS = (
    (0, b"PK\x03\x04", "a torch file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs", "a Git-LFS pointer instead of the file itself"),
    (0, b"<", "a web page"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x80", "a pickle"),
)
"""Leading bytes of what people download under the name of a checkpoint."""


def _latin1(text: str, _encoding: str) -> bytes:
    """What old pickles call to get at the bytes of a numpy scalar."""
    return text.encode("latin1")


PICKLE_NAMES: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{
        (f"numpy.{core}.{module}", name): getattr(getattr(np._core, module), name)  # type: ignore[attr-defined]
        for core in ("core", "_core")
        for module, name in (("multiarray", "scalar"), ("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
}
"""The only objects a pickled dictionary may name."""


DAMAGED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What Python's own reader raises on a damaged pickle."""


def kind_of(path: Path) -> str:
    """What a file is, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head[4:9] == b"\0\0\0\0{":  # after the length of the header, whose first byte may look like anything
        return "a safetensors file"
    for start, magic, kind in KINDS:
        if head[start : start + len(magic)] == magic:
            return kind
    return "a file of unknown kind"


def require(path: Path, what: str, hint: str = "") -> Path:
    """The path, if the file is there.

    Raises
    ------
    CheckpointError
        If it is not.
    """
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir())[:8] if path.parent.is_dir() else []
        found = f"{path.parent} holds {', '.join(there) or 'nothing'}" if path.parent.is_dir() else "no such folder"
        raise CheckpointError(f"{what} is missing: expected {path}, but {found}. {hint}".strip())
    return path


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PICKLE_NAMES:
            return PICKLE_NAMES[module, name]
        raise CheckpointError(
            f"the pickle asks for {module}.{name}, which a dictionary of genes has no need of; nothing was executed. "
            "Only plain dictionaries, lists, sets, strings, numbers and numpy arrays are read"
        )


def read_pickle(path: str | Path) -> Any:
    """A pickled dictionary of plain Python and numpy objects; anything else is refused.

    Raises
    ------
    CheckpointError
        If the pickle names any other object, is damaged, or is no pickle.
    """
    path = require(Path(path), "a pickled dictionary")
    try:
        return _RestrictedUnpickler(io.BytesIO(path.read_bytes())).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} is {kind_of(path)} and cannot be read as a pickled dictionary ({error}); download it again"
        ) from error


def read_json(path: str | Path, what: str = "a JSON file", hint: str = "") -> Any:
    """A JSON file.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    path = require(Path(path), what, hint)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)}, not JSON ({error}); download it again") from error


def is_json_with(path: Path, key: str, value: Any) -> bool:
    """Whether a file is there and is a JSON object that has ``value`` under ``key``."""
    if not path.is_file():
        return False
    data = read_json(path)
    return isinstance(data, dict) and data.get(key) == value


def read_settings(path: str | Path, needed: Sequence[str], hint: str = "") -> dict[str, Any]:
    """A configuration in JSON.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or lacks one of the ``needed`` settings.
    """
    settings = read_json(path, "the configuration", hint)
    absent = [n for n in needed if n not in settings] if isinstance(settings, dict) else [*needed]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; it is not the configuration of this kind of model")
    return dict(settings)


def mentions(path: Path, *texts: bytes) -> bool:
    """Whether a torch file's list of contents holds all these texts; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            lists = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return bool(lists) and all(text in archive.read(lists[0]) for text in texts)
    except (*DAMAGED, OSError, zipfile.BadZipFile):
        return False


def read_array(path: str | Path) -> NDArray[Any]:
    """A numpy file of numbers.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or holds objects.
    """
    path = require(Path(path), "an array")
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)}, not a numpy array of numbers; download it again") from error
    return array


def read_tensors(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """The dictionary of a torch or safetensors file; tensors on the CPU.

    Parameters
    ----------
    path
        Of the file.
    lazy
        Leave the tensors of a torch file in it until they are looked at: for files of which little is needed. What is
        kept must be copied.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind, or holds objects that are not plain data.
    """
    loaded = _load(Path(path), lazy=lazy)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, but a dictionary of tensors was expected")
    return dict(loaded)


def read_tensor(path: str | Path, *, lazy: bool = False) -> Tensor:
    """The one tensor of a torch file; arguments and errors as for `read_tensors`."""
    loaded = _load(Path(path), lazy=lazy)
    if not isinstance(loaded, Tensor):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, but a tensor was expected")
    return loaded


def _load(path: Path, *, lazy: bool) -> Any:
    path = require(Path(path), "the weight file")
    kind = kind_of(path)
    expected = ("a safetensors file",) if path.suffix == ".safetensors" else ("a torch file", "a pickle")
    if kind not in expected:
        raise CheckpointError(f"{path} is {kind}, not {expected[0]}; download it again")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(list(_numpy_globals())):
            mapped = lazy and zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was not read, and nothing in it was executed: {_reason(error)}; only plain tensors and numbers are "
            "read"
        ) from error
    except (*DAMAGED, AssertionError, OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read ({_reason(error)}); it may be truncated: download it "
            "again"
        ) from error
    return loaded


def _reason(error: Exception) -> str:
    """What torch's reader found, without its advice to switch the protection off."""
    text = str(error) or type(error).__name__
    asked = re.search(r"GLOBAL (\S+)", text)
    if asked is not None:
        return f"it asks for {asked[1]}"
    return "its pickle is damaged" if text.startswith("Weights only load failed") else text.splitlines()[0]


def _numpy_globals() -> Any:
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    # the second name is the one that files written with numpy 1 hold
    yield from (scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype)
    yield from {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.int16)}


def as_state(data: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict as float32 where they are floating; a ``module.`` prefix is cut.

    Raises
    ------
    CheckpointError
        If something in it is not a tensor, or two names differ in the prefix only.
    """
    state: dict[str, Tensor] = {}
    for key, value in data.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: the entry {key!r} is {type(value).__name__}, but a tensor was expected")
        name = str(key).removeprefix("module.")
        if name in state:
            raise CheckpointError(
                f"{path} holds {name} with and without the prefix 'module.'; which one counts is unclear"
            )
        state[name] = value.float() if value.is_floating_point() else value
    return state
