"""How fast are cells embedded? A model of the size of Geneformer V1 against transformers' BERT with the same weights.

Cells of 300 to 2,048 tokens, the mean of the last layer over the tokens of each cell.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from timing import Row, interleaved
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel

from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config, pack

N_CELLS = 32
LENGTHS = (300, 2_048)
BATCH_CELLS = 16
BATCH_TOKENS = 8_192
ROWS, POSITIONS = 25_426, 2_048
STACK = StackSpec(n_layers=6, width=256, n_heads=4, head_dim=64, ff=512, eps=1e-12)
MATRIX = 2_048

Cells = list[np.ndarray]


def make_cells(n: int = N_CELLS, seed: int = 0) -> Cells:
    """Token ids of n cells of random lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, ROWS, length) for length in rng.integers(LENGTHS[0], LENGTHS[1] + 1, n)]


def make_bert() -> BertForMaskedLM:
    """A random BERT of the size of Geneformer V1."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=ROWS,
        hidden_size=STACK.width,
        num_hidden_layers=STACK.n_layers,
        num_attention_heads=STACK.n_heads,
        intermediate_size=STACK.ff,
        max_position_embeddings=POSITIONS,
        hidden_act=STACK.activation,
        layer_norm_eps=STACK.eps,
    )
    return BertForMaskedLM(config).eval()


def make_ours(bert: BertModel) -> CellTransformer:
    """Our model with the weights of a BERT."""
    terms = {
        "gene": TermSpec("table", rows=ROWS),
        "position": TermSpec("table", "positions", rows=POSITIONS),
    }
    mean = ReadoutSpec((PartSpec("mean"),))
    config = make_config(encoder=STACK, terms=terms, sum_norm=True, sum_eps=STACK.eps, readouts={"mean": mean})
    model = CellTransformer(config).eval()
    tables = bert.embeddings
    state = {
        "terms.gene.table": tables.word_embeddings.weight,
        "terms.position.table": tables.position_embeddings.weight + tables.token_type_embeddings.weight[0],
        **{f"sum_norm.{k}": v for k, v in tables.LayerNorm.state_dict().items()},
    }
    for i, layer in enumerate(bert.encoder.layer):
        attention, out = layer.attention.self, layer.attention.output
        parts = {
            "out": out.dense,
            "norm1": out.LayerNorm,
            "up": layer.intermediate.dense,
            "down": layer.output.dense,
            "norm2": layer.output.LayerNorm,
        }
        for name, part in parts.items():
            state |= {f"encoder.layers.{i}.{name}.{k}": v for k, v in part.state_dict().items()}
        for k in ("weight", "bias"):
            fused = [getattr(x, k) for x in (attention.query, attention.key, attention.value)]
            state[f"encoder.layers.{i}.qkv.{k}"] = torch.cat(fused)
    model.load_state_dict(state)
    return model


def batches(order: Sequence[int], lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Neighbours in an order, at most so many tokens together."""
    group: list[int] = []
    for i in order:
        if group and lengths[[*group, i]].sum() > tokens:
            yield np.array(group)
            group = []
        group.append(i)
    yield np.array(group)


def embed(model: CellTransformer, cells: Cells) -> Tensor:
    """Packed batches of cells of like length; the rows come back in order."""
    lengths = np.array([len(c) for c in cells])
    out = torch.empty(len(cells), STACK.width)
    with torch.inference_mode():
        for group in batches(np.argsort(lengths), lengths, BATCH_TOKENS):
            ids = np.concatenate([cells[i] for i in group])
            offsets = np.concatenate([[0], np.cumsum(lengths[group])])
            out[group] = model.embed(pack({"ids": ids}, offsets)).float()
    return out


def pad(cells: Cells) -> tuple[Tensor, Tensor]:
    """Token ids (n, L) padded with zeros, and what is real."""
    lengths = torch.tensor([len(c) for c in cells])
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.zeros(real.shape, dtype=torch.long)
    ids[real] = torch.from_numpy(np.concatenate(cells))
    return ids, real


def masked_mean(hidden: Tensor, real: Tensor) -> Tensor:
    """The mean over what is real: (n, d)."""
    return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def embed_as_usual(bert: BertForMaskedLM, cells: Cells) -> Tensor:
    """The masked language model as it is commonly called: cells as they come, all hidden states, logits too."""
    out = []
    with torch.no_grad():
        for start in range(0, len(cells), BATCH_CELLS):
            ids, real = pad(cells[start : start + BATCH_CELLS])
            states = bert(input_ids=ids, attention_mask=real.long(), output_hidden_states=True).hidden_states
            out.append(masked_mean(states[-1], real))
    return torch.cat(out)


def embed_by_hand(bert: BertModel, cells: Cells) -> Tensor:
    """The best one can do by hand with padding: encoder only, sorted by length, batches by tokens."""
    lengths = np.array([len(c) for c in cells])
    out = torch.empty(len(cells), STACK.width)
    with torch.inference_mode():
        for group in batches(np.argsort(lengths), lengths, BATCH_TOKENS):
            ids, real = pad([cells[i] for i in group])
            out[group] = masked_mean(bert(input_ids=ids, attention_mask=real.long()).last_hidden_state, real)
    return out


def operations(cells: Cells) -> float:
    """Floating-point operations of the matrix products of the encoder, two per multiply-add."""
    lengths = np.array([len(c) for c in cells], dtype=np.float64)
    d, inner = STACK.width, STACK.n_heads * STACK.head_dim
    linear = 2 * lengths.sum() * (4 * d * inner + 2 * d * STACK.ff)
    attention = 4 * inner * (lengths**2).sum()
    return float(STACK.n_layers * (linear + attention))


def bare_kernels(cells: Cells) -> None:
    """Only the matrix products and the attention of one encoder, called with nothing around them."""
    lengths = np.array([len(c) for c in cells])
    d, inner, ff = STACK.width, STACK.n_heads * STACK.head_dim, STACK.ff
    weights = [torch.randn(b, a) for a, b in ((d, 3 * inner), (inner, d), (d, ff), (ff, d))]
    with torch.inference_mode():
        for group in batches(np.argsort(lengths), lengths, BATCH_TOKENS):
            tokens = int(lengths[group].sum())
            inputs = [torch.randn(tokens, w.shape[1]) for w in weights]
            q, k, v = torch.randn(3, STACK.n_heads, tokens, STACK.head_dim)
            starts = np.cumsum(lengths[group]) - lengths[group]
            for _ in range(STACK.n_layers):
                for x, w in zip(inputs, weights, strict=True):
                    x @ w.T
                for a, n in zip(starts, lengths[group], strict=True):
                    F.scaled_dot_product_attention(*(x[None, :, a : a + n] for x in (q, k, v)))


def run() -> list[Row]:
    """Rows of (name, ours, reference, ratio)."""
    cells = make_cells()
    bert = make_bert()
    encoder = BertModel(copy.copy(bert.config), add_pooling_layer=False).eval()
    encoder.load_state_dict(bert.bert.state_dict())
    model = make_ours(encoder)
    half = copy.deepcopy(model).to(torch.bfloat16)

    exact = embed(model, cells)
    torch.testing.assert_close(embed_as_usual(bert, cells), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(embed_by_hand(encoder, cells), exact, rtol=0, atol=1e-5)
    cosine = float(F.cosine_similarity(embed(half, cells), exact).min())
    left, right = torch.randn(2, MATRIX, MATRIX)
    count = operations(cells)

    def multiply() -> None:
        for _ in range(10):
            left @ right

    def rate(seconds: float) -> str:
        return f"{len(cells) / seconds:.1f} cells/s"

    ours, theirs, ratio = interleaved(lambda: embed(model, cells), lambda: embed_as_usual(bert, cells))
    rows: list[Row] = [("embedding against BertForMaskedLM as usually called", rate(ours), rate(theirs), ratio)]
    ours, theirs, ratio = interleaved(lambda: embed(model, cells), lambda: embed_by_hand(encoder, cells))
    rows.append(("embedding against BertModel sorted by length, no logits", rate(ours), rate(theirs), ratio))
    ours, theirs, ratio = interleaved(lambda: embed(half, cells), lambda: embed(model, cells))
    rows.append((f"bfloat16 against float32, least cosine {cosine:.5f}", rate(ours), rate(theirs), ratio))
    ours, theirs, ratio = interleaved(lambda: embed(model, cells), multiply)
    scale = count / (2 * MATRIX**3 * 10)
    name = f"share of the rate of a float32 product of {MATRIX:,} x {MATRIX:,}"
    rows.append(
        (name, f"{count / ours / 1e9:.0f} GFLOP/s", f"{count / scale / theirs / 1e9:.0f} GFLOP/s", ratio * scale)
    )
    ours, theirs, ratio = interleaved(lambda: embed(model, cells), lambda: bare_kernels(cells))
    rows.append(("share of the time that torch's kernels take alone", rate(ours), rate(theirs), ratio))
    return rows


if __name__ == "__main__":
    for name, ours, reference, ratio in run():
        print(f"{name:<60} {ours:>16} {reference:>16} {ratio:8.2f}")
