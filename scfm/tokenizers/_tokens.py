"""What a model sees: ragged lists of tokens, one per cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.errors import TokenizerError
from scfm.genes import GeneVocabulary


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of n cells, end to end on one axis of length T.

    Parameters
    ----------
    ids
        (T,) int32 vocabulary ids.
    offsets
        (n + 1,) int64; cell i owns ``ids[offsets[i]:offsets[i + 1]]``.
    values
        (T,) float32 value of each token (a bin, a log-expression); NaN = this token has none.
    positions
        (T,) int32 position of each token where it is not its rank in the cell.
    channels
        Further named (T,) arrays that a family needs.
    per_cell
        Named (n, ...) arrays: ``n_detected`` genes before any cut, ``n_dropped`` tokens cut,
        ``total`` and ``total_matched`` counts.
    parts
        Further ragged lists over the same cells, e.g. ``"bag"``: all expressed genes with weights.
    measured
        (V,) vocabulary genes that the data set measured, where the model makes use of it: a gene without a
        column is not a gene without counts.
    vocabulary
        For previews.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32] | None = None
    positions: NDArray[np.int32] | None = None
    channels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    per_cell: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    parts: Mapping[str, Tokens] = field(default_factory=dict)
    measured: NDArray[np.bool_] | None = None
    vocabulary: GeneVocabulary | None = None

    def __post_init__(self) -> None:
        n_tokens = int(self.offsets[-1])
        for name, column in self._columns().items():
            if len(column) != n_tokens:
                raise TokenizerError(f"channel {name!r} holds {len(column)} entries for {n_tokens} tokens")
        for name, array in self.per_cell.items():
            if len(array) != len(self):
                raise TokenizerError(f"per-cell array {name!r} holds {len(array)} rows for {len(self)} cells")
        for name, part in self.parts.items():
            if len(part) != len(self):
                raise TokenizerError(f"part {name!r} holds {len(part)} cells, the tokens hold {len(self)}")

    def _columns(self) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any]] = {"ids": self.ids}
        if self.values is not None:
            columns["values"] = self.values
        if self.positions is not None:
            columns["positions"] = self.positions
        return {**columns, **self.channels}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all cells."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) number of tokens per cell."""
        return np.diff(self.offsets)

    def __getitem__(self, cells: int | slice | Sequence[int] | NDArray[Any]) -> Tokens:
        """The tokens of some cells: an index, a slice, a list of indices or a mask."""
        rows = np.arange(len(self))[cells]
        rows = np.atleast_1d(rows)
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        contiguous = len(rows) > 0 and bool(np.all(np.diff(rows) == 1))
        take: Any
        if contiguous:
            take = slice(int(self.offsets[rows[0]]), int(self.offsets[rows[-1] + 1]))
        else:
            take = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self,
            ids=self.ids[take],
            offsets=offsets,
            values=None if self.values is None else self.values[take],
            positions=None if self.positions is None else self.positions[take],
            channels={k: v[take] for k, v in self.channels.items()},
            per_cell={k: v[rows] for k, v in self.per_cell.items()},
            parts={k: v[rows] for k, v in self.parts.items()},
        )

    def __iter__(self) -> Iterator[Tokens]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        has = ["ids", *(n for n in self._columns() if n != "ids"), *self.parts]
        span = f", {self.lengths.min()}-{self.lengths.max()} per cell" if len(self) else ""
        return f"Tokens({len(self)} cells, {self.n_tokens} tokens{span}: {', '.join(has)})"

    def preview(self, n_cells: int = 3, n_tokens: int = 8) -> str:
        """The first tokens of the first cells in words, e.g. ``"0 (812): LYZ=12 S100A9=9 ..."``."""
        lines = []
        for i in range(min(n_cells, len(self))):
            cell = self[i]
            ids = cell.ids[:n_tokens]
            names = self.vocabulary.display(ids) if self.vocabulary is not None else [str(t) for t in ids]
            if cell.values is not None:
                names = [f"{n}={v:g}" for n, v in zip(names, cell.values, strict=False)]
            more = " ..." if cell.n_tokens > n_tokens else ""
            lines.append(f"{i} ({cell.n_tokens}): {' '.join(names)}{more}")
        return "\n".join(lines)


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several blocks, one after the other; all must have the same channels.

    Raises
    ------
    TokenizerError
        If there is nothing to join, or the channels differ.
    """
    if not parts:
        raise TokenizerError("there are no tokens to concatenate")
    first = parts[0]
    shapes = {(tuple(p._columns()), tuple(p.per_cell), tuple(p.parts)) for p in parts}
    if len(shapes) > 1:
        raise TokenizerError(f"tokens with different channels cannot be joined: {sorted(map(str, shapes))}")
    panels = [p.measured for p in parts if p.measured is not None]
    if any(not np.array_equal(m, panels[0]) for m in panels):
        raise TokenizerError("tokens of data sets with different measured genes cannot be joined; keep them apart")
    starts = np.cumsum([0, *(p.n_tokens for p in parts)])
    offsets = [p.offsets[:-1] + s for p, s in zip(parts, starts[:-1], strict=True)]
    return replace(
        first,
        ids=np.concatenate([p.ids for p in parts]),
        offsets=np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        values=None if first.values is None else np.concatenate([p.values for p in parts if p.values is not None]),
        positions=(
            None if first.positions is None else np.concatenate([p.positions for p in parts if p.positions is not None])
        ),
        channels={k: np.concatenate([p.channels[k] for p in parts]) for k in first.channels},
        per_cell={k: np.concatenate([p.per_cell[k] for p in parts]) for k in first.per_cell},
        parts={k: concatenate([p.parts[k] for p in parts]) for k in first.parts},
    )
