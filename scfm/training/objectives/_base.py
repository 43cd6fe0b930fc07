"""What is a pretraining objective? It hides something of a cell, and counts how wrong a model's guess is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError
from scfm.genes import GeneVocabulary
from scfm.models import FoundationModel
from scfm.models._run import to_batch
from scfm.tokenizers import Tokens
from scfm.training._draws import CellDraws, stream
from scfm.training._encode import Encoder, Keep
from scfm.training.objectives._reference import Reference
from scfm.transformer import CellTransformer, HeadSpec, PackedBatch

_TOKENIZER = 1


@dataclass(frozen=True, eq=False)
class CellBatch:
    """The cells that examples are made of.

    Parameters
    ----------
    kept
        Their tokens, or counts, as an `Encoder` keeps them.
    cells, files
        (n,) their numbers in the corpus and the numbers of their files.
    draws
        Everything random.
    encoder
        That kept them.
    measured
        (files, V) genes that each file has a column for.
    channels
        Names of the arrays per cell that the model reads.
    step
        Optimizer step that the batch is for.
    """

    kept: Tokens
    cells: NDArray[np.int64]
    files: NDArray[np.int32]
    draws: CellDraws
    encoder: Encoder
    measured: NDArray[np.bool_]
    channels: frozenset[str] = frozenset()
    step: int = 0

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Of the tokenizer."""
        return self.encoder.vocabulary

    @cached_property
    def tokens(self) -> Tokens:
        """Tokens of the cells as they are."""
        return self.kept if self.encoder.keep == "tokens" else self.tokenize(self.kept)

    def tokenize(self, counts: Tokens, salt: int = 0) -> Tokens:
        """Tokens of changed counts of these cells.

        Parameters
        ----------
        counts
            As ``kept``.
        salt
            Another number gives other draws of a random tokenizer.
        """
        from scfm.training._ragged import reordered

        seed = int(stream(self.draws.seed, self.draws.epoch, _TOKENIZER, salt)) >> 1
        parts = []
        for file in np.unique(self.files):
            places = np.flatnonzero(self.files == file)
            parts.append((places, self.encoder.tokenize(counts[places], self.measured[file], seed)))
        return reordered(parts, len(counts))

    def pack(self, tokens: Tokens) -> PackedBatch:
        """Tokens as the model reads them."""
        if "bag" in tokens.parts:
            if len(np.unique(self.files)) > 1:
                raise ConfigError(
                    "a model that reads all genes of a cell as one bag needs to know which genes were measured: set "
                    "sampling.within to 'file'"
                )
            tokens = replace(tokens, measured=self.measured[self.files[0]])
        return to_batch(tokens, per_cell=self.channels)


@dataclass(frozen=True, eq=False)
class Example:
    """A packed batch with what is to be guessed.

    Parameters
    ----------
    batch
        Input of the model.
    targets
        Arrays that the loss reads, by name.
    counts
        Number of targets of each term of the loss.
    cells
        (n,) numbers of the cells in the corpus.
    reference
        Sums of the reference's loss, by term.
    """

    batch: PackedBatch
    targets: Mapping[str, Tensor]
    counts: Mapping[str, float]
    cells: NDArray[np.int64]
    reference: Mapping[str, float] = field(default_factory=dict)

    def to(self, device: torch.device) -> Example:
        """The same on another device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.targets.items()}
        return replace(self, batch=self.batch.to(device), targets=moved)


@dataclass(frozen=True)
class Objective(ABC):
    """A pretraining task; a subclass is a frozen dataclass whose fields are its settings.

    `examples` is pure numpy and runs in the workers of the loader, `losses` runs on the device. Losses are sums: whoever
    calls divides them by the number of targets of all ranks and accumulated batches, so that each target counts the same.
    """

    name: ClassVar[str]
    keep: ClassVar[Keep] = "tokens"
    """What it needs of a cell; counts where it changes cells before they are tokenized."""

    @property
    @abstractmethod
    def terms(self) -> Mapping[str, float]:
        """Names and weights of the terms of the loss."""

    @abstractmethod
    def check(self, model: FoundationModel) -> None:
        """Raise if the objective makes no sense for a model.

        Raises
        ------
        ConfigError
            With the reason.
        """

    @abstractmethod
    def examples(self, cells: CellBatch) -> Example:
        """Hide something of each cell."""

    @abstractmethod
    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum of the losses of all targets, by term."""

    @abstractmethod
    def reference(self, vocabulary_size: int) -> Reference:
        """The best guess without input, not yet fitted."""

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """Heads that a model needs and that can be added to it fresh."""
        return {}

    @property
    def told_by(self) -> Mapping[str, str]:
        """Name of the head that guesses each term; terms without a head of their own are left out."""
        return {}

    def cost(self, lengths: NDArray[np.integer[Any]], model: FoundationModel) -> NDArray[np.int64]:
        """(n,) tokens that cells of these stored lengths are counted with when batches are filled."""
        tokenizer: Any = model.tokenizer
        cost = np.asarray(lengths, dtype=np.int64)
        n_draws = getattr(tokenizer, "n_draws", None)
        if n_draws is not None and self.keep == "counts":
            cost = np.where(cost > 0, n_draws, 0)
        limit = getattr(tokenizer, "max_length", None)
        return cost if limit is None else np.minimum(cost, limit)


def need(condition: bool, message: str) -> None:
    """Raise a `ConfigError` unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def has_head(model: FoundationModel, name: str) -> bool:
    """Whether a model has a head."""
    return name in (model.config.heads or {})


def share_in_range(objective: Objective, **shares: float) -> None:
    """Raise unless shares lie above 0 and at most at 1."""
    for name, value in shares.items():
        need(0 < value <= 1, f"objective.{name} is {value}; it is a share, above 0 and at most 1")


def subset(tokens: Tokens, keep: NDArray[np.bool_]) -> Tokens:
    """The cells with only some of their tokens."""
    offsets = np.concatenate([[0], np.cumsum(keep)])[tokens.offsets].astype(np.int64)
    return replace(
        tokens,
        ids=tokens.ids[keep],
        offsets=offsets,
        values=None if tokens.values is None else tokens.values[keep],
        positions=None if tokens.positions is None else tokens.positions[keep],
        channels={name: column[keep] for name, column in tokens.channels.items()},
    )


def cell_of(tokens: Tokens) -> NDArray[np.int64]:
    """(T,) number of the cell of each token."""
    return np.repeat(np.arange(len(tokens)), tokens.lengths)


def tensors(**arrays: NDArray[Any]) -> dict[str, Tensor]:
    """Arrays as tensors."""
    return {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
