"""Vectors that were computed before, on disk, by the content that they were computed from."""

from __future__ import annotations

import json
import time
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scfm.errors import CheckpointError
from scfm.models._atomic import replacing

FULL = 256
"""Vectors that are written together."""
SECONDS = 20.0
"""What is finished is written at least so often."""
SETTINGS = "settings.json"
SUFFIX = ".npz"

Entry = Mapping[str, Any]
"""A vector (d,) under ``vector``, and whole numbers about it."""


class VectorStore:
    """A folder of vectors; several processes may write to it at once.

    Used as a context: what is finished is written when it ends, however it ends.

    Parameters
    ----------
    folder
        Holds vectors made with the same settings only. None: nothing is kept.
    settings
        Written beside the vectors, for people.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self._waiting: dict[str, Entry] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.flush()

    def find(self, keys: set[str]) -> dict[str, Entry]:
        """What is there of these keys.

        Raises
        ------
        CheckpointError
            If a file is damaged.
        """
        found: dict[str, Entry] = {}
        for path in (
            sorted(self.folder.glob(f"[!.]*{SUFFIX}")) if self.folder is not None and self.folder.is_dir() else ()
        ):
            try:
                with np.load(path, allow_pickle=False) as file:
                    held = {name: file[name] for name in file.files}
                rows = [(i, key) for i, key in enumerate(held.pop("key").tolist()) if key in keys and key not in found]
                found |= {key: {name: array[i] for name, array in held.items()} for i, key in rows}
            except (ValueError, OSError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
                raise CheckpointError(
                    f"the cached vectors in {path} cannot be read ({error}); remove that file"
                ) from error
        return found

    def put(self, key: str, vector: NDArray[np.float32], **numbers: int) -> None:
        """Keep a vector; it reaches the disk with the next ones."""
        if self.folder is None:
            return
        self._waiting[key] = {"vector": vector, **numbers}
        if len(self._waiting) >= FULL or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, at once or not at all."""
        self._since = time.monotonic()
        if self.folder is None or not self._waiting:
            return
        entries = self._waiting
        names = next(iter(entries.values())).keys()
        arrays = {name: np.stack([np.asarray(entry[name]) for entry in entries.values()]) for name in names}
        with replacing(self.folder / f"{uuid.uuid4().hex}{SUFFIX}") as unfinished:
            np.savez(unfinished, key=np.array([*entries]), **arrays)  # type: ignore[arg-type]
        if not (self.folder / SETTINGS).is_file():
            with replacing(self.folder / SETTINGS) as unfinished:
                unfinished.write_text(json.dumps(self.settings, indent=1, sort_keys=True), encoding="utf-8")
        self._waiting = {}
