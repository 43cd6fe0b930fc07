"""What is kept of a cell? Its tokens, or its counts over the vocabulary, from which tokens can be made again and again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import ConfigError
from scfm.genes import GeneMatch, GeneVocabulary, MatchReport
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers._base import _split
from scfm.tokenizers._cells import Slots, gather, keys

Keep = Literal["tokens", "counts"]
KINDS: tuple[Keep, ...] = ("tokens", "counts")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns counts into what is kept of a cell, and back.

    Parameters
    ----------
    tokenizer
        Of the model.
    keep
        ``"tokens"``: its tokens, random ones drawn once. ``"counts"``: the counts of the vocabulary genes, for objectives
        that thin a cell or hide genes before it is tokenized, and for new random tokens in each epoch.
    """

    tokenizer: Tokenizer
    keep: Keep = "tokens"

    def __post_init__(self) -> None:
        if self.keep not in KINDS:
            raise ConfigError(f"keep is {self.keep!r}; choose {' or '.join(map(repr, KINDS))}")

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Of the tokenizer."""
        return self.tokenizer.vocabulary

    def __call__(self, block: CountBlock, match: GeneMatch, context: Mapping[str, Any]) -> Tokens:
        """What is kept of the cells of a block; ``per_cell`` holds the fingerprints too."""
        slots = Slots.of(match, self.vocabulary)
        cells = gather(block, slots)
        prints = keys(cells, slots.genes[cells.slots], 0)
        if self.keep == "tokens":
            tokens = self.tokenizer.tokenize_block(block, match, context=context)
            kept = {**tokens.per_cell, "n_detected": cells.lengths.astype(np.int32), "fingerprint": prints}
            return replace(tokens, per_cell=kept, vocabulary=None, measured=None)
        if match.duplicates == "keep":
            raise ConfigError(
                "keep='counts' needs one place per gene, but the published matching rule keeps the columns of a gene apart; "
                "use gene_matching='resolve'"
            )
        if self.tokenizer.context_options and context:
            raise ConfigError("keep='counts' holds no context; a tokenizer that takes context needs keep='tokens'")
        return Tokens(
            ids=slots.genes[cells.slots],
            offsets=cells.offsets,
            values=cells.counts.astype(np.float32),
            per_cell={
                "n_detected": cells.lengths.astype(np.int32),
                "fingerprint": prints,
                "total": cells.total,
                "depth": cells.depth,
            },
        )

    def tokenize(self, counts: Tokens, measured: NDArray[np.bool_], seed: int = 0) -> Tokens:
        """Tokens of kept counts.

        Parameters
        ----------
        counts
            Of n cells of one file; ``values`` are the counts, ``per_cell`` holds ``total`` and ``depth``.
        measured
            (V,) genes that the file has a column for.
        seed
            Of what is random in the tokenizer.
        """
        n, size = len(counts), len(self.vocabulary)
        values = np.asarray(counts.values, dtype=np.float64)
        rest = np.maximum(counts.per_cell["total"] - counts.per_cell["depth"], 0.0)
        # what belongs to no gene of the vocabulary is a column of its own
        indptr = counts.offsets + np.arange(n + 1)
        last = indptr[1:] - 1
        indices = np.empty(indptr[-1], dtype=np.int32)
        data = np.empty(indptr[-1], dtype=np.float64)
        inner = np.ones(indptr[-1], dtype=bool)
        inner[last] = False
        indices[inner], data[inner] = counts.ids, values
        indices[last], data[last] = size, rest
        block = CountBlock(indptr, indices, data, size + 1, totals=np.asarray(counts.per_cell["total"], np.float64))
        columns = np.append(np.where(measured, np.arange(size), -1), -1).astype(np.int32)
        match = GeneMatch(columns, "sum", MatchReport(vocabulary_size=size))
        return replace(self.tokenizer.tokenize_block(block, match, seed=seed), vocabulary=None, measured=None)


def vocabulary_hash(vocabulary: GeneVocabulary) -> str:
    """SHA-256 of the token names, in order, and the special ones among them."""
    about = [list(vocabulary.names), dict(sorted(vocabulary.specials.items()))]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of all constants of a tokenizer, its vocabulary's names included."""
    plain, arrays = _split(tokenizer)
    digest = hashlib.sha256(json.dumps([type(tokenizer).__name__, plain], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    digest.update(vocabulary_hash(tokenizer.vocabulary).encode())
    return digest.hexdigest()
