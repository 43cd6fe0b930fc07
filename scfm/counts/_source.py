"""A stream of raw counts from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from scfm.counts._block import CountBlock
from scfm.counts._evidence import sampled_rows
from scfm.counts._readers import DaskReader, RowReader, Rows, reading
from scfm.counts._readers import reader as reader_of
from scfm.counts._recovery import Recovery
from scfm.counts._report import CountReport
from scfm.errors import CountsError


@dataclass(frozen=True, eq=False)
class CountSource:
    """Raw counts of cells, read in blocks of rows. Made by `find`.

    Parameters
    ----------
    where
        ``"X"``, ``"raw"`` or ``"layers['counts']"``.
    var
        Annotation of the columns of this matrix.
    obs_names
        Names of the cells.
    report
        What was found, and what is done with it.
    reader
        Reads rows as they are stored.
    recovery
        The way back to counts; None: what is stored are counts.
    """

    where: str
    var: pd.DataFrame
    obs_names: pd.Index[str]
    report: CountReport
    reader: RowReader
    recovery: Recovery | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_cells, n_columns)."""
        return self.reader.shape

    @property
    def is_backed(self) -> bool:
        """Whether the matrix is on disk."""
        return self.reader.on_disk

    @property
    def is_dask(self) -> bool:
        """Whether the matrix is a dask array."""
        return self.reader.is_dask

    def __repr__(self) -> str:
        n, columns = self.shape
        return f"CountSource({n:,} cells x {columns:,} columns from {self.where}: {self.report.kind}, {self.reader.storage})"

    def blocks(self, n_rows: int = 1024, rows: slice | None = None) -> Iterator[CountBlock]:
        """Counts of consecutive cells.

        Parameters
        ----------
        n_rows
            Most cells of a block.
        rows
            Only these cells: a slice without a step.

        Yields
        ------
        CountBlock
            Data are float32 where that holds every value of the block exactly, otherwise float64. Explicit zeros are
            left out. Arrays may be views of the matrix in memory: read them only.

        Raises
        ------
        CountsError
            If a cell that was not in the sample holds what the sample did not: negative or non-finite values,
            fractions among counts, values that are no multiple of a count. The message names the cell.
        """
        if n_rows < 1:
            raise CountsError(f"blocks of {n_rows} cells were asked for; at least 1 is needed")
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        if step != 1:
            raise CountsError(f"rows[::{step}] was asked for; blocks are consecutive, use a slice without a step")
        return self._stream(start, stop, n_rows)

    def sample(self) -> CountBlock:
        """Counts of the cells that were looked at, in order; the numbers of their rows are not consecutive."""
        return self._block(self.reader.take(sampled_rows(self.reader)), 0)

    def only(self, rows: NDArray[np.int64]) -> CountSource:
        """Some cells, in the order given, held in memory; repeats are allowed.

        Parameters
        ----------
        rows
            Numbers of rows.
        """
        with reading(f"{len(rows):,} rows of {self.where}"):
            found = self.reader.take(np.asarray(rows, dtype=np.int64))
        held = sparse.csr_matrix((found.data, found.indices, found.indptr), shape=(len(rows), self.shape[1]))
        return replace(self, reader=reader_of(held), obs_names=self.obs_names[rows])

    def delayed(self, n_rows: int) -> list[tuple[slice, Any]]:
        """Portions of a dask array as sources of their own, each a dask object that a worker computes.

        Parameters
        ----------
        n_rows
            Least rows of a portion; borders are those of the chunks.
        """
        if not isinstance(self.reader, DaskReader):
            raise CountsError(f"only a dask array can be handed out to workers; this matrix is {self.reader.storage}")
        import dask

        parts = []
        for start, stop in self.reader.spans(0, self.shape[0], n_rows):
            shell = replace(self, reader=None, obs_names=self.obs_names[start:stop])  # type: ignore[arg-type]
            part = dask.delayed(_over)(shell, self.reader.matrix(start, stop))
            parts.append((slice(start, stop), part))
        return parts

    def _stream(self, start: int, stop: int, n_rows: int) -> Iterator[CountBlock]:
        for begin, end in self.reader.spans(start, stop, n_rows):
            with reading(f"rows {begin:,} to {end:,} of {self.where}"):
                part = self.reader.rows(begin, end)
            for a in range(0, end - begin, n_rows):
                yield self._block(part.cut(a, min(a + n_rows, end - begin)), begin + a)

    def _block(self, rows: Rows, start: int) -> CountBlock:
        rows = _without_zeros(rows)
        self._check(rows, start)
        if self.recovery is None:
            return CountBlock(rows.indptr, rows.indices, _narrowest(rows.data), self.shape[1], start)
        recovered = self.recovery(rows, self.shape[1])
        if not recovered.exact.all():
            cell = self._cell(start + int(np.argmin(recovered.exact)))
            raise CountsError(
                f"{cell} of {self.where} is unlike the cells that were looked at: its values are no multiples of a count, "
                f"or too coarse ({self.recovery.precision.name}) to tell one count from the next. Leave such cells out, or "
                "pass layer= or use_raw= for the counts"
            )
        rows = recovered.rows
        totals = self.recovery.totals(recovered)
        return CountBlock(rows.indptr, rows.indices, _narrowest(rows.data), self.shape[1], start, totals)

    def _check(self, rows: Rows, start: int) -> None:
        """Raise if the values are not what the sample promised."""
        data = rows.data
        if not len(data):
            return
        least = data.min()
        wrong, expected = None, "raw counts are 0 or more"
        if not (least >= 0 and np.isfinite(data.max())):
            wrong = ~np.isfinite(data) | (data < 0)
        elif self.report.kind in ("counts", "empty") and data.dtype.kind == "f":
            fractions = data != np.rint(data)
            if fractions.any():
                wrong, expected = fractions, "the cells looked at hold whole numbers only (are some cells normalised?)"
        if wrong is not None:
            entry = int(np.argmax(wrong))
            row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
            raise CountsError(
                f"{self._cell(start + row)} of {self.where} holds {data[entry]} in column "
                f"{self.var.index[rows.indices[entry]]!r}; {expected}. Correct or leave out such cells"
            )

    def _cell(self, row: int) -> str:
        return f"cell {self.obs_names[row]!r} (row {row:,})"


def _without_zeros(rows: Rows) -> Rows:
    """The same rows; explicit zeros are left out, in new arrays."""
    stored = rows.data != 0
    if stored.all():
        return rows
    indptr = np.concatenate([[0], np.cumsum(stored)])[rows.indptr]
    return Rows(indptr.astype(np.int64), rows.indices[stored], rows.data[stored])


def _narrowest(data: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """As float32 if that is exact, else as float64."""
    if data.dtype == np.float32 and data.dtype.isnative:
        return data
    narrow = data.astype(np.float32)
    return narrow if bool(np.all(narrow == data)) else data.astype(np.float64)


def _over(shell: CountSource, matrix: Any) -> CountSource:
    """A source with the matrix that it lacked."""
    return replace(shell, reader=reader_of(matrix))
