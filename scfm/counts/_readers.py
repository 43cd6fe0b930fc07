"""How are rows read from this kind of matrix?

One reader per way of storing a matrix; each hands out runs of rows as CSR arrays and never changes what it reads.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scfm.counts._kernels import place_rows
from scfm.errors import CountsError

READ_AHEAD_ENTRIES = 1 << 20
"""Entries read from disk at once, however few rows are asked for at a time."""
BAND_ENTRIES = 1 << 25
"""Entries of rows held at once when a matrix that is stored by column is turned: about 500 MB with what a pass needs."""
SEGMENT_ENTRIES = 1 << 22
"""Entries of columns read at once while turning."""
DENSE_BYTES = 1 << 26
"""Bytes of a dense matrix read at once."""


class Rows(NamedTuple):
    """Some rows in CSR form; dtypes as stored, except ``indptr`` int64 and ``indices`` int32."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[Any]

    def cut(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``, without a copy of the entries."""
        begin, end = self.indptr[start], self.indptr[stop]
        return Rows(self.indptr[start : stop + 1] - begin, self.indices[begin:end], self.data[begin:end])

    def pick(self, rows: NDArray[np.int64]) -> Rows:
        """Rows in the given order; repeats are allowed."""
        if np.array_equal(rows, np.arange(len(self.indptr) - 1)):
            return self
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return Rows(indptr, self.indices[entries], self.data[entries])


def join(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(p.indptr[-1] for p in parts)])
    indptr = [p.indptr[:-1] + end for p, end in zip(parts, ends[:-1], strict=True)]
    return Rows(
        np.concatenate([*indptr, ends[-1:]]).astype(np.int64),
        np.concatenate([p.indices for p in parts]),
        np.concatenate([p.data for p in parts]),
    )


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Errors of the file while something is read from it, in words."""
    try:
        yield
    except (OSError, zlib.error) as error:
        raise CountsError(f"{what} cannot be read ({error}); the file is damaged, copy or make it again") from error


class RowReader(ABC):
    """Reads rows of one matrix.

    Parameters
    ----------
    shape
        (n_cells, n_columns).
    dtype
        As stored.
    storage
        In words, e.g. ``"CSR on disk"``.
    on_disk, is_dask
        Where the entries are.
    """

    on_disk = False
    is_dask = False
    sample_runs = 8

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], storage: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self.storage = storage

    @abstractmethod
    def rows(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``."""

    def spans(self, start: int, stop: int, n_rows: int) -> Iterator[tuple[int, int]]:
        """Runs of rows that are best read at once, each of ``n_rows`` or more."""
        return ((a, min(a + n_rows, stop)) for a in range(start, stop, n_rows))

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Rows in any order, repeats allowed."""
        wanted, back = np.unique(rows, return_inverse=True)
        breaks = np.flatnonzero(np.diff(wanted) > 1) + 1
        parts = [self.rows(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, breaks)]
        return join(parts).pick(back.ravel())

    def select(self, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None) -> RowReader:
        """A reader of some rows and columns in the given order."""
        return _Selected(self, rows, columns) if rows is not None or columns is not None else self


class _Selected(RowReader):
    """Some rows and columns of another matrix: a view."""

    def __init__(self, base: RowReader, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None) -> None:
        n_rows = base.shape[0] if rows is None else len(rows)
        n_columns = base.shape[1] if columns is None else len(columns)
        super().__init__((n_rows, n_columns), base.dtype, f"view of {base.storage}")
        self.on_disk = base.on_disk
        self._base, self._rows, self._columns = base, rows, columns

    def rows(self, start: int, stop: int) -> Rows:
        found = self._base.rows(start, stop) if self._rows is None else self._base.take(self._rows[start:stop])
        return self._in_columns(found)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        return self._in_columns(self._base.take(rows if self._rows is None else self._rows[rows]))

    def spans(self, start: int, stop: int, n_rows: int) -> Iterator[tuple[int, int]]:
        return self._base.spans(start, stop, n_rows) if self._rows is None else super().spans(start, stop, n_rows)

    def _in_columns(self, found: Rows) -> Rows:
        if self._columns is None:
            return found
        shape = (len(found.indptr) - 1, self._base.shape[1])
        return _as_rows(sparse.csr_array((found.data, found.indices, found.indptr), shape=shape)[:, self._columns])


class _Dense(RowReader):
    """Dense arrays in memory or on disk."""

    def __init__(self, matrix: Any, on_disk: bool) -> None:
        super().__init__(tuple(matrix.shape), matrix.dtype, "dense on disk" if on_disk else "dense")
        self.on_disk = on_disk
        self._matrix = matrix

    def rows(self, start: int, stop: int) -> Rows:
        at_once = max(1, DENSE_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        return join([self._read(a, min(a + at_once, stop)) for a in range(start, max(stop, start + 1), at_once)])

    def _read(self, start: int, stop: int) -> Rows:
        block = np.asarray(self._matrix[start:stop])
        entries = np.flatnonzero(block)
        row, column = np.divmod(entries, max(1, self.shape[1]))
        indptr = np.searchsorted(row, np.arange(stop - start + 1)).astype(np.int64)
        return Rows(indptr, column.astype(np.int32), block.ravel()[entries])


class _Csr(RowReader):
    """Compressed rows, in memory or on disk."""

    def __init__(self, shape: tuple[int, int], indptr: Any, indices: Any, data: Any, on_disk: bool) -> None:
        super().__init__(shape, data.dtype, "CSR on disk" if on_disk else "CSR")
        self.on_disk = on_disk
        self._indptr: NDArray[np.int64] = np.asarray(indptr[:], dtype=np.int64)
        self._indices, self._data = indices, data
        n_entries = int(self._indptr[-1])
        if min(data.shape[0], indices.shape[0]) < n_entries:
            raise CountsError(
                f"the matrix says it holds {n_entries:,} entries, but {data.shape[0]:,} values and {indices.shape[0]:,} "
                "column numbers are there; the file or object is damaged, make it again from its source"
            )

    def rows(self, start: int, stop: int) -> Rows:
        begin, end = self._indptr[start], self._indptr[stop]
        indices = np.asarray(self._indices[begin:end]).astype(np.int32, copy=False)
        return Rows(self._indptr[start : stop + 1] - begin, indices, np.asarray(self._data[begin:end]))

    def spans(self, start: int, stop: int, n_rows: int) -> Iterator[tuple[int, int]]:
        while start < stop:
            end = start + n_rows
            if self.on_disk:
                full = int(np.searchsorted(self._indptr, self._indptr[start] + READ_AHEAD_ENTRIES, side="right")) - 1
                end = start + max(1, (full - start) // n_rows) * n_rows
            yield start, min(end, stop)
            start = end


class _Csc(RowReader):
    """Compressed columns, turned into rows a band at a time.

    One pass over the entries counts those of every row; then each band of rows that holds `BAND_ENTRIES` takes one
    further pass. Memory is that of a band, time is linear in entries times bands.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        indptr: Any,
        indices: Any,
        data: Any,
        on_disk: bool,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        n_rows = shape[0] if order is None else len(order)
        super().__init__((n_rows, shape[1]), data.dtype, "CSC on disk" if on_disk else "CSC")
        self.on_disk = on_disk
        self._indptr: NDArray[np.int64] = np.asarray(indptr[:], dtype=np.int64)
        self._indices, self._data, self._stored_rows = indices, data, shape[0]
        self._order = order
        self._lengths: NDArray[np.int64] | None = None
        self._band: tuple[int, int, Rows] | None = None

    def select(self, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None) -> RowReader:
        chosen: RowReader = self
        if rows is not None:
            order = rows if self._order is None else self._order[rows]
            shape = (self._stored_rows, self.shape[1])
            chosen = _Csc(shape, self._indptr, self._indices, self._data, self.on_disk, order)
        return chosen if columns is None else _Selected(chosen, None, columns)

    def rows(self, start: int, stop: int) -> Rows:
        if self._band is None or start < self._band[0] or stop > self._band[1]:
            filled = np.cumsum(self._row_lengths()[start:])
            end = max(stop, start + int(np.searchsorted(filled, BAND_ENTRIES, side="right")))
            self._band = None
            self._band = (start, end, self.take(np.arange(start, end)))
        first, _, band = self._band
        return band.cut(start - first, stop - first)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        wanted, back = np.unique(rows if self._order is None else self._order[rows], return_inverse=True)
        lengths = self._stored_lengths[wanted]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        columns = np.empty(indptr[-1], dtype=np.int32)
        data = np.empty(indptr[-1], dtype=_native(np.empty(0, self.dtype)).dtype)
        place = np.full(self._stored_rows, -1, dtype=np.int64)
        place[wanted] = np.arange(len(wanted))
        fill = indptr[:-1].copy()
        for begin, end in self._segments():
            first, last = (int(np.searchsorted(self._indptr, e, side="right")) - 1 for e in (begin, end - 1))
            per_column: NDArray[np.int64] = np.diff(self._indptr[first : last + 2].clip(begin, end))
            here = np.repeat(np.arange(first, last + 1, dtype=np.int32), per_column)
            rows_here, values = (_native(entries[begin:end]) for entries in (self._indices, self._data))
            place_rows(place, fill, rows_here, here, values, columns, data)
        return Rows(indptr, columns, data).pick(back.ravel())

    def _segments(self) -> Iterator[tuple[int, int]]:
        n_entries = int(self._indptr[-1])
        return ((a, min(a + SEGMENT_ENTRIES, n_entries)) for a in range(0, n_entries, SEGMENT_ENTRIES))

    @property
    def _stored_lengths(self) -> NDArray[np.int64]:
        if self._lengths is None:
            self._lengths = np.zeros(self._stored_rows, dtype=np.int64)
            for begin, end in self._segments():
                self._lengths += np.bincount(self._indices[begin:end], minlength=self._stored_rows)
        return self._lengths

    def _row_lengths(self) -> NDArray[np.int64]:
        return self._stored_lengths if self._order is None else self._stored_lengths[self._order]


class DaskReader(RowReader):
    """Dask arrays with dense or sparse chunks, computed on the user's scheduler a few chunks at a time.

    Parameters
    ----------
    array
        (n_cells, n_columns).
    """

    is_dask = True
    sample_runs = 3

    def __init__(self, array: Any) -> None:
        if any(size != size for size in array.shape):
            raise CountsError(
                "the dask array does not know its own shape (nan rows or columns); call .compute_chunk_sizes() on it"
            )
        super().__init__(tuple(array.shape), array.dtype, "dask")
        self.array = array

    def rows(self, start: int, stop: int) -> Rows:
        if start == stop:
            return Rows(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, self.dtype))
        return _as_rows(self.matrix(start, stop).compute())

    def matrix(self, start: int, stop: int) -> Any:
        """Some rows as a dask object that becomes one CSR matrix where it is computed."""
        import dask

        return dask.delayed(_stacked)(self.array[start:stop].to_delayed().tolist())

    def spans(self, start: int, stop: int, n_rows: int) -> Iterator[tuple[int, int]]:
        ends = np.cumsum(self.array.chunks[0])
        while start < stop:
            enough = int(np.searchsorted(ends, min(start + n_rows, stop)))
            end = min(int(ends[enough]), stop)
            yield start, end
            start = end

    def select(self, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None) -> RowReader:
        array = self.array if rows is None else self.array[rows]
        return DaskReader(array if columns is None else array[:, columns])


def _stacked(grid: list[list[Any]]) -> Any:
    """Chunks of a matrix as one CSR matrix."""
    rows = [sparse.hstack([sparse.csr_array(part) for part in row], format="csr") for row in grid]
    return sparse.vstack(rows, format="csr")


def _native(entries: Any) -> NDArray[Any]:
    """Contiguous, in the byte order of this machine, and of a type that kernels know."""
    dtype = np.dtype(entries.dtype).newbyteorder("=")
    return np.ascontiguousarray(entries, dtype={"float16": np.float32, "bool": np.uint8}.get(dtype.name, dtype))


def _as_rows(matrix: Any) -> Rows:
    return Rows(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), matrix.data)


_PARTS = ("indptr", "indices", "data")
_COMPRESSED: dict[str, Callable[..., RowReader]] = {"csr": _Csr, "csc": _Csc}


def reader(matrix: Any) -> RowReader:
    """The reader for a matrix of an AnnData object.

    Parameters
    ----------
    matrix
        numpy array or matrix; scipy sparse matrix or array; AnnData's sparse dataset on HDF5 or zarr; HDF5 or zarr
        array; dask array.

    Raises
    ------
    CountsError
        If it is something else, not two-dimensional, or holds no numbers.
    """
    package = type(matrix).__module__.split(".")[0]
    if not hasattr(matrix, "shape") or not hasattr(matrix, "dtype") or len(matrix.shape) != 2:
        raise CountsError(
            f"a {package}.{type(matrix).__name__} is no matrix that can be read by rows; expected a numpy, scipy "
            "sparse, dask, HDF5 or zarr matrix of cells x genes"
        )
    if np.dtype(matrix.dtype).kind not in "biuf":
        raise CountsError(
            f"the matrix holds {matrix.dtype} values, expected numbers; convert it with .astype('float32')"
        )
    if np.ma.isMaskedArray(matrix):
        raise CountsError("the matrix is a masked array; fill it first: adata.X = adata.X.filled(0)")
    if package == "dask":
        return DaskReader(matrix)
    if getattr(matrix, "format", None) in _COMPRESSED:
        kind = _COMPRESSED[matrix.format]
        shape = tuple(matrix.shape)
        if sparse.issparse(matrix):
            return kind(shape, *(getattr(matrix, name) for name in _PARTS), False)
        missing = [name for name in _PARTS if name not in matrix.group]
        if missing:
            raise CountsError(
                f"{' and '.join(missing)} is not there: the file is damaged, make it again from its source"
            )
        return kind(shape, *(matrix.group[name] for name in _PARTS), True)
    if isinstance(matrix, np.ndarray):
        return _Dense(matrix, False)
    if package in ("h5py", "zarr"):
        return _Dense(matrix, True)
    raise CountsError(
        f"a {package}.{type(matrix).__name__} cannot be read here; bring it to main memory as a numpy or scipy sparse "
        "matrix first"
    )
