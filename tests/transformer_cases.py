"""Random models and ragged batches for the tests of the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from scfm.transformer import (
    CellTransformer,
    PackedBatch,
    PartSpec,
    ReadoutSpec,
    Segments,
    StackSpec,
    TermSpec,
    make_config,
    pack,
)

RAGGED = (7, 3, 3, 1, 9, 5, 5, 5)
ROWS = 40

READOUTS = {
    "mean": ReadoutSpec((PartSpec("mean"),)),
    "inner": ReadoutSpec((PartSpec("mean", skip_first=1, skip_last=1),)),
    "max": ReadoutSpec((PartSpec("max"),)),
    "first": ReadoutSpec((PartSpec("token", 0),), unit=True),
    "ends": ReadoutSpec((PartSpec("token", -1), PartSpec("token", 0))),
    "four": ReadoutSpec(
        (PartSpec("token", -1), PartSpec("token", -2), PartSpec("max", skip_last=2), PartSpec("mean", skip_last=2))
    ),
    "weighted": ReadoutSpec((PartSpec("weighted"),), unit=True),
}

lengths_with_gaps = st.lists(st.sampled_from([0, 1, 1, 2, 5, 5, 9]), min_size=1, max_size=7)


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def segments_of(lengths: Sequence[int]) -> Segments:
    return Segments(offsets_of(lengths), torch.device("cpu"))


def small_stack(**settings: Any) -> StackSpec:
    sizes = {"n_layers": 3, "width": 24, "n_heads": 4, "head_dim": 6, "ff": 48}
    return StackSpec(**{**sizes, **settings})


def small_model(stack: StackSpec | None = None, terms: dict[str, TermSpec] | None = None, **settings: Any):
    """A model in evaluation mode whose every parameter is random, biases and norms too."""
    terms = {"gene": TermSpec("table", rows=ROWS)} if terms is None else terms
    config = make_config(
        encoder=stack or small_stack(), terms=terms, readouts=settings.pop("readouts", READOUTS), **settings
    )
    torch.manual_seed(0)
    model = CellTransformer(config).eval()
    shake(model)
    return model


def shake(model: nn.Module, seed: int = 0) -> None:
    """Moves every parameter off its initial value, so that nothing is tested at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.5 if p.dim() == 1 else 0.2))


def ragged_batch(lengths: Sequence[int] = RAGGED, rows: int = ROWS, seed: int = 0, **more: Any) -> PackedBatch:
    rng = np.random.default_rng(seed)
    n = int(sum(lengths))
    channels = {"ids": rng.integers(0, rows, n), "values": rng.normal(size=n).astype(np.float32)}
    return pack({**channels, **more.pop("channels", {})}, offsets_of(lengths), **more)


def cell_of(batch: PackedBatch, i: int) -> PackedBatch:
    """One cell of a batch as a batch of its own."""
    a, b = batch.segments.bounds[i : i + 2]
    return pack({k: v[a:b].numpy() for k, v in batch.channels.items()}, np.array([0, b - a]))


def padded(x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """(T, ...) as (n, L, ...) with zeros behind each cell, and the mask (n, L) of what is real."""
    mask = torch.arange(segments.max_seqlen)[None] < torch.as_tensor(segments.lengths)[:, None]
    out = x.new_zeros(*mask.shape, *x.shape[1:])
    out[mask] = x
    return out, mask


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within a tolerance relative to the largest number of the reference."""
    scale = float(theirs.detach().nan_to_num().abs().max().clamp(min=1.0)) if theirs.numel() else 1.0
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=True)
