"""What makes a family: its cards, how its files are recognised, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._keys import Key, check_copies, fill
from scfm.models._model import FoundationModel
from scfm.tokenizers import Tokenizer
from scfm.transformer import CellTransformerConfig


@dataclass(frozen=True)
class Family:
    """A published system, as data.

    Parameters
    ----------
    name
        Of the family.
    cards
        Published checkpoints.
    recognise
        Whether a folder or file is in the family's official layout.
    read
        Reads it: ``read(path, checkpoint)`` with the name of the weight set within a file, or None.
    files
        Names, or patterns of names, of all files of its official layout that may be read.
    companions
        What a user must put where, when something is missing.
    """

    name: str
    cards: tuple[ModelCard, ...]
    recognise: Callable[[Path], bool]
    read: Callable[[Path, str | None], FoundationModel]
    files: tuple[str, ...]
    companions: str


@dataclass(frozen=True)
class Reading:
    """Everything that a family file finds out about a checkpoint.

    Parameters
    ----------
    config
        Of the transformer.
    state
        The checkpoint's tensors under their own names.
    keys, ignored, copies
        The family's key table: what is filled, what is not used and why, and which tensors repeat others.
    tokenizer, card, labels
        See `FoundationModel`.
    source
        What to call the checkpoint in errors.
    """

    config: CellTransformerConfig
    state: Mapping[str, Tensor]
    keys: Sequence[Key]
    ignored: Mapping[str, str]
    tokenizer: Tokenizer
    card: ModelCard
    source: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)


def assemble(reading: Reading) -> FoundationModel:
    """Build the model of a checkpoint, strictly.

    Raises
    ------
    CheckpointError
        If a tensor is unknown, missing, double, or of the wrong shape.
    """
    check_copies(reading.state, reading.copies, reading.source)
    model, dropped = fill(reading.config, reading.state, reading.keys, reading.ignored, reading.source)
    return FoundationModel(model, reading.tokenizer, reading.card, dict(reading.labels), dropped)


def pick(names: Sequence[str], checkpoint: str | None, among: Sequence[str], folder: Path) -> str:
    """The weight set that is meant.

    Parameters
    ----------
    names
        Of all weight sets in a folder.
    checkpoint
        The one that the user asked for.
    among
        Where the user asked for none: those that may be meant.
    folder
        For errors.

    Raises
    ------
    CheckpointError
        If there is no such weight set, or several may be meant.
    """
    there = f"{folder} holds the weight sets {', '.join(names) or '(none)'}"
    if checkpoint is not None and checkpoint not in names:
        raise CheckpointError(f"checkpoint={checkpoint!r} does not exist; {there}")
    if checkpoint is None and len(among) != 1:
        raise CheckpointError(f"{there}; pass one of them as checkpoint=")
    return among[0] if checkpoint is None else checkpoint
