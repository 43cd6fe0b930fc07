"""How fast is a model trained on this GPU? Packed flash attention in bfloat16 at three sizes, with its share of the peak.

    python benchmarks/bench_gpu.py [--peak 989e12] [--tokens 32768] [--length 2048]

The share (MFU) is operations per second over the peak of the device, where a token of a training step takes
6 x weights of the layers + 12 x layers x width x tokens of the cell + 0.15 x 6 x width x tokens of the vocabulary.
Before anything is timed, the attention implementations that run here are compared with each other, gradients included.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from scfm.training.objectives import MaskedGenes
from scfm.transformer import (
    ATTENTION_NAMES,
    CellTransformer,
    HeadSpec,
    MLPSpec,
    PackedBatch,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
    missing,
    pack,
)

SIZES = ((6, 256, 4), (12, 512, 8), (12, 768, 12))
ROWS = 20_275
SHARE = 0.15
STEPS = 10


def model_of(n_layers: int, width: int, n_heads: int, length: int) -> CellTransformer:
    """A random model with a tied head."""
    torch.manual_seed(0)
    head = HeadSpec("tied", MLPSpec((width, width), end=("gelu", "norm")))
    return CellTransformer(
        make_config(
            encoder=StackSpec(n_layers, width, n_heads, width // n_heads, 4 * width, norm="pre", final_norms=1),
            terms={"gene": TermSpec("table", rows=ROWS), "position": TermSpec("table", "positions", rows=length)},
            readouts={"mean": ReadoutSpec((PartSpec("mean"),))},
            heads={"mlm": head},
        )
    )


def batch_of(tokens: int, length: int, device: torch.device) -> tuple[PackedBatch, dict[str, Tensor]]:
    """Cells of random lengths up to ``length``, and what is asked of them."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(min(int(rng.integers(length // 4, length + 1)), tokens - sum(lengths)))
    ids = rng.integers(4, ROWS, tokens)
    rows = np.flatnonzero(rng.random(tokens) < SHARE)
    batch = pack({"ids": ids}, np.concatenate([[0], np.cumsum(lengths)]), device=device)
    return batch, {"rows": torch.as_tensor(rows).to(device), "labels": torch.as_tensor(ids[rows]).to(device)}


def loss_of(model: CellTransformer, batch: PackedBatch, targets: dict[str, Tensor]) -> Tensor:
    """Mean loss in bfloat16."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        return MaskedGenes().losses(model, batch, targets)["genes"] / len(targets["rows"])


def agreement(device: torch.device, names: list[str]) -> None:
    """Print how far losses and gradients of the implementations lie apart."""
    batch, targets = batch_of(4_096, 1_024, device)
    found = {}
    for name in names:
        model = model_of(2, 128, 2, 1_024).to(device)
        model.config._attn_implementation = ATTENTION_NAMES[name]
        loss = loss_of(model, batch, targets)
        loss.backward()
        found[name] = (float(loss.detach()), model.encoder.layers[0].qkv.weight.grad.float())
    first, gradient = found["sdpa"]
    print(
        "| implementation | loss | difference to sdpa | relative difference of a gradient |\n| --- | ---: | ---: | ---: |"
    )
    for name, (loss, grad) in found.items():
        apart = float((grad - gradient).norm() / gradient.norm())
        print(f"| {name} | {loss:.5f} | {abs(loss - first):.1e} | {apart:.1e} |")


def operations(model: CellTransformer, batch: PackedBatch) -> float:
    """Floating-point operations of one training step."""
    stack = model.config.stack_spec
    weights = sum(p.numel() for p in model.encoder.parameters())
    per_token = 6 * weights + SHARE * 6 * stack.width * ROWS
    attention = 12 * stack.n_layers * stack.width * float(np.square(batch.segments.lengths.astype(np.float64)).sum())
    return per_token * batch.n_tokens + attention


def measure(size: tuple[int, int, int], tokens: int, length: int, device: torch.device, peak: float, name: str) -> str:
    """One line of the table."""
    model = model_of(*size, length).to(device).train()
    model.config._attn_implementation = ATTENTION_NAMES[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    batch, targets = batch_of(tokens, length, device)

    def step() -> None:
        loss_of(model, batch, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    seconds = (time.perf_counter() - start) / STEPS
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    share = operations(model, batch) / seconds / peak
    return f"| {size[0]} x {size[1]} | {name} | {tokens / seconds:,.0f} | {share:.1%} | {memory:.1f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak", type=float, default=989e12, help="operations per second of the device in bfloat16")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a batch")
    parser.add_argument("--length", type=int, default=2_048, help="tokens of the longest cell")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu tries the script without one")
    names = [n for n, full in ATTENTION_NAMES.items() if n != "eager" and missing(full, device, torch.bfloat16) is None]
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{what}, torch {torch.__version__}, batches of {chosen.tokens:,} tokens, cells up to {chosen.length:,}\n")
    agreement(device, names)
    print("\n| layers x width | attention | tokens/s | MFU | peak memory, GB |\n| --- | --- | ---: | ---: | ---: |")
    for size in SIZES if device.type == "cuda" else SIZES[:1]:
        for name in names:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            print(measure(size, chosen.tokens, chosen.length, device, chosen.peak, name), flush=True)


if __name__ == "__main__":
    main()
