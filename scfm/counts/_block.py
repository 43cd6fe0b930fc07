"""A few rows of counts as plain arrays: what tokenizers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CountBlock:
    """Consecutive cells in CSR form.

    Parameters
    ----------
    indptr
        (n + 1,) int64, starts at 0.
    indices
        (nnz,) int32 column of each stored entry; any order, repeats are added up.
    data
        (nnz,) float32 or float64 counts (or the values the source was said to hold).
    n_columns
        Number of columns of the matrix.
    start
        Row number of the first cell in the whole matrix.
    totals
        (n,) float64 true total counts per cell, where the stored entries do not add up to them
        (log-normalised data of a gene subset); None: the sum of the row.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.floating[Any]]
    n_columns: int
    start: int = 0
    totals: NDArray[np.float64] | None = None

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1
