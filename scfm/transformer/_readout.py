"""From hidden states of tokens to one vector per cell."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scfm.errors import ConfigError
from scfm.transformer._layers import Rows
from scfm.transformer._packing import Segments
from scfm.transformer._specs import PartSpec, ReadoutSpec


def read_out(hidden: Tensor, segments: Segments, spec: ReadoutSpec, values: Tensor | None = None) -> Tensor:
    """Cell vectors.

    Parameters
    ----------
    hidden
        (T, d) states.
    segments
        Which tokens belong to which cell.
    spec
        The read-out.
    values
        (T,) token values, for parts of kind ``weighted``.

    Returns
    -------
    (n, d x parts). A cell without the tokens that a part needs gets NaN.
    """
    parts = [_part(hidden, segments, part, values) for part in spec.parts]
    cells = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return F.normalize(cells, dim=-1) if spec.unit else cells


def wanted_rows(segments: Segments, spec: ReadoutSpec) -> Rows | None:
    """The only rows that a read-out of single tokens needs; None where it needs all, or a cell lacks one."""
    if any(part.kind != "token" for part in spec.parts):
        return None
    picked = np.stack([_token_rows(segments, part) for part in spec.parts], axis=1)
    low, high = segments.offsets[:-1, None], segments.offsets[1:, None]
    if np.any((picked < low) | (picked >= high)):
        return None
    each = np.arange(len(picked) + 1) * len(spec.parts)
    index = torch.as_tensor(picked.ravel()).to(segments.device)
    return Rows(index, Segments(each.astype(np.int64), segments.device))


def _token_rows(segments: Segments, part: PartSpec) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return (segments.offsets[:-1] if part.index >= 0 else segments.offsets[1:]) + part.index


def _part(hidden: Tensor, segments: Segments, part: PartSpec, values: Tensor | None) -> Tensor:
    n, width = len(segments.lengths), hidden.shape[-1]
    if part.kind == "token":
        rows = _token_rows(segments, part)
        there = (rows >= segments.offsets[:-1]) & (rows < segments.offsets[1:])
        index = torch.as_tensor(np.where(there, rows, 0)).to(hidden.device)
        out = hidden[index] if len(hidden) else hidden.new_zeros(n, width)
        return out if there.all() else out.masked_fill(~torch.as_tensor(there).to(hidden.device)[:, None], torch.nan)
    keep = _inner(segments, part)
    cell = segments.cell
    if not keep.all():
        index = torch.as_tensor(np.flatnonzero(keep)).to(hidden.device)
        hidden, cell = hidden[index], cell[index]
        values = None if values is None else values[index]
    counts = segments.select(keep).lengths
    if part.kind == "max":
        out = hidden.new_full((n, width), -torch.inf)
        out = out.scatter_reduce(0, cell[:, None].expand_as(hidden), hidden, "amax")
    else:
        if part.kind == "weighted":
            if values is None:
                raise ConfigError("a weighted read-out needs token values, and these tokens have none")
            hidden = hidden * values.nan_to_num(0.0)[:, None].to(hidden.dtype)
        # sums in float32 at least: half precision loses the mean of a long cell
        total = torch.zeros(n, width, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        total = total.index_add(0, cell, hidden.to(total.dtype))
        if part.kind == "mean":
            total = total / torch.as_tensor(counts, dtype=total.dtype).to(hidden.device)[:, None]
        out = total.to(hidden.dtype)
    empty = torch.as_tensor(counts == 0).to(hidden.device)
    return out.masked_fill(empty[:, None], torch.nan) if bool((counts == 0).any()) else out


def _inner(segments: Segments, part: PartSpec) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    lengths = segments.lengths
    rank = np.arange(segments.offsets[-1]) - np.repeat(segments.offsets[:-1], lengths)
    return (rank >= part.skip_first) & (rank < np.repeat(lengths - part.skip_last, lengths))
