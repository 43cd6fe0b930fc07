"""Who is next to whom? Vectors as they are compared, with neighbours that nobody else sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.evaluation._neighbours import nearest
from scfm.evaluation._scores import Codes, Floats

Distance = Literal["cosine", "euclidean"]
N_NEIGHBORS = 30
"""Neighbours that local metrics look at."""
EXTRA = "pip install 'scfm[robustness]'"


@dataclass(frozen=True, eq=False)
class Design:
    """What is known of each cell.

    Parameters
    ----------
    label, batch
        (n,) codes into ``labels`` and ``batches``.
    labels, batches
        Their names.
    group
        (n,) codes of the unit that was sampled (a person), where that is known.
    """

    label: Codes
    batch: Codes
    labels: tuple[str, ...]
    batches: tuple[str, ...]
    group: Codes | None = None

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Any) -> Design:
        group = None if self.group is None else self.group[rows]
        return Design(self.label[rows], self.batch[rows], self.labels, self.batches, group)

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """(labels, batches) numbers of cells."""
        out = np.zeros((len(self.labels), len(self.batches)), dtype=np.int64)
        np.add.at(out, (self.label, self.batch), 1)
        return out

    @property
    def stratum(self) -> Codes:
        """(n,) code of label x batch."""
        return self.label * len(self.batches) + self.batch

    @classmethod
    def of(cls, label: Any, batch: Any, group: Any = None) -> Design:
        """From names; every sequence has one entry per cell."""
        labels, label_codes = np.unique(np.asarray(label, dtype=str), return_inverse=True)
        batches, batch_codes = np.unique(np.asarray(batch, dtype=str), return_inverse=True)
        groups = None if group is None else np.unique(np.asarray(group, dtype=str), return_inverse=True)[1].ravel()
        return cls(label_codes.ravel(), batch_codes.ravel(), tuple(labels), tuple(batches), groups)


def prepared(x: NDArray[Any], distance: Distance = "cosine") -> NDArray[np.float32]:
    """Vectors as they are compared: of unit length for cosine, so that Euclidean distance orders alike.

    Parameters
    ----------
    x
        (n, d); NaN rows stay NaN, rows of zeros stay zeros.
    distance
        ``"cosine"`` or ``"euclidean"``.
    """
    x = np.asarray(x, dtype=np.float32)
    if distance == "euclidean":
        return x
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)).astype(np.float32)
    return x / np.maximum(lengths, np.float32(1e-12))[:, None]


@dataclass(frozen=True, eq=False)
class Space:
    """An embedding as the metrics see it.

    Parameters
    ----------
    x
        (n, d) vectors as they are compared, without NaN.
    design
        Of the same cells.
    seed
        Of clusterings and splits.
    raw
        (n, d') values before any embedding, for metrics that compare with them.
    """

    x: NDArray[np.float32]
    design: Design
    seed: int = 0
    raw: NDArray[np.float32] | None = field(default=None, repr=False)

    @cached_property
    def neighbours(self) -> tuple[NDArray[np.int64], Floats]:
        """(n, `N_NEIGHBORS`) nearest cells and distances."""
        return nearest(self.x, None, N_NEIGHBORS)

    @cached_property
    def silhouettes(self) -> Floats:
        """(n,) silhouette width of each cell among the labels."""
        return silhouettes(self.x, self.design.label)


def silhouettes(x: NDArray[np.float32], codes: Codes) -> Floats:
    """(n,) silhouette width s = (b - a) / max(a, b) of each cell (Rousseeuw 1987), by scikit-learn."""
    from sklearn.metrics import silhouette_samples

    return np.asarray(silhouette_samples(x, codes), dtype=np.float64)
