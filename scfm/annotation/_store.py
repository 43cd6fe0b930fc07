"""How is a fitted annotator kept? One npz of arrays and a text of settings; nothing in it is executed when it is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scfm.annotation._calibration import Rejection
from scfm.annotation._core import Core
from scfm.annotation._expression import Expression, GeneSpace
from scfm.annotation._space import Space
from scfm.errors import ConfigError
from scfm.models._atomic import replacing
from scfm.ontology import Ontology

if TYPE_CHECKING:
    from scfm.annotation._annotator import Annotator

FORMAT = 2
ABOUT = "about.json"
SUFFIX = ".npz"
GENES = ("selected", "mean", "share")
Arrays = dict[str, NDArray[Any]]


def packed(annotator: Annotator) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and settings, as `save` takes them."""
    arrays = {**annotator.core.arrays(), **annotator.rejection.arrays(), "keys": annotator.keys}
    if annotator.genes is not None and annotator.expression is not None:
        arrays["genes/names"] = np.frombuffer("\n".join(annotator.genes.names).encode(), dtype=np.uint8)
        arrays |= {f"genes/{part}": getattr(annotator.expression, part) for part in GENES}
    if annotator.held_out is not None:
        arrays |= {"held_out/codes": annotator.held_out[0], "held_out/proba": annotator.held_out[1]}
    about = {
        "classes": list(annotator.classes),
        "method": annotator.method,
        "members": list(annotator.members),
        "temperature": annotator.temperature,
        "scales": dict(annotator.rejection.scales),
        "space": None if annotator.space is None else annotator.space.to_dict(),
        "species": None if annotator.genes is None else annotator.genes.species,
        "tree": None if annotator.tree is None else {k: list(v) for k, v in annotator.tree.parents.items()},
        "about": dict(annotator.about),
    }
    return arrays, about


def unpacked(path: Path) -> dict[str, Any]:
    """The fields of the annotator in a file.

    Raises
    ------
    ConfigError
        If it is no such file, or holds only a part of one.
    """
    arrays, said = load(path)
    try:
        return _fields(arrays, said)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no complete annotator ({type(error).__name__}: {error}); fit it again") from error


def _fields(arrays: Arrays, said: Mapping[str, Any]) -> dict[str, Any]:
    genes = expression = held_out = None
    if "genes/names" in arrays:
        genes = GeneSpace(tuple(arrays["genes/names"].tobytes().decode().split("\n")), said["species"])
        selected, mean, share = (arrays[f"genes/{part}"] for part in GENES)
        expression = Expression(selected.astype(np.int64), mean.astype(np.float32), share.astype(np.float32))
    if "held_out/codes" in arrays:
        held_out = (arrays["held_out/codes"], arrays["held_out/proba"].astype(np.float32))
    return {
        "classes": tuple(said["classes"]),
        "method": said["method"],
        "core": Core.from_arrays(arrays).only(said["members"]),
        "temperature": said["temperature"],
        "rejection": Rejection(said["scales"], arrays["quantiles"].astype(np.float64)),
        "space": None if said["space"] is None else Space(**said["space"]),
        "genes": genes,
        "expression": expression,
        "about": said["about"],
        "tree": None if said["tree"] is None else Ontology.of(said["tree"]),
        "keys": arrays["keys"],
        "held_out": held_out,
    }


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


def load(path: Path) -> tuple[Arrays, dict[str, Any]]:
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
