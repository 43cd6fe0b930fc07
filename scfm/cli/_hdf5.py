"""Writing HDF5 where there may be no room.

HDF5 does not survive a write that the system refuses: it keeps what it could not write, and a later write to any file,
or the end of the process, is a segmentation fault (seen with HDF5 2.0). So it is told that every write went well: the
first refusal is kept, what follows is let go, and the refusal is raised when the file is closed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py


@contextlib.contextmanager
def opened(path: Path, mode: str) -> Iterator[h5py.File]:
    """A file of HDF5 to write to.

    Parameters
    ----------
    path
        Of the file.
    mode
        ``r+`` or ``w``.

    Raises
    ------
    OSError
        What the system said to the first write that failed, after the file is closed.
    """
    import h5py

    with path.open("r+b" if mode == "r+" else "w+b", buffering=0) as raw:
        disk = _Disk(raw)
        try:
            with h5py.File(disk, mode) as file:
                yield file
        except Exception:
            # read back and missed what was let go: the refusal says more
            if disk.refusal is None:
                raise
        if disk.refusal is not None:
            raise disk.refusal


class _Disk(io.RawIOBase):
    """What h5py needs of a file; no call fails."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self.raw = raw
        self.refusal: BaseException | None = None
        self.at = 0
        self.end = raw.seek(0, io.SEEK_END)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.end}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        self._try(lambda: self._read(view))
        self.at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._try(lambda: self._write(view))
        self.at += len(view)
        self.end = max(self.end, self.at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self.at if size is None else size
        self._try(lambda: self.raw.truncate(size))
        self.end = size
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def _try(self, call: Callable[[], object]) -> None:
        if self.refusal is None:
            try:
                call()
            except BaseException as error:  # Ctrl-C as well
                self.refusal = error

    def _read(self, view: memoryview) -> None:
        self.raw.seek(self.at)
        done = 0
        while done < len(view) and (n := self.raw.readinto(view[done:])):
            done += n

    def _write(self, view: memoryview) -> None:
        self.raw.seek(self.at)
        done = 0
        while done < len(view):
            done += self.raw.write(view[done:])
