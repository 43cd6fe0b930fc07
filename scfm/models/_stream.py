"""From blocks of counts to vectors of cells and genes, in memory that does not grow with the cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.genes import GeneMatch
from scfm.models._gene_states import GeneStates
from scfm.models._gene_vectors import GeneSums
from scfm.models._model import FoundationModel
from scfm.models._run import Budget
from scfm.tokenizers import Tokens, in_background

BLOCK_ROWS = 1024
"""Cells that are read, tokenized and sorted by length together."""


@dataclass(frozen=True)
class Embedding:
    """What one pass over the cells gave.

    Parameters
    ----------
    cells
        (n, d) float32; NaN rows for cells without a gene token.
    per_cell
        (n,) arrays by name: ``n_tokens``, ``spread`` of the samples, and what the tokenizer counted.
    genes
        Sums of contextual gene vectors; None where they were not asked for.
    """

    cells: NDArray[np.float32]
    per_cell: Mapping[str, NDArray[Any]]
    genes: GeneSums | None = None


@dataclass(frozen=True)
class Job:
    """How cells are to be embedded; the same for every block.

    Parameters
    ----------
    match
        Vocabulary id of each column of the counts.
    context
        Tokenizer options: a value, or one value per cell of the whole matrix.
    seed
        Key of everything random in the tokenizer.
    n_samples
        How often a cell is tokenized, with the seeds from ``seed`` on; its vector is the mean.
    pooling, hidden_layer, batch_tokens
        See `FoundationModel.embed_cells`.
    genes
        Whether contextual gene vectors are collected.
    groups
        (n,) group of each cell of the whole matrix, for the gene vectors.
    """

    match: GeneMatch
    context: Mapping[str, Any]
    seed: int = 0
    n_samples: int = 1
    pooling: str | None = None
    hidden_layer: int | None = None
    batch_tokens: int | str = "auto"
    genes: bool = False
    groups: NDArray[np.integer[Any]] | None = None


def tokenize(model: FoundationModel, block: CountBlock, job: Job, sample: int = 0) -> Tokens:
    """The tokens of one block in one of the samples; ``per_cell["present"]`` are the counts of all its columns.

    They are less than ``per_cell["total"]`` where the true totals are known and genes are missing.
    """
    rows = slice(block.start, block.start + block.n_cells)
    here = {name: v[rows] if np.ndim(v) else v for name, v in job.context.items()}
    tokens = model.tokenizer.tokenize_block(block, job.match, context=here, seed=job.seed + sample)
    present = np.diff(np.concatenate([[0.0], np.cumsum(block.data, dtype=np.float64)])[block.indptr])
    return replace(tokens, per_cell={**tokens.per_cell, "present": present})


def embed_blocks(model: FoundationModel, blocks: Iterable[CountBlock], job: Job, progress: Any = None) -> Embedding:
    """Embed the cells of consecutive blocks; the next ones are tokenized while the model runs.

    Parameters
    ----------
    model
        On its device.
    blocks
        Of counts.
    job
        What is asked.
    progress
        A progress bar that counts cells.
    """
    budget = Budget(job.batch_tokens, model.device)
    genes = (
        GeneSums(model.tokenizer.n_ids, GeneStates(model.transformer, job.hidden_layer).width) if job.genes else None
    )
    vectors: list[NDArray[np.float32]] = []
    counted: list[dict[str, NDArray[Any]]] = []
    unit = model.transformer.readout(job.pooling).unit

    def work(block: CountBlock) -> tuple[int, list[Tokens]]:
        return block.start, [tokenize(model, block, job, sample) for sample in range(job.n_samples)]

    for start, (made, *others) in in_background(work, blocks):
        groups = None if job.groups is None else job.groups[start : start + len(made)]
        first = model.embed_block(made, budget, job.pooling, job.hidden_layer, genes, groups)
        rest = [model.embed_block(other, budget, job.pooling, job.hidden_layer) for other in others]
        mean, spread = average([first, *rest], unit=unit)
        vectors.append(mean)
        counted.append({"n_tokens": made.lengths.astype(np.int32), "spread": spread, **made.per_cell})
        if progress is not None:
            progress.update(len(made))
    if not vectors:
        width = model.embedding_width(job.pooling, job.hidden_layer)
        return Embedding(np.zeros((0, width), np.float32), {"n_tokens": np.zeros(0, np.int32)}, genes)
    per_cell = {name: np.concatenate([c[name] for c in counted]) for name in counted[0]}
    return Embedding(np.concatenate(vectors), per_cell, genes)


def average(samples: Sequence[NDArray[np.float32]], *, unit: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean vectors, and how far the samples lie apart.

    Parameters
    ----------
    samples
        (n, d) each.
    unit
        Whether vectors have unit length, and so the mean.

    Returns
    -------
    (n, d) means, and (n,) mean cosine distances of the samples to them: 0 where all are alike.
    """
    if len(samples) == 1:
        return samples[0], np.zeros(len(samples[0]), dtype=np.float32)
    each = np.stack(samples).astype(np.float64)
    mean = each.mean(axis=0)
    lengths = np.linalg.norm(mean, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = mean / lengths
        cosines = (each * direction).sum(axis=-1) / np.linalg.norm(each, axis=-1)
    spread = 1 - cosines.mean(axis=0)
    return (direction if unit else mean).astype(np.float32), spread.astype(np.float32)


def join(parts: Iterable[Embedding]) -> Embedding:
    """Embeddings of consecutive rows as one."""
    parts = [*parts]
    genes = parts[0].genes
    for part in parts[1:]:
        if genes is not None and part.genes is not None:
            genes.merge(part.genes)
    per_cell = {name: np.concatenate([p.per_cell[name] for p in parts]) for name in parts[0].per_cell}
    return Embedding(np.concatenate([p.cells for p in parts]), per_cell, genes)
