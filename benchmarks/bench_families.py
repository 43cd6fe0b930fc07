"""How fast is each family against plain torch, used the way its authors' scripts use it?

The same random weights at the published size, the same numbers out: batches as the authors make them (padded, or one cell
at a time), against packed batches. Printed beside it, because they bound what can be gained: how much of what the authors'
way computes is padding, and how much of its time goes into matrix products and attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench_embed import batches, pad
from timing import Row, interleaved
from torch import Tensor
from torch.nn import functional as F

from scfm.transformer import (
    CellTransformer,
    CellTransformerConfig,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    WritingSpec,
    make_config,
    pack,
)
from scfm.transformer._attention import favor_features

BATCH_TOKENS = 8_192
MEAN = {"mean": ReadoutSpec((PartSpec("mean"),))}
FIRST = {"first": ReadoutSpec((PartSpec("token", 0),))}
TOLERANCE = 1e-3
"""Of the largest entry: sums of thousands of float32 terms in another order."""
GELU: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Case:
    """A published system: its transformer, cells of typical lengths, and how its scripts go about them.

    Parameters
    ----------
    name, config
        What is measured.
    lengths
        Tokens of each cell.
    batch_cells
        Cells of a batch, in the order of the file.
    padded_to
        Tokens to which every cell is padded; 0: the longest of the batch.
    passes
        Forward passes per cell: each word that a model writes costs one more, where earlier work is not kept.
    """

    name: str
    config: CellTransformerConfig
    lengths: Sequence[int]
    batch_cells: int
    padded_to: int = 0
    passes: int = 1


def lengths(n: int, low: int, high: int, middle: float) -> list[int]:
    """Lengths of n cells, log-normal around the middle, within bounds."""
    draws = np.random.default_rng(0).lognormal(np.log(middle), 0.5, n)
    return [int(x) for x in draws.clip(low, high)]


def gene_table(rows: int, positions: int = 0) -> dict[str, TermSpec]:
    """A learned table of genes, and one of ranks."""
    terms = {"gene": TermSpec("table", rows=rows)}
    return {**terms, "position": TermSpec("table", "positions", rows=positions)} if positions else terms


def scmulan() -> CellTransformerConfig:
    """The words beside the genes are few; they only have to exist."""
    rows, d, levels = 2_100, 1_120, 11
    head = HeadSpec("tokens", MLPSpec((d, rows), last_bias=False))
    writing = WritingSpec("word", "level", start=rows - 2, end=rows - 1, highest=levels - 1, longest=2_000)
    return make_config(
        encoder=StackSpec(
            24,
            d,
            20,
            56,
            4 * d,
            norm="pre",
            activation="gelu_tanh",
            final_norms=1,
            attention="causal",
            bias=False,
            qkv_bias=False,
            norm_bias=False,
        ),
        terms={"gene": TermSpec("table", rows=rows), "value": TermSpec("table", "values", rows=levels)},
        heads={"word": head, "level": head},
        readouts={"official": ReadoutSpec((PartSpec("token", -3),), continued=3)},
        readout="official",
        writing=writing.to_dict(),
    )


def cases() -> list[Case]:
    """Every family but Geneformer, which has a file of its own."""
    performer = StackSpec(
        6,
        200,
        10,
        64,
        800,
        norm="pre",
        activation="gelu",
        qkv_bias=False,
        final_norms=1,
        attention="performer",
        n_features=266,
    )
    return [
        Case(
            "scGPT (12 layers, 512), batches of 64 padded to the longest",
            make_config(
                encoder=StackSpec(12, 512, 8, 64, 512), terms=gene_table(60_697), readouts=FIRST, readout="first"
            ),
            lengths(16, 200, 1_200, 900),
            64,
        ),
        Case(
            "Nicheformer (12 layers, 512), every cell padded to 1,500",
            make_config(encoder=StackSpec(12, 512, 16, 32, 1_024), terms=gene_table(20_345, 1_500), readouts=MEAN),
            lengths(8, 100, 1_500, 500),
            32,
            padded_to=1_500,
        ),
        Case(
            "UCE (4 layers, 1,280), batches of 25 padded to the longest",
            make_config(
                encoder=StackSpec(4, 1_280, 20, 64, 5_120),
                terms=gene_table(5_000, 1_536),
                readouts=FIRST,
                readout="first",
            ),
            lengths(8, 1_030, 1_300, 1_080),
            25,
        ),
        Case(
            "scBERT (6 Performer layers, 200, all 16,907 tokens), one cell at a time",
            make_config(encoder=performer, terms=gene_table(16_907), readouts=MEAN),
            [16_907],
            1,
        ),
        Case(
            "scFoundation's encoder (12 layers, 768), one cell at a time",
            make_config(
                encoder=StackSpec(12, 768, 12, 64, 3_072, final_norms=1), terms=gene_table(19_266), readouts=MEAN
            ),
            lengths(3, 500, 4_000, 1_500),
            1,
        ),
        Case(
            "scMulan (24 layers, 1,120), one cell at a time, three words written",
            scmulan(),
            lengths(2, 200, 1_000, 500),
            1,
            passes=3,
        ),
    ]


Cells = list[np.ndarray]


def packed(cells: Cells, config: CellTransformerConfig):  # type: ignore[no-untyped-def]
    """Cells end to end."""
    ids = np.concatenate(cells)
    channels = {"ids": ids}
    if "value" in config.term_specs:
        channels["values"] = np.zeros(len(ids), dtype=np.float32)
    return pack(channels, np.concatenate([[0], np.cumsum([len(c) for c in cells])]))


def ours(model: CellTransformer, cells: Cells) -> Tensor:
    """Packed batches of cells of like length; the rows come back in order."""
    sizes = np.array([len(c) for c in cells])
    out = torch.empty(len(cells), model.width)
    with torch.inference_mode():
        for group in batches(np.argsort(sizes), sizes, BATCH_TOKENS):
            out[group] = model.embed(packed([cells[i] for i in group], model.config)).float()
    return out


def plain_attention(block: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """(n, heads, L, head_dim) as torch offers it; Performer features as in the papers' formula, all heads at once."""
    spec = block.spec
    if spec.attention != "performer":
        causal = spec.attention == "causal"
        mask = None if causal or bool(real.all()) else real[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    query = favor_features(q, block.projection, per_row=True)[0] + 1e-4
    key = favor_features(k, block.projection, per_row=False)[0] + 1e-4
    norm = (query * key.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return query @ (key.transpose(-1, -2) @ v) / norm


def plain_forward(model: CellTransformer, ids: Tensor, real: Tensor) -> Tensor:
    """(n, L, width) states of padded cells, layer by layer in plain torch, padding computed like anything else."""
    n, length = ids.shape
    x = model.hidden_states(packed([row.numpy() for row in ids], model.config), [0]).layers[0].view(n, length, -1)
    for block in model.encoder.layers:
        spec = block.spec
        pre = spec.norm == "pre"
        q, k, v = block.qkv(block.norm1(x) if pre else x).view(n, length, 3, spec.n_heads, spec.head_dim).unbind(2)
        mixed = plain_attention(block, *(t.transpose(1, 2) for t in (q, k, v)), real)
        h = block.out(mixed.transpose(1, 2).flatten(2))
        x = x + h if pre else block.norm1(x + h)
        h = block.down(GELU[spec.activation](block.up(block.norm2(x) if pre else x)))
        x = x + h if pre else block.norm2(x + h)
    for norm in model.encoder.final_norms:
        x = norm(x)
    return x


def as_published(model: CellTransformer, case: Case, cells: Cells) -> Tensor:
    """The authors' way: their batches, their padding, and every pass in full."""
    out = []
    part = model.readout().parts[0]
    with torch.no_grad():
        for start in range(0, len(cells), case.batch_cells):
            group = cells[start : start + case.batch_cells]
            ids, real = pad(group)
            if case.padded_to:
                ids, real = (F.pad(t, (0, case.padded_to - ids.shape[1])) for t in (ids, real))
            if case.passes > 1:
                # the authors' last pass does not hold the last word, which our read-out counts
                out.append(written(model, ids, case.passes)[:, part.index + 1])
                continue
            states = plain_forward(model, ids, real)
            out.append(
                (states * real[..., None]).sum(1) / real.sum(1, keepdim=True) if part.kind == "mean" else states[:, 0]
            )
    return torch.cat(out)


def written(model: CellTransformer, ids: Tensor, passes: int) -> Tensor:
    """States of one cell and of the words it is continued by; each word costs a pass over everything."""
    end = model.config.writing_spec.end
    for step in range(passes):
        states = plain_forward(model, ids, torch.ones_like(ids, dtype=torch.bool))
        if step == passes - 1:
            return states
        logits = model.heads["word"](states[:, -1]).clone()
        model.heads["level"](states[:, -1])
        logits[:, ids[0, :-1]] = -torch.inf
        word = logits.argmax(1)
        ids = torch.cat([ids, word[:, None]], dim=1)
        if int(word) == end:
            raise RuntimeError("the random model ended a cell early; take another seed")
    return states


def waste(case: Case) -> float:
    """Share of the tokens of the authors' batches that is padding."""
    sizes = np.array(case.lengths)
    groups = [sizes[a : a + case.batch_cells] for a in range(0, len(sizes), case.batch_cells)]
    computed = sum(len(g) * (case.padded_to or g.max()) for g in groups)
    return float(1 - sizes.sum() / computed)


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu")


def share_of_products(model: CellTransformer, case: Case, cells: Cells) -> float:
    """Share of the time of the authors' first batch that torch spends in matrix products and attention."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        as_published(model, case, cells[: case.batch_cells])
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profile.key_averages()}
    return sum(spent.get(name, 0.0) for name in PRODUCTS) / sum(spent.values())


def run() -> list[Row]:
    """Rows of (name, ours, reference, ratio)."""
    rows: list[Row] = []
    for case in cases():
        torch.manual_seed(0)
        model = CellTransformer(case.config).eval()
        rng = np.random.default_rng(1)
        n_genes = case.config.term_specs["gene"].rows - 2
        distinct = case.config.writing is not None or len(set(case.lengths)) == 1
        cells = [
            rng.choice(n_genes, n, replace=False) if distinct and n <= n_genes else rng.integers(0, n_genes, n)
            for n in case.lengths
        ]
        exact, theirs = ours(model, cells), as_published(model, case, cells)
        torch.testing.assert_close(theirs, exact, rtol=0, atol=TOLERANCE * float(exact.abs().max()))
        mine, other, ratio = interleaved(
            lambda m=model, c=cells: ours(m, c), lambda m=model, k=case, c=cells: as_published(m, k, c)
        )  # type: ignore[misc]
        products = share_of_products(model, case, cells)
        name = f"{case.name}; {100 * waste(case):.0f} % padding, {100 * products:.0f} % products"
        rows.append((name, f"{len(cells) / mine:.2f} cells/s", f"{len(cells) / other:.2f} cells/s", ratio))
        del model
    return rows


if __name__ == "__main__":
    for name, mine, reference, ratio in run():
        print(f"{name:<90} {mine:>16} {reference:>16} {ratio:8.2f}", flush=True)
