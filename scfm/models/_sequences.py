"""From letters to one vector per sequence: windows, batches by length, pooling without special tokens or padding."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError, TokenizerError
from scfm.models._device import resolve_dtype
from scfm.models._run import Budget, to_numpy
from scfm.models._sequence_model import Located, Speller, can_be_longer, load_network, longest, settings_key, states
from scfm.models._vector_store import VectorStore

log = logging.getLogger("scfm")

PADDING_SHARE = 0.1
"""Sequences of one batch differ by at most this share of the longest."""
PROBE = 8
NUCLEOTIDES = frozenset("ACGTUN")
LEAK = {torch.float32: 1e-4}
LEAK_HALF = 5e-2
"""How far padding may move a state, relative to the largest, where a model has no leak: rounding only."""
FORMAT = 1
"""Of the cache; a new number where results change."""

Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class SequenceJob:
    """How sequences are to be read.

    Parameters
    ----------
    pooling
        ``mean`` over the tokens of the letters, ``cls``: the special token before them, ``last``: their last token.
    hidden_layer
        0: embeddings, to n; None: the final state.
    too_long
        ``windows``: read in overlapping pieces; ``truncate``: the first tokens only; ``error``.
    max_tokens
        Tokens of the longest piece, special ones included; None: what the model was made for.
    overlap
        Tokens that neighbouring windows share; None: a quarter of a window.
    """

    pooling: Pooling = "mean"
    hidden_layer: int | None = None
    too_long: Literal["windows", "truncate", "error"] = "windows"
    max_tokens: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("pooling", ("mean", "cls", "last")), ("too_long", ("windows", "truncate", "error"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")


@dataclass(frozen=True)
class SequenceVectors:
    """Vectors of n sequences.

    Parameters
    ----------
    vectors
        (n, d) float32.
    n_tokens, n_windows, n_unknown
        (n,) tokens of each sequence without special ones, pieces it was read in, tokens that the model does not know.
    n_cached
        Different sequences that were taken from the cache.
    """

    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int64]
    n_windows: NDArray[np.int64]
    n_unknown: NDArray[np.int64]
    n_cached: int


@dataclass(frozen=True)
class Window:
    """A piece of a sequence: ids ``start`` to ``stop``, of which it speaks for ``first`` to ``last``."""

    start: int
    stop: int
    first: int
    last: int


def windows(n: int, size: int, overlap: int) -> list[Window]:
    """Pieces of equal size that cover n tokens; each token belongs to the piece in which it is farther from an edge.

    Parameters
    ----------
    n
        Tokens.
    size
        Of a piece.
    overlap
        Tokens that neighbours share at least.
    """
    if n <= size:
        return [Window(0, n, 0, n)]
    count = -(-(n - overlap) // (size - overlap))
    starts = np.rint(np.linspace(0, n - size, count)).astype(int).tolist()
    borders = [0, *((a + size + b) // 2 for a, b in pairwise(starts)), n]
    return [Window(s, s + size, a, b) for s, a, b in zip(starts, borders[:-1], borders[1:], strict=True)]


@dataclass(frozen=True)
class Piece:
    """What goes through the network at once: ids with special tokens, and which of them count.

    Parameters
    ----------
    key
        Of the sequence that it is of.
    ids
        With special tokens.
    first, last
        Its tokens that count.
    ends
        Whether it holds the end of the sequence.
    """

    key: str
    ids: tuple[int, ...]
    first: int
    last: int
    ends: bool


class SequenceEncoder:
    """A sequence model that is ready to use.

    Parameters
    ----------
    found
        Its files.
    job
        How sequences are to be read.
    device, dtype
        Where and how precisely to compute.
    """

    def __init__(self, found: Located, job: SequenceJob, device: torch.device, dtype: torch.dtype) -> None:
        self.job, self.device, self.dtype = job, device, dtype
        self.model = load_network(found, device, dtype)
        self.speller = Speller.of(found, self.model.get_input_embeddings().num_embeddings)
        before, behind = self.speller.around
        self.around = before, behind
        self.limit = self._limit(found)
        if job.pooling == "cls" and not before:
            raise ConfigError(f"pooling='cls' needs a token before the sequence, but {found.name} has none; use 'mean'")
        self._safe_padding: bool | None = None

    def _limit(self, found: Located) -> int | None:
        """Letters' tokens in one piece."""
        own, asked = longest(found, self.speller), self.job.max_tokens
        if asked is not None and own is not None and asked > own and not can_be_longer(found):
            raise ConfigError(f"max_tokens={asked:,}, but {found.name} has positions for {own:,}")
        chosen = asked if asked is not None else own
        if chosen is None:
            return None
        limit = chosen - len(self.around[0]) - len(self.around[1])
        if limit < 2:
            raise ConfigError(f"max_tokens={chosen} leaves no room for letters beside the special tokens")
        return limit

    def pieces(self, key: str, ids: list[int], name: str) -> list[Piece]:
        """The pieces that a sequence is read in.

        Raises
        ------
        TokenizerError
            If it is too long, and that was to be an error.
        """
        size, job = self.limit, self.job
        if size is None or len(ids) <= size:
            cut = [Window(0, len(ids), 0, len(ids))]
        elif job.too_long == "error":
            raise TokenizerError(
                f"{name!r} has {len(ids):,} tokens, but the model reads {size:,}; pass too_long='windows' (all of it in "
                "overlapping pieces), too_long='truncate' (the beginning), or leave it out"
            )
        elif job.too_long == "truncate":
            cut = [Window(0, size, 0, size)]
        else:
            overlap = size // 4 if job.overlap is None else job.overlap
            if not 0 <= overlap < size:
                raise ConfigError(f"overlap={overlap}; it must be at least 0 and less than a window of {size:,} tokens")
            cut = windows(len(ids), size, overlap)
        before, behind = self.around
        end = cut[-1].stop
        return [
            Piece(
                key,
                (*before, *ids[w.start : w.stop], *behind),
                len(before) + w.first - w.start,
                len(before) + w.last - w.start,
                w.stop == end,
            )
            for w in cut
        ]

    def batches(self, pieces: Sequence[Piece], budget: Budget) -> Iterator[list[Piece]]:
        """Pieces of like length, the longest first; of equal length where padding would change the result."""
        todo = sorted(pieces, key=lambda p: -len(p.ids))
        if self._safe_padding is None:
            self._safe_padding = self.is_padding_safe(todo[0].ids)
        at = 0
        while at < len(todo):
            size = len(todo[at].ids)
            least = size * (1 - PADDING_SHARE) if self._safe_padding else size
            most = todo[at : at + max(1, budget.tokens // size)]
            n = next((i for i, p in enumerate(most) if len(p.ids) < least), len(most))
            yield most[:n]
            at += n

    def compute(self, batch: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Sum of the vectors that count (b, d), and how many they are (b,)."""
        with torch.inference_mode():
            ids, mask = self.padded(batch, max(len(p.ids) for p in batch))
            hidden = states(self.model, ids, mask, self.job.hidden_layer)
            sums, counts = POOLED[self.job.pooling](hidden, batch)
            return to_numpy(sums), to_numpy(counts).astype(np.float64)

    def padded(self, batch: Sequence[Piece], length: int) -> tuple[Tensor, Tensor]:
        """Ids (B, L) filled up to a length, and which of them are there."""
        ids = torch.full((len(batch), length), self.speller.pad, dtype=torch.long)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        for row, piece in enumerate(batch):
            ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
            mask[row, : len(piece.ids)] = 1
        return ids.to(self.device), mask.to(self.device)

    def is_padding_safe(self, ids: Sequence[int]) -> bool:
        """Try it: the states of a short piece, alone and filled up, must be the same."""
        if self.speller.tokenizer.pad_token_id is None:
            return False
        short = Piece("", tuple(ids[:PROBE]), 0, 0, True)
        whole = 4 * PROBE if self.limit is None else self.limit + sum(map(len, self.around))
        with torch.inference_mode():
            alone = states(self.model, *self.padded([short], len(short.ids)), None)[0].float()
            filled = states(self.model, *self.padded([short], min(4 * PROBE, whole)), None)[0].float()
        shift = float((filled[: len(short.ids)] - alone).abs().max())
        safe = shift <= LEAK.get(self.dtype, LEAK_HALF) * max(1.0, float(alone.abs().max()))
        if not safe:
            log.warning("padding changes the states of this model; only sequences of equal length are read together")
        return safe


def _mean(hidden: Tensor, batch: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    sums = torch.stack([h[p.first : p.last].float().sum(dim=0) for h, p in zip(hidden, batch, strict=True)])
    return sums, sums.new_tensor([p.last - p.first for p in batch])


def _cls(hidden: Tensor, batch: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    sums = hidden[:, 0].float()
    return sums, sums.new_ones(len(batch))


def _last(hidden: Tensor, batch: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(batch), device=hidden.device)
    at = torch.tensor([p.last - 1 for p in batch], device=hidden.device)
    sums = hidden[rows, at].float()
    ends = sums.new_tensor([float(p.ends) for p in batch])
    return sums * ends[:, None], ends


POOLED = {"mean": _mean, "cls": _cls, "last": _last}
"""What counts of the states (B, L, d) of a batch: sums (B, d) and numbers (B,), to be added up over the pieces."""


def key_of_letters(letters: str) -> str:
    """The name of a sequence in the cache: SHA-256 of its letters."""
    return hashlib.sha256(letters.encode()).hexdigest()


def embed_letters(
    letters: Mapping[str, str],
    found: Located,
    job: SequenceJob,
    *,
    cache: Path | None,
    device: torch.device,
    dtype: str | None = None,
    batch_tokens: int | Literal["auto"] = "auto",
    progress: Any = None,
) -> SequenceVectors:
    """One vector per sequence, in their order; the model is loaded only if some are not in the cache.

    Parameters
    ----------
    letters
        Of each sequence, by name.
    found
        The model.
    job
        How to read them.
    cache
        Folder of vectors computed before; None: nothing is kept.
    device, dtype
        Where and how precisely to compute; None: float32.
    batch_tokens
        Tokens per batch, with padding.
    progress
        A progress bar that counts sequences.
    """
    precision = resolve_dtype(dtype) or torch.float32
    settings = {
        **asdict(job),
        "model": found.short_name,
        "fingerprint": found.fingerprint if cache is not None else "",
        "dtype": str(precision),
        "format": FORMAT,
    }
    folder = None if cache is None else cache / f"{found.short_name}-{settings_key(settings)}"
    keys = {name: key_of_letters(text) for name, text in letters.items()}
    wanted = {key: name for name, key in reversed(keys.items())}
    with VectorStore(folder, settings) as store:
        done = store.find(set(wanted))
        n_cached = len(done)
        _tell(progress, sum(key in done for key in keys.values()))
        missing = {key: (name, letters[name]) for key, name in wanted.items() if key not in done}
        if missing:
            times = Counter(keys.values())
            encoder = SequenceEncoder(found, job, device, precision)
            for key, entry in _computed(encoder, missing, Budget(batch_tokens, device)):
                done[key] = entry
                store.put(key, **entry)
                _tell(progress, times[key])
    rows = [done[key] for key in keys.values()]
    numbers = {
        n: np.array([int(row[n]) for row in rows], dtype=np.int64) for n in ("n_tokens", "n_windows", "n_unknown")
    }
    return SequenceVectors(np.stack([row["vector"] for row in rows]).astype(np.float32), **numbers, n_cached=n_cached)


def _tell(progress: Any, n: int) -> None:
    if progress is not None and n:
        progress.update(n)


def _computed(
    encoder: SequenceEncoder, letters: Mapping[str, tuple[str, str]], budget: Budget
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sequences as they are finished."""
    pieces: list[Piece] = []
    about: dict[str, dict[str, int]] = {}
    for key, (name, text) in letters.items():
        ids = encoder.speller.ids(text)
        cut = encoder.pieces(key, ids, name)
        pieces += cut
        about[key] = {"n_tokens": len(ids), "n_windows": len(cut), "n_unknown": encoder.speller.n_unknown(ids)}
    if not encoder.speller.is_dna and all(len(t) > 50 and set(t) <= NUCLEOTIDES for _, t in letters.values()):
        log.warning("all sequences consist of A, C, G and T; does %s not read amino acids?", encoder.speller.name)
    sums: dict[str, Any] = {}
    weights: dict[str, float] = {}
    left = {key: numbers["n_windows"] for key, numbers in about.items()}
    while pieces:
        unread: list[Piece] = []
        batches = [*encoder.batches(pieces, budget)]
        for i, batch in enumerate(batches):
            try:
                vectors, counts = encoder.compute(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1 or not budget.halve():
                    raise
                unread = [piece for rest in batches[i:] for piece in rest]
                break
            for piece, vector, count in zip(batch, vectors, counts, strict=True):
                sums[piece.key] = sums.get(piece.key, 0.0) + vector.astype(np.float64)
                weights[piece.key] = weights.get(piece.key, 0.0) + float(count)
                left[piece.key] -= 1
                if not left[piece.key]:
                    mean = (sums.pop(piece.key) / weights.pop(piece.key)).astype(np.float32)
                    yield piece.key, {"vector": mean, **about[piece.key]}
        pieces = unread
