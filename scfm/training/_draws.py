"""What is random in training? A number per cell, epoch, purpose and place, whatever batch or worker the cell is in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), element by element."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


def stream(seed: int, *words: int) -> np.uint64:
    """One number from a seed and further whole numbers."""
    key = np.array([seed % (1 << 64)], dtype=np.uint64)
    for word in words:
        key = mix((key + _GOLDEN) ^ mix(np.array([word % (1 << 64)], dtype=np.uint64) + _GOLDEN))
    return np.uint64(mix(key + _GOLDEN)[0])


@dataclass(frozen=True, eq=False)
class CellDraws:
    """Random numbers of the cells of a batch.

    Parameters
    ----------
    seed, epoch
        Of the run.
    cells
        (n,) numbers of the cells in the corpus.
    """

    seed: int
    epoch: int
    cells: NDArray[np.int64]

    def keys(self, purpose: int) -> NDArray[np.uint64]:
        """(n,) a key per cell."""
        base = stream(self.seed, self.epoch, purpose)
        return mix((self.cells.astype(np.uint64) + _GOLDEN) * _MULTIPLIERS[0] ^ base)

    def uniform(self, purpose: int, offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """(T,) numbers in [0, 1) for the entries of ragged cells.

        Parameters
        ----------
        purpose
            Different purposes are independent.
        offsets
            (n + 1,) borders of the cells.
        """
        lengths = np.diff(offsets)
        rank = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)).astype(np.uint64)
        bits = mix(np.repeat(self.keys(purpose), lengths) + (rank + np.uint64(1)) * _GOLDEN)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def per_cell(self, purpose: int) -> NDArray[np.float64]:
        """(n,) one number in [0, 1) per cell."""
        return (mix(self.keys(purpose) + _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def generator(self, purpose: int, cell: int) -> np.random.Generator:
        """A generator of the ``cell``-th cell of the batch, for what is not a list of uniform numbers."""
        return np.random.Generator(np.random.Philox(key=int(self.keys(purpose)[cell])))


def ranks_within(scores: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) place of each entry in its cell when the cell is sorted by ascending score; ties by position."""
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((scores, cell))
    out = np.empty(len(scores), dtype=np.int64)
    out[order] = np.arange(len(scores)) - np.repeat(offsets[:-1], np.diff(offsets))
    return out
