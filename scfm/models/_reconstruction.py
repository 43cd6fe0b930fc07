"""Which expression does a model predict for the genes of each cell? Heads on every gene, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.counts import CountBlock
from scfm.errors import ConfigError
from scfm.models._model import FoundationModel
from scfm.models._registry import cards
from scfm.models._run import Budget, to_numpy
from scfm.models._stream import Job, tokenize
from scfm.tokenizers import Tokens, in_background
from scfm.transformer import PackedBatch

DEPTHS = ("target_depth", "source_depth")
"""Roles of the tokens that say how deep a cell is to look, and how deep it was read."""


@dataclass(frozen=True)
class Reconstruction:
    """What one pass over the cells gave.

    Parameters
    ----------
    values
        (n, k) float32 predicted expression; NaN for cells without a gene token and for columns without a gene.
    per_cell
        (n,) arrays by name: ``n_tokens``, ``deeper`` (the cell was read more deeply than it is to look), and what the
        tokenizer counted.
    """

    values: NDArray[np.float32]
    per_cell: dict[str, NDArray[Any]]


def reconstruction_head(model: FoundationModel) -> str:
    """Name of the head that predicts one value for every gene of a cell.

    Raises
    ------
    ConfigError
        If the model has none.
    """
    for name, spec in model.config.head_specs.items():
        if spec.feed == "genes" and spec.mlp.widths[-1] == 1:
            return name
    able = [name for name, card in cards().items() if "target_depth" in card.options]
    raise ConfigError(
        f"{model.card.name} predicts no expression for every gene of a cell: it has no decoder over genes. Models that do: "
        f"{', '.join(able)}"
    )


def reconstruct_blocks(
    model: FoundationModel,
    blocks: Iterable[CountBlock],
    job: Job,
    head: str,
    columns: NDArray[np.integer[Any]],
    n_cells: int,
    progress: Any = None,
) -> Reconstruction:
    """Predict the expression of genes in the cells of consecutive blocks, in memory for one block and the result.

    Parameters
    ----------
    model
        On its device.
    blocks
        Of counts.
    job
        How cells are tokenized; ``batch_tokens``.
    head
        See `reconstruction_head`.
    columns
        (k,) vocabulary id of the gene of each column, -1 for none.
    n_cells
        Of all blocks.
    progress
        A progress bar that counts cells.
    """
    known = np.flatnonzero(columns >= 0)
    ids = torch.as_tensor(columns[known].astype(np.int64)).to(model.device)
    values = np.full((n_cells, len(columns)), np.nan, dtype=np.float32)
    counted: list[dict[str, NDArray[Any]]] = []
    budget = Budget(job.batch_tokens, model.device)
    whole = len(known) == len(columns)

    def compute(batch: PackedBatch) -> Tensor:
        return model.transformer.head(head, batch, genes=ids)[..., 0]

    def work(block: CountBlock) -> tuple[int, Tokens]:
        return block.start, tokenize(model, block, job)

    for start, tokens in in_background(work, blocks):
        kept = np.flatnonzero(tokens.per_cell["n_detected"])
        extra = model.transformer.decoder_rows
        for cells, _part, predicted in model.over_batches(tokens[kept], compute, budget, extra):
            rows = start + kept[cells]
            values[rows if whole else np.ix_(rows, known)] = to_numpy(predicted)
            if progress is not None:
                progress.update(len(cells))
        counted.append({"n_tokens": tokens.lengths, "deeper": _deeper(tokens), **tokens.per_cell})
        if progress is not None:
            progress.update(len(tokens) - len(kept))
    names = counted[0] if counted else {}
    return Reconstruction(values, {name: np.concatenate([c[name] for c in counted]) for name in names})


def _deeper(tokens: Tokens) -> NDArray[np.bool_]:
    """(n,) whether a cell was read more deeply than it is to look; False where tokens do not say."""
    specials = {} if tokens.vocabulary is None else tokens.vocabulary.specials
    if tokens.values is None or not set(DEPTHS) <= set(specials):
        return np.zeros(len(tokens), dtype=bool)
    aim, own = (tokens.values[tokens.ids == specials[role]] for role in DEPTHS)
    return own > aim
