"""What comes next? Cells continued word by word, by models that were trained to (`WritingSpec`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scfm.transformer._packing import PackedBatch, Segments
from scfm.transformer._past import Past
from scfm.transformer._readout import read_out
from scfm.transformer._specs import ReadoutSpec

if TYPE_CHECKING:
    from scfm.transformer._model import CellTransformer


@dataclass(frozen=True, eq=False)
class WordRule:
    """Which words may come next, and how likely they are made.

    Parameters
    ----------
    allowed
        (V,) bool; None: all words.
    repeats
        Whether the last word may come once more; no other word comes twice.
    top_k
        Only the likeliest words, so many (with ties: more).
    end_weight
        Factor of the probability that the cell ends.
    """

    allowed: Tensor | None = None
    repeats: bool = False
    top_k: int | None = None
    end_weight: float = 1.0


class Writer:
    """Cells that are being written: what they hold, and what the model expects next.

    Parameters
    ----------
    model
        Has a `WritingSpec`.
    batch
        What is given of n cells, each with a token at least.
    room
        Words that each cell may get.
    hidden_layer
        Whose states are kept; see `CellTransformer.layer_number`.
    """

    def __init__(self, model: CellTransformer, batch: PackedBatch, room: int, hidden_layer: int | None = None) -> None:
        self.model = model
        self.spec = model.config.writing_spec
        self.given = batch
        self._past = Past(room)
        self._layer = model.layer_number(hidden_layer)
        self._states: list[Tensor] = []
        self._waiting: PackedBatch | None = batch
        self._final = torch.empty(0)
        n_words = model.config.head_specs[self.spec.word].mlp.widths[-1]
        ends = torch.as_tensor(batch.segments.offsets[1:] - 1).to(batch.device)
        ids = batch.channels["ids"].long()
        self._last = ids[ends]
        self._earlier = torch.zeros(batch.n_cells, n_words, dtype=torch.bool, device=batch.device)
        inner = torch.ones(batch.n_tokens, dtype=torch.bool, device=batch.device).index_fill(0, ends, False)
        self._earlier[batch.segments.cell[inner], ids[inner]] = True

    def states(self) -> list[Tensor]:
        """States of what was given (T, width), and of each word that came (n, width)."""
        self._catch_up()
        return self._states

    def words(self) -> Tensor:
        """(n, V) unnormalised log-probability of each word to come next."""
        self._catch_up()
        out: Tensor = self.model.heads[self.spec.word](self._final)
        return out.float()

    def levels(self, words: Tensor) -> Tensor:
        """(n,) level of each cell's word (n,), if it came next."""
        self._catch_up()
        out: Tensor = self.model.heads[self.spec.level](self._final)
        return out.float().gather(1, words[:, None])[:, 0].round().clamp(0, self.spec.highest)

    def banned(self, *, repeats: bool) -> Tensor:
        """(n, V) words that a cell holds already, the last one only if it may not be repeated."""
        return self._earlier if repeats else self._earlier.scatter(1, self._last[:, None], value=True)

    def append(self, words: Tensor, levels: Tensor) -> None:
        """Put a word behind each cell; what follows from it is computed when it is asked for."""
        self._catch_up()
        n, device = len(words), self.given.device
        self._earlier = self.banned(repeats=False)
        self._last = words
        before = torch.as_tensor(self.given.segments.lengths).to(device) + len(self._states) - 1
        self._waiting = replace(
            self.given,
            channels={"ids": words, "values": levels, "positions": before},
            segments=Segments(np.arange(n + 1, dtype=np.int64), device),
            per_cell={name: x for name, x in self.given.per_cell.items() if name != "prompt"},
            keys=None,
            bags={},
        )

    def _catch_up(self) -> None:
        batch, self._waiting = self._waiting, None
        if batch is None:
            return
        top = self.model.n_layers
        wanted = {top, top if self._layer is None else self._layer}
        layers = self.model.hidden_states(batch, wanted, past=self._past).layers
        final = self.model.finish(layers[top])
        self._states.append(final if self._layer is None else layers[self._layer])
        self._final = final[torch.as_tensor(batch.segments.offsets[1:] - 1).to(batch.device)]


@dataclass(frozen=True, eq=False)
class Written:
    """Words that came.

    Parameters
    ----------
    words, levels
        (n, k); what stands behind the end of a cell counts for nothing.
    n_words
        (n,) words of each cell, the one that ends it included.
    ended
        (n,) bool, whether it has ended.
    """

    words: Tensor
    levels: Tensor
    n_words: Tensor
    ended: Tensor


def write(
    writer: Writer,
    rule: WordRule,
    most: int,
    noise: Callable[[int], Tensor] | None = None,
    wanted: Tensor | None = None,
) -> Written:
    """Continue cells until each has ended, by at most a number of words.

    Parameters
    ----------
    writer
        Holds the cells.
    rule
        For every word.
    most
        Words.
    noise
        (n, V) standard exponential draws of a step, which pick a word at random; None: the likeliest.
    wanted
        (n,) bool, cells whose end is waited for; None: all.
    """
    end = writer.spec.end
    words: list[Tensor] = []
    levels: list[Tensor] = []
    ended = torch.zeros_like(writer.words()[:, 0], dtype=torch.bool)
    n_words = torch.zeros_like(ended, dtype=torch.long)
    for step in range(most):
        probabilities = weigh(writer.words(), writer.banned(repeats=rule.repeats), rule, end)
        word = pick(probabilities, end, None if noise is None else noise(step)).masked_fill(ended, end)
        words.append(word)
        levels.append(writer.levels(word))
        writer.append(word, levels[-1])
        n_words += ~ended
        ended = ended | (word == end)
        if bool((ended if wanted is None else ended[wanted]).all()):
            break
    return Written(torch.stack(words, dim=1), torch.stack(levels, dim=1), n_words, ended)


def weigh(logits: Tensor, banned: Tensor, rule: WordRule, end: int) -> Tensor:
    """Probabilities (n, V) of the words to come next; those of a row do not add up to 1 if the end is weighted."""
    hidden = banned if rule.allowed is None else banned | ~rule.allowed
    logits = logits.masked_fill(hidden, -torch.inf)
    if rule.top_k is not None:
        least = logits.topk(min(rule.top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=1)
    if rule.end_weight != 1.0:
        probabilities[:, end] *= rule.end_weight
    return probabilities


def pick(probabilities: Tensor, end: int, noise: Tensor | None = None) -> Tensor:
    """(n,) words: the likeliest, or drawn with standard exponential ``noise`` (n, V) as the largest p / q."""
    race = probabilities if noise is None else probabilities / noise
    best, word = race.max(dim=1)
    return word.masked_fill(best <= 0, end)


def embed_continued(
    model: CellTransformer, batch: PackedBatch, spec: ReadoutSpec, hidden_layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cell vectors (n, width x parts) of cells that are continued first, and the states (T, width) of what was given."""
    allowed = None
    if spec.among:
        kinds = model.config.writing_spec.words(*spec.among)
        n_words = model.config.head_specs[model.config.writing_spec.word].mlp.widths[-1]
        allowed = torch.zeros(n_words, dtype=torch.bool)
        allowed[list(kinds)] = True
        allowed = allowed.to(batch.device)
    writer = Writer(model, batch, spec.continued, hidden_layer)
    written = write(writer, WordRule(allowed, repeats=True), spec.continued)
    given, *steps = writer.states()
    hidden, segments = _joined(given, steps, batch.segments, written.n_words.cpu().numpy())
    return read_out(hidden, segments, spec), given


def _joined(
    given: Tensor, steps: list[Tensor], segments: Segments, n_words: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[Tensor, Segments]:
    """States of each cell's tokens and words on one axis, and its segments."""
    n = len(n_words)
    every = np.arange(segments.offsets[-1])
    rows = [
        np.concatenate([every[a:b], len(every) + i + n * np.arange(k)]) for i, (a, b, k) in _cells(segments, n_words)
    ]
    offsets = np.concatenate([[0], np.cumsum(segments.lengths + n_words)]).astype(np.int64)
    index = torch.as_tensor(np.concatenate(rows)).to(given.device)
    return torch.cat([given, *steps])[index], Segments(offsets, segments.device)


def _cells(segments: Segments, n_words: np.ndarray[tuple[int], np.dtype[np.int64]]) -> enumerate[tuple[int, int, int]]:
    return enumerate(zip(segments.bounds, segments.bounds[1:], n_words.tolist(), strict=False))
