"""Where do the cells of a batch come from? From a store of tokens, or straight from the files; both give the same."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm.counts import CountBlock
from scfm.errors import ConfigError
from scfm.genes import GeneMatch
from scfm.tokenizers import Tokens, concatenate
from scfm.training._corpus import Corpus
from scfm.training._encode import Encoder
from scfm.training._index import CellIndex, Column
from scfm.training._ragged import reordered

_READ_ROWS = 1024


class Cells(Protocol):
    """What training reads."""

    @property
    def index(self) -> CellIndex:
        """One row per cell."""
        ...

    encoder: Encoder

    def read(self, cells: NDArray[np.int64]) -> Tokens:
        """What is kept of some cells, in the order asked."""
        ...


class LiveCells:
    """The cells of a corpus, encoded when they are needed.

    Parameters
    ----------
    corpus, encoder
        What is read, and what is kept of it.
    block_rows
        Rows that are read at once; the last blocks stay in memory.
    progress
        Whether a bar shows the first look at the corpus.

    Raises
    ------
    CountsError, GeneMatchError, TokenizerError
        If a file has no usable counts, no known gene, or lacks context; the message names it.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, *, block_rows: int = 256, progress: bool = False) -> None:
        self.corpus, self.encoder, self._block_rows = corpus, encoder, block_rows
        self._matches = [corpus.match(i, encoder.vocabulary) for i in range(len(corpus))]
        self._facts: list[Mapping[str, Any]] = [corpus.facts(i, encoder.tokenizer) for i in range(len(corpus))]
        self._blocks: OrderedDict[tuple[int, int, int], CountBlock] = OrderedDict()
        self._kept_blocks = 64
        kept, lengths = [], []
        with tqdm(total=corpus.n_cells, desc="corpus", unit="cell", disable=not progress) as bar:
            for number, file in enumerate(corpus.files):
                for start in range(0, file.n_cells, _READ_ROWS):
                    stop = min(start + _READ_ROWS, file.n_cells)
                    tokens = encode_rows(
                        corpus, number, start, stop, encoder, self._matches[number], self._facts[number]
                    )
                    kept.append(tokens.per_cell)
                    lengths.append(tokens.lengths)
                    bar.update(stop - start)
        starts = np.cumsum([0, *(file.n_cells for file in corpus.files)])
        rows = np.concatenate([np.arange(file.n_cells) for file in corpus.files])
        self.index = CellIndex(
            file=np.repeat(np.arange(len(corpus)), np.diff(starts)).astype(np.int32),
            row=rows.astype(np.int64),
            length=np.concatenate(lengths).astype(np.int32),
            n_genes=np.concatenate([k["n_detected"] for k in kept]).astype(np.int32),
            fingerprint=np.concatenate([k["fingerprint"] for k in kept]),
            columns={
                name: Column.join([getattr(file, name) for file in corpus.files])
                for name in ("donor", "dataset", "label")
            },
            measured=np.stack([m.measured for m in self._matches]),
            files=tuple(file.name for file in corpus.files),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict()}

    def read(self, cells: NDArray[np.int64]) -> Tokens:
        """What is kept of some cells, in the order asked."""
        index = self.index
        parts = []
        for number in np.unique(index.file[cells]):
            places = np.flatnonzero(index.file[cells] == number)
            rows = index.row[cells[places]]
            block = self._rows(int(number), rows)
            facts = {k: v[rows] if np.ndim(v) else v for k, v in self._facts[number].items()}
            parts.append((places, self.encoder(block, self._matches[number], facts)))
        return reordered(parts, len(cells))

    def _rows(self, number: int, rows: NDArray[np.int64]) -> CountBlock:
        """Some rows of a file, cut from blocks that are read whole."""
        pieces = []
        wanted = rows // self._block_rows
        for block in np.unique(wanted):
            places = np.flatnonzero(wanted == block)
            pieces.append((places, _pick(self._block(number, int(block)), rows[places] - block * self._block_rows)))
        return _join(pieces, len(rows))

    def _block(self, number: int, block: int) -> CountBlock:
        key = (os.getpid(), number, block)
        if key not in self._blocks:
            start = block * self._block_rows
            stop = min(start + self._block_rows, self.corpus.files[number].n_cells)
            self._blocks[key] = next(self.corpus.source(number).blocks(stop - start, slice(start, stop)))
            if len(self._blocks) > self._kept_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]


def encode_rows(
    corpus: Corpus,
    number: int,
    start: int,
    stop: int,
    encoder: Encoder,
    match: GeneMatch,
    facts: Mapping[str, Any],
) -> Tokens:
    """What is kept of consecutive rows of a file."""
    made = []
    for block in corpus.source(number).blocks(_READ_ROWS, slice(start, stop)):
        rows = slice(block.start, block.start + block.n_cells)
        here = {name: v[rows] if np.ndim(v) else v for name, v in facts.items()}
        made.append(encoder(block, match, here))
    if not made:
        raise ConfigError(f"{corpus.files[number].name} holds no rows {start:,} to {stop:,}")
    return made[0] if len(made) == 1 else concatenate(made)


def _pick(block: CountBlock, rows: NDArray[np.int64]) -> CountBlock:
    lengths = np.diff(block.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    take = np.repeat(block.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
    totals = None if block.totals is None else block.totals[rows]
    return CountBlock(indptr, block.indices[take], block.data[take], block.n_columns, totals=totals)


def _join(pieces: list[tuple[NDArray[np.int64], CountBlock]], n_rows: int) -> CountBlock:
    """Rows of several blocks in the order asked."""
    if len(pieces) == 1 and bool((np.diff(pieces[0][0]) > 0).all()):
        return pieces[0][1]
    blocks = [block for _, block in pieces]
    lengths = np.concatenate([np.diff(b.indptr) for b in blocks])
    totals = [b.totals for b in blocks if b.totals is not None]
    joined = CountBlock(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([b.indices for b in blocks]),
        np.concatenate([b.data for b in blocks]),
        blocks[0].n_columns,
        totals=np.concatenate(totals) if totals else None,
    )
    back = np.empty(n_rows, dtype=np.int64)
    back[np.concatenate([places for places, _ in pieces])] = np.arange(n_rows)
    return _pick(joined, back)
