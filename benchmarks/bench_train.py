"""How fast is a model trained? Packed cells against BERT with a padding collator on the same cells and weights; the loader alone.

One step is forward, backward and AdamW over the same masked cells, at the size of Geneformer V1, without dropout.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from bench_embed import STACK, Cells, make_bert, make_cells, make_ours
from scipy import sparse
from timing import Row, interleaved
from torch import Tensor
from transformers import BertForMaskedLM

from scfm.models._run import plan
from scfm.tokenizers import RankValueTokenizer
from scfm.training import Corpus, TokenStore
from scfm.training._cells import LiveCells
from scfm.training._data import Batches, loader
from scfm.training._encode import Encoder
from scfm.training._sampler import BatchPlan, Sampling
from scfm.training.objectives import MaskedGenes
from scfm.transformer import CellTransformer, CellTransformerConfig, HeadSpec, MLPSpec, pack

N_CELLS = 6
BATCH_CELLS = 3
BATCH_TOKENS = 4_000
SHARE = 0.15
MASK, IGNORED = 1, -100
LOADER_CELLS, LOADER_NONZEROS = 1_000, 2_000


def masked(cells: Cells) -> tuple[Cells, list[np.ndarray]]:
    """Cells with masked tokens, and the labels."""
    rng = np.random.default_rng(1)
    asked = [rng.random(len(c)) < SHARE for c in cells]
    inputs = [np.where(a, MASK, c) for c, a in zip(cells, asked, strict=True)]
    return inputs, [np.where(a, c, IGNORED) for c, a in zip(cells, asked, strict=True)]


def with_head(bert: BertForMaskedLM) -> CellTransformer:
    """Our model with the weights and the head of a BERT."""
    body = make_ours(bert.bert)
    head = HeadSpec("tied", MLPSpec((STACK.width, STACK.width), end=("relu", "norm"), eps=STACK.eps))
    settings = {**body.config.to_dict(), "heads": {"mlm": head.to_dict()}}
    config = CellTransformerConfig.from_dict(settings)
    model = CellTransformer(config)
    transform, predictions = bert.cls.predictions.transform, bert.cls.predictions
    state = dict(body.state_dict())
    for k in ("weight", "bias"):
        state[f"heads.mlm.mlp.linears.0.{k}"] = getattr(transform.dense, k)
        state[f"heads.mlm.mlp.norms.0.{k}"] = getattr(transform.LayerNorm, k)
    state["heads.mlm.bias"] = predictions.bias
    model.load_state_dict({k: v.detach().clone() for k, v in state.items()})
    return model


def packed_step(model: CellTransformer, inputs: Cells, labels: list[np.ndarray], optimizer: object) -> float:
    """One step over all cells, in packed batches of cells of like length."""
    objective = MaskedGenes()
    n = sum(int((x != IGNORED).sum()) for x in labels)
    total = 0.0
    for group in plan(np.array([len(c) for c in inputs]), BATCH_TOKENS):
        answers = np.concatenate([labels[i] for i in group])
        rows = np.flatnonzero(answers != IGNORED)
        offsets = np.concatenate([[0], np.cumsum([len(inputs[i]) for i in group])])
        batch = pack({"ids": np.concatenate([inputs[i] for i in group])}, offsets)
        targets = {"rows": torch.as_tensor(rows), "labels": torch.as_tensor(answers[rows])}
        loss = objective.losses(model, batch, targets)["genes"] / n
        loss.backward()
        total += float(loss.detach())
    return finish(optimizer, total)


def padded_step(bert: BertForMaskedLM, inputs: Cells, labels: list[np.ndarray], optimizer: object) -> float:
    """One step over all cells as they come, in padded batches, as the collator of transformers makes them."""
    n = sum(int((x != IGNORED).sum()) for x in labels)
    total = 0.0
    for start in range(0, len(inputs), BATCH_CELLS):
        some = range(start, min(start + BATCH_CELLS, len(inputs)))
        ids, real, answers = padded([inputs[i] for i in some], [labels[i] for i in some])
        loss = bert(input_ids=ids, attention_mask=real, labels=answers).loss * int((answers != IGNORED).sum()) / n
        loss.backward()
        total += float(loss.detach())
    return finish(optimizer, total)


def padded(inputs: Cells, labels: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, what is real, and labels, (n, L) each: what `DataCollatorForLanguageModeling` gives, with given masks."""
    length = max(len(c) for c in inputs)
    ids = torch.zeros(len(inputs), length, dtype=torch.long)
    real, answers = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for i, (cell, label) in enumerate(zip(inputs, labels, strict=True)):
        ids[i, : len(cell)], real[i, : len(cell)] = torch.as_tensor(cell), 1
        answers[i, : len(cell)] = torch.as_tensor(label)
    return ids, real, answers


def finish(optimizer: object, total: float) -> float:
    """Move the weights; the loss."""
    optimizer.step()
    optimizer.zero_grad()
    return total


def training() -> Row:
    """Tokens per second of both."""
    bert = make_bert()
    for part in bert.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    model = with_head(bert)
    cells = make_cells(N_CELLS)
    inputs, labels = masked(cells)
    ours_optimizer, theirs_optimizer = (torch.optim.AdamW(m.parameters(), lr=1e-5) for m in (model, bert))
    model.train()
    bert.train()
    ours = packed_step(model, inputs, labels, ours_optimizer)
    theirs = padded_step(bert, inputs, labels, theirs_optimizer)
    if abs(ours - theirs) > 1e-4 * theirs:
        raise SystemExit(f"the losses differ: {ours} and {theirs}")
    a, b, ratio = interleaved(
        lambda: packed_step(model, inputs, labels, ours_optimizer),
        lambda: padded_step(bert, inputs, labels, theirs_optimizer),
    )
    n = sum(map(len, cells))
    return (
        f"training at the size of Geneformer V1 against `BertForMaskedLM` and padding, equal loss ({ours:.4f})",
        f"{n / a:,.0f} tokens/s",
        f"{n / b:,.0f} tokens/s",
        ratio,
    )


def made_cells(folder: Path, tokenizer: RankValueTokenizer) -> Path:
    """An h5ad file of random cells."""
    rng = np.random.default_rng(0)
    names = [tokenizer.vocabulary.names[i] for i in np.flatnonzero(tokenizer.vocabulary.is_gene)]
    columns = np.concatenate([rng.choice(len(names), LOADER_NONZEROS, replace=False) for _ in range(LOADER_CELLS)])
    counts = sparse.csr_matrix(
        (
            1 + rng.poisson(1.0, len(columns)).astype(np.float32),
            columns,
            np.arange(LOADER_CELLS + 1) * LOADER_NONZEROS,
        ),
        shape=(LOADER_CELLS, len(names)),
    )
    path = folder / "cells.h5ad"
    ad.AnnData(counts, var=pd.DataFrame(index=names)).write_h5ad(path)
    return path


def loading(speed: float) -> list[Row]:
    """Tokens per second of the loader alone, in one process, against what training eats."""
    tokenizer = RankValueTokenizer.published("geneformer-v1")
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.open(made_cells(Path(name), tokenizer))
        sources = {
            "from the h5ad": LiveCells(corpus, Encoder(tokenizer)),
            "from a token store": TokenStore.build(corpus, tokenizer, Path(name) / "store", progress=False),
        }
        rows = []
        for what, cells in sources.items():
            lengths = cells.index.length
            batches = BatchPlan(cells.index, np.arange(len(lengths)), Sampling(), lengths)
            made = Batches(cells, batches, MaskedGenes(), batches.n_batches(0), frozenset())
            seconds = timed(lambda made=made: sum(example.batch.n_tokens for example in loader(made)))
            rate = int(lengths.sum()) / seconds
            rows.append(
                (
                    f"loader alone {what}, against training",
                    f"{rate:,.0f} tokens/s",
                    f"{speed:,.0f} tokens/s",
                    rate / speed,
                )
            )
    return rows


def timed(work: Callable[[], object]) -> float:
    """Seconds of a second call."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run() -> list[Row]:
    """All lines."""
    first = training()
    return [first, *loading(float(first[1].split()[0].replace(",", "")))]
