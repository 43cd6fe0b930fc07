"""Tokens as files that are mapped into memory: one array per column, in the narrowest type that holds it exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.tokenizers import Tokens
from scfm.training._files import save_array

COLUMNS = "columns.json"
_WHOLE = (np.uint8, np.uint16, np.int16, np.int32)


def write_tokens(folder: Path, tokens: Tokens) -> None:
    """Write the arrays of tokens into a folder."""
    types = {}
    for name, array in _arrays(tokens):
        types[name] = array.dtype.str
        save_array(folder / f"{name}.npy", _narrow(array) if name != "offsets" else array)
    (folder / COLUMNS).write_text(json.dumps(types), encoding="utf-8")


def map_tokens(folder: Path) -> tuple[Tokens, dict[str, str]]:
    """Tokens whose arrays stay on disk, and the type that each has in memory."""
    types: dict[str, str] = json.loads((folder / COLUMNS).read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in types}
    return _tokens(arrays), types


def in_memory(tokens: Tokens, types: Mapping[str, str]) -> Tokens:
    """A few of the mapped tokens, in the types that they were made with."""
    return _tokens({name: np.asarray(array, dtype=types[name]) for name, array in _arrays(tokens)})


def _arrays(tokens: Tokens, prefix: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    yield f"{prefix}ids", tokens.ids
    yield f"{prefix}offsets", tokens.offsets
    for name in ("values", "positions"):
        column = getattr(tokens, name)
        if column is not None:
            yield f"{prefix}{name}", column
    for name, column in tokens.channels.items():
        yield f"{prefix}channel.{name}", column
    for name, column in tokens.per_cell.items():
        yield f"{prefix}cell.{name}", column
    for name, part in tokens.parts.items():
        yield from _arrays(part, f"{prefix}part.{name}.")


def _tokens(arrays: Mapping[str, NDArray[Any]]) -> Tokens:
    def group(kind: str) -> dict[str, NDArray[Any]]:
        return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}

    inner = group("part.")
    names = sorted({name.split(".")[0] for name in inner})
    return Tokens(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        values=arrays.get("values"),
        positions=arrays.get("positions"),
        channels=group("channel."),
        per_cell=group("cell."),
        parts={
            name: _tokens({k.removeprefix(f"{name}."): v for k, v in inner.items() if k.startswith(f"{name}.")})
            for name in names
        },
    )


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the narrowest whole type that holds every entry, or as it is."""
    if array.dtype.kind not in "iuf" or not len(array):
        return array
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        return array
    for kind in _WHOLE:
        info = np.iinfo(kind)
        if info.min <= low and high <= info.max and np.dtype(kind).itemsize < array.dtype.itemsize:
            narrow = array.astype(kind)
            if array.dtype.kind != "f" or bool((narrow == array).all()):
                return narrow
    return array


def reordered(parts: list[tuple[NDArray[np.int64], Tokens]], n_cells: int) -> Tokens:
    """Tokens of several readings in the order asked.

    Parameters
    ----------
    parts
        Places (in the order asked) and tokens of the cells of each reading.
    n_cells
        Cells in all.
    """
    from scfm.tokenizers import concatenate

    if len(parts) == 1 and bool((np.diff(parts[0][0]) > 0).all()):
        return parts[0][1]
    joined = concatenate([replace(tokens, measured=None) for _, tokens in parts])
    back = np.empty(n_cells, dtype=np.int64)
    back[np.concatenate([places for places, _ in parts])] = np.arange(n_cells)
    return joined[back]
