"""A model in its authors' layout becomes one in our own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from scfm.errors import CheckpointError, ConfigError
from scfm.models._model import FoundationModel
from scfm.models._registry import load


def convert(
    source: str | Path,
    out: str | Path,
    family: str | None = None,
    revision: str | None = None,
    checkpoint: str | None = None,
) -> FoundationModel:
    """Read a model, write it in our own layout, read that again, compare, and only then let the folder appear.

    Parameters
    ----------
    source, family, revision, checkpoint
        See `scfm.models.load`.
    out
        The folder to write; it must not exist, or be empty.

    Returns
    -------
    FoundationModel
        What was written; its ``notes`` name the tensors of the source that were left out, and why.

    Raises
    ------
    ConfigError
        If there is something at ``out`` already, or no folder to put it into.
    CheckpointError
        If the source does not fit, or what was written is not what was read.
    """
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there already; name a folder that does not exist, or an empty one")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"the folder {out.absolute().parent} does not exist; make it first")
    model = load(source, family, revision, checkpoint)
    partial = out.absolute().with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        model.save_pretrained(partial)
        _compare(model, load(partial))
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{out} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model


def _compare(model: FoundationModel, again: FoundationModel) -> None:
    ours, theirs = model.transformer.state_dict(), again.transformer.state_dict()
    wrong = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if wrong or len(ours) != len(theirs) or model.tokenizer != again.tokenizer:
        what = f"tensors {', '.join(wrong[:5])}" if wrong else "its tokenizer or number of tensors"
        raise CheckpointError(
            f"what was written differs from what was read in {what}; nothing was kept. Is the disk sound?"
        )
