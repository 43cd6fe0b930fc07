"""Does the tokenizer on this machine make the tokens it made elsewhere? A few recorded cells per family."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm import genes
from scfm.counts import CountBlock
from scfm.tokenizers import Tokenizer, Tokens

FILE = "recorded_tokens.zip"
"""Made by ``scripts/build_verify_tables.py``."""
TOKENIZER_FILES = ("tokenizer.json", "vocabulary.json", "tokenizer.npz")
FIRST_DAY = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Recorded:
    """Cells with the tokens they must give.

    Parameters
    ----------
    name
        Of the record.
    family
        Whose tokenizer made it.
    origin
        Who made the tokens, in words.
    genes
        Name of each column, as the family's own code matches them.
    block
        Counts.
    tokens
        Expected: ids, offsets, values.
    tokenizer
        With its constants; None: that of the model in question.
    draws
        Recorded random draws of the family's own code.
    part
        Which part of the tokens is recorded (``"bag"``); empty: the tokens themselves.
    """

    name: str
    family: str
    origin: str
    genes: tuple[str, ...]
    block: CountBlock
    tokens: Tokens
    tokenizer: Tokenizer | None = None
    draws: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    part: str = ""

    def difference(self, tokenizer: Tokenizer | None = None) -> str | None:
        """What differs on this machine, in words; None: nothing.

        Parameters
        ----------
        tokenizer
            Used where the record holds none.
        """
        used = self.tokenizer or tokenizer
        if used is None:
            return "the record holds no tokenizer"
        match = genes.match(list(self.genes), used.vocabulary, policy="published")
        ours = used.tokenize_block(self.block, match, draws=self.draws or None)
        if self.part:
            ours = ours.parts[self.part]
        if not np.array_equal(ours.offsets, self.tokens.offsets):
            cell = int(np.argmax(ours.lengths != self.tokens.lengths))
            return f"cell {cell} has {ours.lengths[cell]} tokens, recorded are {self.tokens.lengths[cell]}"
        if not np.array_equal(ours.ids, self.tokens.ids):
            wrong = ours.ids != self.tokens.ids
            cell = int(np.searchsorted(ours.offsets, np.argmax(wrong), side="right")) - 1
            return f"{wrong.sum()} of {len(wrong)} tokens differ, first in cell {cell}"
        if self.tokens.values is not None:
            values = np.full(len(ours.ids), np.nan) if ours.values is None else ours.values
            if not np.allclose(values, self.tokens.values, rtol=3e-7, atol=0, equal_nan=True):
                return f"values differ by up to {np.nanmax(np.abs(values - self.tokens.values)):.2g}"
        return None


def recorded(family: str) -> list[Recorded]:
    """The records of a family; none if there are none."""
    path = files("scfm.models").joinpath("data", FILE)
    if not path.is_file():
        return []
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        names = sorted({name.split("/")[0] for name in archive.namelist()})
        return [record for name in names if (record := _read(archive, name, family)) is not None]


def _read(archive: zipfile.ZipFile, name: str, family: str) -> Recorded | None:
    about = json.loads(archive.read(f"{name}/about.json"))
    if about["family"] != family:
        return None
    with np.load(io.BytesIO(archive.read(f"{name}/arrays.npz")), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    tokenizer = None
    if f"{name}/tokenizer.json" in archive.namelist():
        with tempfile.TemporaryDirectory() as folder:
            for file in TOKENIZER_FILES:
                if f"{name}/{file}" in archive.namelist():
                    (Path(folder) / file).write_bytes(archive.read(f"{name}/{file}"))
            tokenizer = Tokenizer.load(folder)
    return Recorded(
        name=name,
        family=family,
        origin=about["origin"],
        genes=tuple(about["genes"]),
        block=CountBlock(
            arrays["indptr"].astype(np.int64),
            arrays["indices"].astype(np.int32),
            arrays["counts"].astype(np.float32),
            len(about["genes"]),
        ),
        tokens=Tokens(arrays["ids"].astype(np.int32), arrays["offsets"].astype(np.int64), arrays.get("values"), None),
        tokenizer=tokenizer,
        draws={key.removeprefix("draws."): value for key, value in arrays.items() if key.startswith("draws.")},
        part=about["part"],
    )


def write(records: list[Recorded], path: Path) -> None:
    """Write records, the same bytes for the same content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for record in sorted(records, key=lambda r: r.name):
            for file, content in _contents(record):
                archive.writestr(zipfile.ZipInfo(f"{record.name}/{file}", FIRST_DAY), content, zipfile.ZIP_DEFLATED, 9)


def _contents(record: Recorded) -> Iterator[tuple[str, bytes]]:
    about = {"family": record.family, "origin": record.origin, "genes": record.genes, "part": record.part}
    yield "about.json", json.dumps(about).encode()
    arrays: dict[str, NDArray[Any]] = {
        "indptr": record.block.indptr.astype(np.int32),
        "indices": record.block.indices.astype(np.int16),
        "counts": record.block.data,
        "offsets": record.tokens.offsets.astype(np.int32),
        "ids": record.tokens.ids,
        **{f"draws.{key}": value for key, value in record.draws.items()},
    }
    if record.tokens.values is not None:
        arrays["values"] = record.tokens.values
    yield "arrays.npz", _npz(arrays)
    if record.tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            record.tokenizer.save(folder)
            for file in TOKENIZER_FILES:
                path = Path(folder) / file
                if path.is_file():
                    with_arrays = path.suffix == ".npz"
                    yield file, _npz(dict(np.load(path))) if with_arrays else path.read_bytes()


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An npz without compression, which the outer archive does, and without the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in sorted(arrays.items()):
            inner = io.BytesIO()
            np.save(inner, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", FIRST_DAY), inner.getvalue())
    return buffer.getvalue()
