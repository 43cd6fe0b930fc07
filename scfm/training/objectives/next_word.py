"""Which words are still to come, and how much of each? scMulan's objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scfm.models import FoundationModel
from scfm.tokenizers import Tokens
from scfm.training.objectives._base import CellBatch, Example, Objective, need, tensors
from scfm.training.objectives._outputs import on_tokens
from scfm.training.objectives._reference import Reference
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch

_ORDER = 61


@dataclass(frozen=True)
class NextWord(Objective):
    """After each word, all words that are still to come are to be told, and the level of each.

    A cell is written as the word that asks for a cell and its genes with their levels in random order; after the last of them
    comes the word that ends it, and nothing else.

    Parameters
    ----------
    start, end
        Names of the two words; None: those of the model.
    level_weight
        Of the squared error of the levels (200 in the published code).
    word, level
        Outputs with one row per word.
    shuffle
        Whether genes come in random order, new in each epoch; otherwise in the tokenizer's.
    """

    name: ClassVar[str] = "next_word"
    start: str = "<SPToken1>"
    end: str = "<E>"
    level_weight: float = 200.0
    word: str = "word"
    level: str = "level"
    shuffle: bool = True

    @property
    def terms(self) -> Mapping[str, float]:
        """Binary cross entropy summed over the words, and squared error of the levels."""
        return {"words": 1.0, "levels": self.level_weight}

    def check(self, model: FoundationModel) -> None:
        """Raise if the model sees later words, or lacks the words that begin and end a cell."""
        need(
            model.config.stack_spec.attention == "causal",
            f"next_word needs a model that sees earlier tokens only, and {model.card.name} sees all: the answer would be part "
            "of the input. Use masked_genes, masked_values or masked_levels",
        )
        for role in (self.start, self.end):
            need(role in model.vocabulary.specials, f"the vocabulary of {model.card.name} has no word {role!r}")

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """Two linear maps; each word has a bias (the published heads have none), where its frequency can stand."""
        head = HeadSpec("tokens", MLPSpec((model.transformer.state_width(-1), len(model.vocabulary))))
        return {self.word: head, self.level: head}

    @property
    def told_by(self) -> Mapping[str, str]:
        """A head each."""
        return {"words": self.word, "levels": self.level}

    def examples(self, cells: CellBatch) -> Example:
        """Write each cell as words."""
        tokens, words = cells.tokens, cells.vocabulary
        genes = words.is_gene[tokens.ids]
        order = np.lexsort(
            (cells.draws.uniform(_ORDER, tokens.offsets), np.repeat(np.arange(len(tokens)), tokens.lengths))
        )
        pieces_ids: list[NDArray[Any]] = []
        pieces_values: list[NDArray[Any]] = []
        lengths = []
        values = np.asarray(tokens.values)
        first = words.specials[self.start]
        for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            here = order[a:b] if self.shuffle else np.arange(a, b)
            here = here[genes[here]]
            pieces_ids += [np.array([first]), tokens.ids[here]]
            pieces_values += [np.zeros(1), values[here]]
            lengths.append(len(here) + 1)
        written = Tokens(
            ids=np.concatenate(pieces_ids).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            values=np.concatenate(pieces_values).astype(np.float32),
            per_cell=tokens.per_cell,
        )
        return sequences(cells, written, np.ones(len(written), dtype=np.int64), words.specials[self.end])

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both errors; one cell at a time, since each of its positions has an answer for every word."""
        states = model.state(batch, -1)
        words = states.new_zeros((), dtype=torch.float32)
        levels = states.new_zeros((), dtype=torch.float32)
        ids, values = batch.channels["ids"].long(), batch.channels["values"].float()
        bounds = batch.segments.bounds
        for i, first in enumerate(targets["first"].tolist()):
            a, b = bounds[i], bounds[i + 1]
            rows = torch.arange(a + first, b, device=states.device)
            logits = on_tokens(model, self.word, states, batch, rows).float()
            guess = on_tokens(model, self.level, states, batch, rows).float()
            later, level = answers(ids[a:b], values[a:b], first, int(targets["end"]), logits.shape[-1])
            words = words + F.binary_cross_entropy_with_logits(logits, later.float(), reduction="sum")
            levels = levels + ((guess - level).square() * later).sum()
        return {"words": words, "levels": levels}

    def reference(self, vocabulary_size: int) -> Reference:
        """How often each word is still to come, and its mean level."""
        return WordRates(vocabulary_size)


def sequences(cells: CellBatch, written: Tokens, n_given: NDArray[np.int64], end: int) -> Example:
    """The example of cells that are written out.

    Parameters
    ----------
    cells
        They are made of.
    written
        Words and levels.
    n_given
        (n,) words of each cell that are given; after the last of them the first question is asked.
    end
        Word that ends a cell.
    """
    first = n_given - 1
    asked = np.maximum(written.lengths - first, 0)
    pairs = asked * (asked - 1) // 2 + (asked > 0)
    return Example(
        cells.pack(written),
        tensors(
            first=first.astype(np.int64),
            ids=written.ids.astype(np.int64),
            levels=np.asarray(written.values),
            end=np.array(end),
        ),
        {"words": float(asked.sum()), "levels": float(pairs.sum())},
        cells.cells,
    )


def answers(ids: Tensor, values: Tensor, first: int, end: int, n_words: int) -> tuple[Tensor, Tensor]:
    """Which words come after each position, and with which level: (positions, words) bool and float32.

    Parameters
    ----------
    ids, values
        (L,) words of a cell and their levels.
    first
        Position of the first question.
    end
        Word that is alone to come after the last position, with level 0.
    n_words
        Words of the model.
    """
    position = torch.arange(first, len(ids), device=ids.device)
    last = torch.full((n_words,), -1, dtype=torch.long, device=ids.device)
    last[ids] = torch.arange(len(ids), device=ids.device)
    level = torch.zeros(n_words, device=ids.device)
    level[ids] = values
    later = last[None] > position[:, None]
    later[-1:, end] = True
    return later, level[None] * later


class WordRates(Reference):
    """How often each word is among those to come, and its mean level, wherever in a cell one asks.

    Parameters
    ----------
    n_words
        Size of the vocabulary.
    """

    def __init__(self, n_words: int) -> None:
        self.later, self.sums, self.squares, self.asked = np.zeros(n_words), np.zeros(n_words), np.zeros(n_words), 0.0

    def _counted(self, example: Example) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
        """Per cell: its words, at how many positions each is still to come, their levels, and the positions."""
        ids, levels = example.targets["ids"].cpu().numpy(), example.targets["levels"].cpu().numpy()
        bounds, end = example.batch.segments.bounds, int(example.targets["end"])
        for i, first in enumerate(example.targets["first"].tolist()):
            a, b = bounds[i], bounds[i + 1]
            times = np.maximum(np.arange(b - a) - first, 0)
            yield np.append(ids[a:b], end), np.append(times, 1), np.append(levels[a:b], 0.0), b - a - first

    def fit(self, examples: Iterable[Example]) -> Reference:
        """Count."""
        for example in examples:
            for words, times, levels, positions in self._counted(example):
                np.add.at(self.later, words, times)
                np.add.at(self.sums, words, times * levels)
                self.asked += positions
        return self

    def constants(self) -> dict[str, np.ndarray]:
        """Logits of the rates, and the means."""
        rate = self._rates()
        return {"words": np.log(rate / (1 - rate)), "levels": self._means()}

    def _rates(self) -> np.ndarray:
        return np.clip((self.later + 0.5) / (self.asked + 1), 1e-6, 1 - 1e-6)

    def _means(self) -> np.ndarray:
        return self.sums / np.maximum(self.later, 1)

    def score(self, example: Example) -> dict[str, float]:
        """Binary cross entropy over all words, and squared error of the levels."""
        rate, mean = self._rates(), self._means()
        silent = -np.log1p(-rate)
        words = levels = 0.0
        for ids, times, level, positions in self._counted(example):
            words += positions * silent.sum() + float((times * (np.log1p(-rate[ids]) - np.log(rate[ids]))).sum())
            levels += float((times * np.square(level - mean[ids])).sum())
        return {"words": words, "levels": levels}
