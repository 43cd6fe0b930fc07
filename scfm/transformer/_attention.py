"""Who listens to whom? Attention over packed cells, one function per implementation.

All take ``q (T_q, heads, head_dim)``, ``k, v (T_k, heads, head_dim)`` and the segments of both axes,
and return ``(T_q, heads, head_dim)``; a token sees only keys of its own cell. They stand in
transformers' attention registry under their names, so that ``attn_implementation=`` finds them.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scfm.errors import ConfigError
from scfm.transformer._packing import Segments

log = logging.getLogger("scfm")

Attention = Callable[..., Tensor]

FAVOR_EPS = 1e-4
FAVOR_ROWS = 1024
"""Tokens whose random features are made together: a megabyte, which stays in cache."""
"""What Performer attention adds to every feature of a query or key."""


def of_cells(x: Tensor, segments: Segments) -> tuple[Tensor, ...]:
    """The rows of each cell.

    By one split, whose gradient is joined once: that of a slice has the size of the whole axis, for each cell.
    """
    return x.split(segments.lengths.tolist())


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, to: Segments, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Softmax attention written out, cell by cell: the reference for the others."""
    scale = 1 / math.sqrt(q.shape[-1])
    pieces = []
    for cell in zip(of_cells(q, at), of_cells(k, to), of_cells(v, to), strict=True):
        qi, ki, vi = (x.transpose(0, 1) for x in cell)
        scores = (qi @ ki.transpose(1, 2)) * scale
        if causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        weights = F.dropout(scores.float().softmax(-1).to(q.dtype), dropout, training=dropout > 0)
        pieces.append((weights @ vi).transpose(0, 1))
    return torch.cat(pieces) if pieces else torch.zeros_like(q)


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, to: Segments, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """The fused kernel of torch, one call per run of equally long neighbouring cells.

    A loop over cells is twice as fast as a padded batch on ragged CPU data, and cells of one length
    share a call without a copy, since the runner sorts by length.
    """
    alike = at is to or at.bounds == to.bounds
    runs = [(n, length) for _, n, length in at.runs] if alike else [(1, length) for length in at.lengths.tolist()]
    sizes = [n * length for n, length in runs]
    ours, theirs = q.split(sizes), [x.split(sizes) if alike else of_cells(x, to) for x in (k, v)]
    pieces = []
    for (n, length), qi, ki, vi in zip(runs, ours, *theirs, strict=True):
        if length == 0:
            continue
        query, key, value = (x.unflatten(0, (n, len(x) // n)).transpose(1, 2) for x in (qi, ki, vi))
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces) if pieces else torch.zeros_like(q)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, to: Segments, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """The flash attention of torch itself, over packed cells (GPU, half precision)."""
    if dropout:
        raise ConfigError("torch's varlen attention has no dropout; use attn_implementation='sdpa' to train with it")
    from torch.nn.attention.varlen import varlen_attn

    window: dict[str, Any] = {"window_size": (-1, 0 if causal else -1)}
    if "window_size" not in inspect.signature(varlen_attn).parameters:
        window = {"is_causal": causal}
    out = varlen_attn(q, k, v, at.cu_seqlens, to.cu_seqlens, at.max_seqlen, to.max_seqlen, **window)
    return out[0] if isinstance(out, tuple) else out


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Segments,
    to: Segments,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    package: str = "flash_attn",
) -> Tensor:
    """The flash-attn package (2) or its third generation over packed cells (GPU, half precision)."""
    module = importlib.import_module("flash_attn" if package == "flash_attn" else "flash_attn_interface")
    options: dict[str, Any] = {"causal": causal}
    if package == "flash_attn":
        options["dropout_p"] = dropout
    elif dropout:
        raise ConfigError("flash attention 3 has no dropout; use attn_implementation='sdpa' to train with it")
    out = module.flash_attn_varlen_func(q, k, v, at.cu_seqlens, to.cu_seqlens, at.max_seqlen, to.max_seqlen, **options)
    return out[0] if isinstance(out, tuple) else out


def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, to: Segments, projection: Tensor, peaks: Tensor | None = None
) -> Tensor:
    """FAVOR+ attention (Choromanski et al. 2021, arXiv:2009.14794), linear in the length of a cell.

    The features of a key are stabilised by the maximum over the heads, tokens and features of its
    own cell, those of a query by the maximum over its features; 1e-4 is added to both. The features are
    exponentials and sums over thousands of keys, so they are made in float32 at least.

    Parameters
    ----------
    projection
        (features, head_dim) random rows, shared by the heads.
    peaks
        (n,) key maximum of each cell; None: its own. Another one gives another result, because what is added to the
        features is not scaled.
    """
    projection = projection.to(torch.promote_types(q.dtype, torch.float32))
    pieces = []
    for i, cell in enumerate(zip(of_cells(q, at), of_cells(k, to), of_cells(v, to), strict=True)):
        qi, ki, vi = (x.transpose(0, 1).to(projection.dtype) for x in cell)
        if qi.shape[1]:
            values, norms = _favor_sums(ki, vi, projection, None if peaks is None else peaks[i])
            pieces.append(_favor_means(qi, values, norms, projection))
    return torch.cat(pieces).to(q.dtype) if pieces else torch.zeros_like(q)


def favor_features(x: Tensor, projection: Tensor, *, per_row: bool) -> tuple[Tensor, Tensor]:
    """Random features of one head's queries or keys (L, head_dim), relative to their maximum and without the 1e-4.

    The common factor features^-1/2 is left out: it cancels in attention.

    Parameters
    ----------
    per_row
        The maximum is each row's own, as for queries, or that of all rows.

    Returns
    -------
    (L, features), and the maximum of the projections: (L, 1) or ().
    """
    x = x * x.shape[-1] ** -0.25
    projected = x @ projection.T
    peak = projected.amax(-1, keepdim=True) if per_row else projected.amax()
    return (projected - (x.square().sum(-1, keepdim=True) / 2 + peak)).exp_(), peak


def _favor_sums(k: Tensor, v: Tensor, projection: Tensor, peak: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over the keys of a cell: of features times values (heads, features, d), and of features (heads, features).

    The keys' maximum is known after the last of them only, so each piece of a head is summed with its own and scaled then:
    a piece of features stays in the processor's cache, and none are made twice.
    """
    heads, peaks = [], []
    for key, value in zip(k, _with_ones(v), strict=True):
        pieces = [
            (own, features.T @ part)
            for rows, part in zip(key.split(FAVOR_ROWS), value.split(FAVOR_ROWS), strict=True)
            for features, own in (favor_features(rows, projection, per_row=False),)
        ]
        own = torch.stack([p for p, _ in pieces])
        peaks.append(own.amax())
        heads.append(sum(total * (p - peaks[-1]).exp() for p, total in pieces))
    own = torch.stack(peaks)
    scale = (own - (own.amax() if peak is None else peak)).exp()[:, None, None]
    sums = torch.stack(heads) * scale  # type: ignore[arg-type]
    return sums[..., :-1] + FAVOR_EPS * v.sum(1, keepdim=True), sums[..., -1] + FAVOR_EPS * k.shape[1]


def _favor_means(q: Tensor, values: Tensor, norms: Tensor, projection: Tensor) -> Tensor:
    """What the queries (heads, L, d) of a cell get: (L, heads, d)."""
    out = []
    for query, value, norm in zip(q, values, norms, strict=True):
        sums = torch.cat([value, norm[:, None]], dim=1)
        added = FAVOR_EPS * sums.sum(0)
        pieces = []
        for rows in query.split(FAVOR_ROWS):
            total = torch.addmm(added, favor_features(rows, projection, per_row=True)[0], sums)
            pieces.append(total[:, :-1] / total[:, -1:])
        out.append(torch.cat(pieces))
    return torch.stack(out, dim=1)


def _with_ones(x: Tensor) -> Tensor:
    """(..., d) with a column of ones behind, so that one product gives weighted sums and the sum of the weights."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


def query_only_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, to: Segments, own: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Attention of tokens that nobody sees: to the keys of their cell and, with ``own``, to themselves.

    Parameters
    ----------
    own
        Keys and values (T_q, heads, head_dim) of the query tokens themselves; None: they do not see themselves.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    pieces = []
    themselves = (
        ((None, None) for _ in at.lengths) if own is None else zip(*(of_cells(x, at) for x in own), strict=True)
    )
    cells = zip(of_cells(q, at), of_cells(k, to), of_cells(v, to), themselves, strict=True)
    for qi, ki, vi, (own_key, own_value) in cells:
        scores = torch.einsum("qhd,khd->hqk", qi, ki) * scale
        if own_key is not None:
            scores = torch.cat([scores, (qi * own_key).sum(-1).T[:, :, None] * scale], dim=-1)
        weights = scores.float().softmax(-1).to(q.dtype)
        out = torch.einsum("hqk,khd->qhd", weights[..., : len(ki)], vi)
        if own_value is not None:
            out = out + weights[..., len(ki)].T[..., None] * own_value
        pieces.append(out)
    return torch.cat(pieces) if pieces else torch.zeros_like(q)


IMPLEMENTATIONS: dict[str, Attention] = {
    "packed_eager": eager_attention,
    "packed_sdpa": sdpa_attention,
    "packed_varlen": varlen_attention,
    "packed_flash_2": functools.partial(flash_attention, package="flash_attn"),
    "packed_flash_3": functools.partial(flash_attention, package="flash_attn_interface"),
}
"""Softmax attention over packed cells, by the name it has in transformers' registry."""

ALIASES = {
    "eager": "packed_eager",
    "sdpa": "packed_sdpa",
    "varlen": "packed_varlen",
    "flash_attention_2": "packed_flash_2",
    "flash_attention_3": "packed_flash_3",
}
"""What users call them."""


def _registered(function: Attention) -> Callable[..., tuple[Tensor, None]]:
    """An implementation in the shape that transformers' registry asks for: (1, heads, T, head_dim) in."""

    def call(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        segments: Segments,
        key_segments: Segments | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        out = function(q, k, v, segments, key_segments or segments, causal=is_causal, dropout=dropout)
        return out.unsqueeze(0), None

    return call


for _name, _function in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _registered(_function))


def softmax_attention(
    name: str,
    module: torch.nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Segments,
    to: Segments,
    *,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The registered implementation ``name`` on packed tokens; shapes as in this module."""
    function = ALL_ATTENTION_FUNCTIONS[name]
    out, _ = function(
        module,
        *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)),
        None,
        segments=at,
        key_segments=to,
        dropout=dropout,
        is_causal=causal,
    )
    return out[0]


def missing(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation cannot run here; None where it can."""
    gpu_only = name in ("packed_varlen", "packed_flash_2", "packed_flash_3")
    if gpu_only and device.type != "cuda":
        return "it needs a CUDA device"
    if gpu_only and dtype not in (torch.float16, torch.bfloat16):
        return f"it needs half precision, not {dtype}"
    package = {
        "packed_flash_2": "flash_attn",
        "packed_flash_3": "flash_attn_interface",
        "packed_varlen": "torch.nn.attention.varlen",
    }.get(name)
    if package is not None:
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return f"the module {package} is not installed"
    return None


def choose(wanted: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation to use: the wanted one, or the fastest that runs here.

    What cannot run falls back to ``sdpa``, which one log line says.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if wanted is None:
        order = ("packed_flash_3", "packed_flash_2", "packed_varlen") if device.type == "cuda" else ()
        return next((name for name in order if missing(name, device, dtype) is None), "packed_sdpa")
    name = ALIASES.get(wanted, wanted)
    if name not in IMPLEMENTATIONS:
        raise ConfigError(f"unknown attn_implementation {wanted!r}; there are {', '.join(ALIASES)}")
    why = missing(name, device, dtype)
    if why is not None:
        log.warning("attn_implementation=%r is not available here (%s); using 'sdpa'", wanted, why)
        return "packed_sdpa"
    return name
