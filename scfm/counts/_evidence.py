"""What does a matrix hold, in numbers? A fixed sample of its rows, described."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scfm.counts._readers import RowReader, Rows

SAMPLE_ROWS = 512
"""Rows looked at, in a few runs spread evenly over the matrix; all rows if there are no more."""


@dataclass(frozen=True)
class Evidence:
    """Numbers about the sampled rows.

    Parameters
    ----------
    n_cells, n_columns, n_sampled
        Size of the matrix and number of rows looked at.
    n_empty
        Sampled rows without a value.
    n_values
        Values that are not zero.
    share_integers
        Of these, whole numbers.
    n_nan, n_inf, n_negative
        Of these.
    smallest, largest
        Of the finite ones; 0 if there are none.
    row_sums
        Least, median and greatest sum of a row that is not empty; of finite values only.
    decimals
        Decimal places that hold all values, if a few do (5, of float64 8); None: more.
    """

    n_cells: int
    n_columns: int
    n_sampled: int
    n_empty: int
    n_values: int
    share_integers: float
    n_nan: int
    n_inf: int
    n_negative: int
    smallest: float
    largest: float
    row_sums: tuple[float, float, float]
    decimals: int | None

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {**asdict(self), "row_sums": list(self.row_sums)}

    def __str__(self) -> str:
        looked = "all" if self.n_sampled == self.n_cells else f"{self.n_sampled:,} of {self.n_cells:,}"
        parts = [f"{looked} cells looked at"]
        if self.n_values:
            parts += [
                f"{share(self.share_integers)} whole numbers",
                f"values {self.smallest:g} to {self.largest:g}",
                f"row sums {self.row_sums[0]:,.6g} to {self.row_sums[2]:,.6g}",
            ]
        else:
            parts.append("no value other than 0")
        bad = {"NaN": self.n_nan, "infinite": self.n_inf, "negative": self.n_negative}
        parts += [f"{n:,} {name}" for name, n in bad.items() if n]
        if self.n_empty and self.n_values:
            parts.append(f"{self.n_empty:,} empty cells")
        return ", ".join(parts)


def share(part: float) -> str:
    """A share in per cent that says 100 or 0 only where it is all or none."""
    if part in (0.0, 1.0):
        return f"{part:.0%}"
    return f"{min(max(100 * part, 0.1), 99.9):.1f}%"


def sampled_rows(reader: RowReader) -> NDArray[np.int64]:
    """The rows that are looked at: the same ones every time."""
    n_cells = reader.shape[0]
    if n_cells <= SAMPLE_ROWS:
        return np.arange(n_cells)
    length = SAMPLE_ROWS // reader.sample_runs
    starts = np.linspace(0, n_cells - length, reader.sample_runs).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(length))


def canonical(rows: Rows, n_columns: int) -> Rows:
    """The same rows with repeated entries added up and zeros left out; nothing is changed in place."""
    matrix = sparse.csr_array((rows.data, rows.indices, rows.indptr), shape=(len(rows.indptr) - 1, n_columns))
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if bool((matrix.data == 0).any()):
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return Rows(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), matrix.data)


def describe(rows: Rows, reader: RowReader) -> Evidence:
    """Numbers about sampled rows."""
    data = rows.data
    finite = np.isfinite(data)
    values = data[finite].astype(np.float64)
    sums = row_sums(rows.indptr, np.where(finite, data, 0))[np.diff(rows.indptr) > 0]
    return Evidence(
        n_cells=reader.shape[0],
        n_columns=reader.shape[1],
        n_sampled=len(rows.indptr) - 1,
        n_empty=int((np.diff(rows.indptr) == 0).sum()),
        n_values=len(data),
        share_integers=float((values == np.rint(values)).mean()) if len(values) else 1.0,
        n_nan=int(np.isnan(data).sum()),
        n_inf=int(np.isinf(data).sum()),
        n_negative=int((values < 0).sum()),
        smallest=float(values.min(initial=np.inf)) if len(values) else 0.0,
        largest=float(values.max(initial=-np.inf)) if len(values) else 0.0,
        row_sums=(float(sums.min()), float(np.median(sums)), float(sums.max())) if len(sums) else (0.0, 0.0, 0.0),
        decimals=_decimals(data[finite]),
    )


def row_sums(indptr: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) float64 sum of each row."""
    lengths = np.diff(indptr)
    totals = np.zeros(len(lengths))
    filled = np.flatnonzero(lengths)
    if len(filled):
        totals[filled] = np.add.reduceat(np.asarray(values, dtype=np.float64), indptr[filled])
    return totals


def _decimals(values: NDArray[Any]) -> int | None:
    """Decimal places that reproduce every value within the precision it is stored in."""
    if not len(values):
        return 0
    exact = values.astype(np.float64)
    grain = float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    for places in range(9 if values.dtype.itemsize == 8 else 6):
        rounded = np.rint(exact * 10.0**places) / 10.0**places
        if bool(np.all(np.abs(exact - rounded) <= grain * np.abs(exact))):
            return places
    return None
