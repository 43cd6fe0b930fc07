"""Vectors of genes: rows of the input table, or means over cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.models._run import to_numpy
from scfm.tokenizers import Tokens


@dataclass(frozen=True)
class GeneVectors:
    """Vectors of genes.

    Parameters
    ----------
    ids
        (g,) vocabulary ids, ascending.
    vectors
        (g, d) float32.
    n_cells
        (g,) cells behind each vector; 0 for input vectors.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    n_cells: NDArray[np.int64]


class GeneSums:
    """Running sums of contextual gene vectors, over the cells in which a gene is a token.

    Parameters
    ----------
    n_ids
        Size of the vocabulary.
    width
        Length of a token's state.
    """

    def __init__(self, n_ids: int, width: int) -> None:
        self.shape = (n_ids, width)
        self.sums: dict[int, NDArray[np.float64]] = {}
        self.counts: dict[int, NDArray[np.int64]] = {}

    def add(self, tokens: Tokens, hidden: Tensor, groups: NDArray[np.integer[Any]] | None = None) -> None:
        """Add the states (T, d) of tokens; ``groups`` (n,) is each cell's group, -1 for none.

        A gene that occurs several times in a cell counts once, with the mean of its states.
        """
        n_ids = self.shape[0]
        codes = np.zeros(len(tokens), dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
        cells = np.repeat(np.arange(len(tokens)), tokens.lengths)
        once, of_token, times = np.unique(cells * n_ids + tokens.ids, return_inverse=True, return_counts=True)
        pairs, of_once = np.unique(codes[once // n_ids] * n_ids + once % n_ids, return_inverse=True)
        states = hidden.float()
        if len(once) < len(of_token):
            states = states / torch.as_tensor(times[of_token]).to(hidden.device)[:, None]
        index = torch.as_tensor(of_once[of_token]).to(hidden.device)
        sums = torch.zeros(len(pairs), hidden.shape[-1], device=hidden.device).index_add(0, index, states)
        counts = np.bincount(of_once, minlength=len(pairs))
        values = to_numpy(sums)
        for group in np.unique(codes[codes >= 0]).tolist():
            here = pairs // n_ids == group
            ids = pairs[here] % n_ids
            self.sums.setdefault(group, np.zeros(self.shape))[ids] += values[here]
            self.counts.setdefault(group, np.zeros(n_ids, dtype=np.int64))[ids] += counts[here]

    def merge(self, other: GeneSums) -> None:
        """Add what was collected elsewhere."""
        for group, sums in other.sums.items():
            self.sums.setdefault(group, np.zeros(self.shape))[:] += sums
            self.counts.setdefault(group, np.zeros(self.shape[0], dtype=np.int64))[:] += other.counts[group]

    def finish(self, group: int = 0) -> GeneVectors:
        """Means of the genes that occurred in a group."""
        if group not in self.sums:
            return GeneVectors(np.zeros(0, np.int64), np.zeros((0, self.shape[1]), np.float32), np.zeros(0, np.int64))
        counts = self.counts[group]
        ids = np.flatnonzero(counts)
        vectors = self.sums[group][ids] / counts[ids, None]
        return GeneVectors(ids, vectors.astype(np.float32), counts[ids])
