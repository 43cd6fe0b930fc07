"""How is a fitted annotator kept? One npz of arrays and a text of settings; nothing in it is executed when it is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.errors import ConfigError
from scfm.models._atomic import replacing

FORMAT = 1
ABOUT = "about.json"
SUFFIX = ".npz"


def save(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write at once or not at all.

    Raises
    ------
    ConfigError
        If the name has another ending, or there is no room.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path.name}: annotators are written as {SUFFIX} files; name it {path.stem}{SUFFIX}")
    text = json.dumps({"format": FORMAT, **about}, ensure_ascii=False)
    try:
        with replacing(path) as unfinished:
            everything: dict[str, Any] = {ABOUT: np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
            np.savez_compressed(unfinished, **everything)
    except OSError as error:
        raise ConfigError(f"{path} could not be written: {error.strerror or error}; choose another place") from error


def load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and settings.

    Raises
    ------
    ConfigError
        If there is no such file, or it is no annotator.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; write one with scfm.annotation.Annotator.fit(...).save(path)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop(ABOUT).tobytes().decode())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no annotator that scfm wrote ({type(error).__name__}: {error})") from error
    if about.get("format") != FORMAT:
        raise ConfigError(f"{path} has format {about.get('format')}, this version reads {FORMAT}; fit it again")
    return arrays, about


def is_annotator(path: Path) -> bool:
    """Whether a file is what `save` wrote, by its table of contents."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return f"{ABOUT}.npy" in archive.namelist()
