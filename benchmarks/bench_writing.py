"""How fast does scMulan write cells? Against plain torch used as the authors' scripts do: one cell, each word from the start.

Layers of the published width, fewer of them than the published 24, random weights.
"""

from __future__ import annotations

import numpy as np
import torch
from timing import Row, interleaved
from torch import Tensor
from torch.nn import functional as F

from scfm.models.families import scmulan
from scfm.models.families._scmulan_words import END, KINDS, MAKE_CELL, NAME_CELL, NAME_ORGAN
from scfm.transformer import CellTransformer, WordRule, Writer, Written, pack, write

N_LAYERS, WIDTH, N_HEADS, LEVELS = 2, 1120, 20, 10
N_GENES, N_NAMES = 2_000, 117
BATCH_CELLS, N_WORDS = 8, 50

Cell = tuple[Tensor, Tensor]
"""Words (L,) and levels (L,)."""


def make_words() -> dict[str, object]:
    """As many words as the published model has, under made-up names."""
    genes = [f"gene {i}" for i in range(N_GENES)]
    names = [f"type {i}" for i in range(N_NAMES)]
    tasks = [NAME_CELL, NAME_ORGAN, MAKE_CELL]
    rest = [f"word {i}" for i in range(2_222 - 1 - len(genes) - len(names) - len(tasks))]
    kinds = {theirs: names if theirs in ("cell_type", "MCT") else rest[:5] for theirs in KINDS.values()}
    return {"token_set": [END, *genes, *names, *rest, *tasks], "gene_set": genes, "data_block_size": 1_550, **kinds}


def make_model(words: dict[str, object]) -> CellTransformer:
    """Random weights."""
    torch.manual_seed(0)
    rows = len(words["token_set"])
    shapes = {
        scmulan.WORD_TABLE: (rows, WIDTH),
        scmulan.LEVEL_TABLE: (LEVELS + 1, WIDTH),
        **{f"transformer.h.{i}.mlp.c_fc.weight": (4 * WIDTH, WIDTH) for i in range(N_LAYERS)},
    }
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return CellTransformer(scmulan.config(state, {"n_head": N_HEADS, "bias": False}, words)).eval()


def plain(model: CellTransformer, ids: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A whole cell from the start: final states (L, d), and both outputs (V,) for its last word."""
    x = (model.terms["gene"].table[ids] + model.terms["value"].table[levels])[None]
    for block in model.encoder.layers:
        q, k, v = (y.unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for y in block.qkv(block.norm1(x)).chunk(3, dim=-1))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + block.down(F.gelu(block.up(block.norm2(x)), approximate="tanh"))
    states = model.encoder.finish(x)[0]
    return states, model.heads["word"](states[-1]), model.heads["level"](states[-1])


def append(cell: Cell, word: Tensor, levels: Tensor) -> Cell:
    """The cell with one word more."""
    level = levels[word].round().clamp(0, LEVELS).long()
    return torch.cat([cell[0], word[None]]), torch.cat([cell[1], level[None]])


def write_one_by_one(model: CellTransformer, prompt: Tensor) -> None:
    """One cell, each word from the start."""
    cell = prompt, torch.zeros_like(prompt)
    with torch.no_grad():
        for _ in range(N_WORDS):
            _states, words, levels = plain(model, *cell)
            cell = append(cell, (words.softmax(0) / torch.empty_like(words).exponential_()).argmax(), levels)


def write_together(model: CellTransformer, prompt: Tensor, rule: WordRule, n_words: int) -> tuple[Written, Tensor]:
    """Several cells with their keys kept: what was written, and what would come next (n, V)."""
    ids = prompt.repeat(BATCH_CELLS).numpy()
    batch = pack({"ids": ids, "values": np.zeros(len(ids), np.float32)}, np.arange(BATCH_CELLS + 1) * len(prompt))
    shape = BATCH_CELLS, model.config.head_specs["word"].mlp.widths[-1]
    with torch.inference_mode():
        writer = Writer(model, batch, n_words)
        written = write(writer, rule, n_words, lambda _step: torch.empty(shape).exponential_())
        return written, writer.words()


def run() -> list[Row]:
    """Rows of (name, ours, reference, ratio)."""
    words = make_words()
    model = make_model(words)
    spec = model.config.writing_spec
    size = f"{N_LAYERS} of 24 layers of the published width"
    prompt = torch.tensor([spec.words("organ")[0], spec.words("cell_type")[0], spec.start])
    rule = WordRule(end_weight=0.0)

    few, kept = write_together(model, prompt, rule, 5)
    for new, levels, logits in zip(few.words, few.levels, kept, strict=True):
        cell = torch.cat([prompt, new]), torch.cat([torch.zeros_like(prompt), levels.long()])
        with torch.inference_mode():
            torch.testing.assert_close(plain(model, *cell)[1], logits, rtol=0, atol=1e-4)
    ours, theirs, ratio = interleaved(
        lambda: write_together(model, prompt, rule, N_WORDS), lambda: write_one_by_one(model, prompt)
    )
    rates = [f"{n / seconds:.2f} cells/s" for n, seconds in ((BATCH_CELLS, ours), (1, theirs))]
    return [(f"scMulan cells of {N_WORDS} words, {size}, against one at a time", *rates, ratio * BATCH_CELLS)]


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<90} {ours:>16} {reference:>16} {ratio:8.2f}")
