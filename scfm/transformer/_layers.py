"""The bricks: MLP, input terms, transformer blocks. Thin holders of parameters around free functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scfm.errors import ConfigError
from scfm.transformer._attention import performer_attention, query_only_attention, softmax_attention
from scfm.transformer._packing import PackedBatch, Segments
from scfm.transformer._past import Past
from scfm.transformer._specs import MLPSpec, StackSpec, TermSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class MLP(nn.Module):
    """Linear maps with steps between and after them, as an `MLPSpec` lists them.

    Shapes: ``(..., widths[0]) -> (..., widths[-1])``.
    """

    def __init__(self, spec: MLPSpec) -> None:
        super().__init__()
        n = len(spec.widths) - 1
        self.spec = spec
        self.linears = nn.ModuleList(
            nn.Linear(a, b, bias=spec.last_bias if i == n - 1 else spec.bias)
            for i, (a, b) in enumerate(zip(spec.widths[:-1], spec.widths[1:], strict=True))
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(spec.widths[i + 1], eps=spec.eps)
            for i in range(n)
            for step in (spec.end if i == n - 1 else spec.between)
            if step == "norm"
        )

    def forward(self, x: Tensor) -> Tensor:
        norms = iter(self.norms)
        for i, linear in enumerate(self.linears):
            x = linear(x)
            for step in self.spec.end if i == len(self.linears) - 1 else self.spec.between:
                if step == "norm":
                    x = next(norms)(x)
                elif step == "dropout":
                    x = F.dropout(x, self.spec.dropout, self.training)
                elif step == "leaky_relu":
                    x = F.leaky_relu(x, self.spec.slope)
                else:
                    x = ACTIVATIONS[step](x)
        return x


class SoftBins(nn.Module):
    """A number spread softly over learned bins (scFoundation): ``(T,) -> (T, width)``; NaN takes the mask row."""

    def __init__(self, n_bins: int, width: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.first = nn.Linear(1, n_bins)
        self.second = nn.Linear(n_bins, n_bins)
        self.table = nn.Embedding(n_bins, width)
        self.mask = nn.Embedding(1, width)

    def weights(self, values: Tensor) -> Tensor:
        """(T, bins) share of each bin."""
        hidden = F.leaky_relu(self.first(values[:, None].to(self.first.weight.dtype)), 0.1)
        mixed: Tensor = self.alpha * hidden + self.second(hidden)
        return mixed.softmax(-1)

    def forward(self, values: Tensor) -> Tensor:
        masked = values.isnan()
        out = self.weights(values.masked_fill(masked, 0.0)) @ self.table.weight
        return torch.where(masked[:, None], self.mask.weight, out)


class Term(nn.Module):
    """One summand of the input: a table row, a number through an MLP, or soft bins; then unit length, MLP, norm, scale."""

    table: Tensor
    center: Tensor

    def __init__(self, spec: TermSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        row_width = spec.width or width
        if spec.source in ("table", "bag"):
            if spec.frozen:
                self.register_buffer("table", torch.zeros(spec.rows, row_width))
            else:
                self.table = nn.Parameter(torch.zeros(spec.rows, row_width))
        if spec.source == "bag":
            self.register_buffer("center", torch.zeros(spec.rows))
        if spec.source == "bins":
            self.bins = SoftBins(spec.rows, row_width, spec.alpha)
        self.mlp = None if spec.mlp is None else MLP(spec.mlp)
        out_width = row_width if spec.mlp is None else spec.mlp.widths[-1]
        self.norm = nn.LayerNorm(out_width, eps=spec.eps) if spec.norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(T,) ids or numbers -> (T, width)."""
        spec = self.spec
        absent = None
        if spec.optional:
            absent = x.isnan() if x.is_floating_point() else x < 0
            x = x.masked_fill(absent, 0)
        if spec.source == "table":
            x = x.long()
        if spec.source == "table" and self.mlp is not None:
            # the map depends on the row alone: once per row in use instead of once per token
            rows, back = torch.unique(x, return_inverse=True)
            out = self.rows(rows)[back]
        elif spec.source == "table":
            out = self.rows(x)
        elif spec.source == "bins":
            out = self._finish(self.bins(x))
        else:
            number = x if spec.clip is None else x.clamp(max=spec.clip)
            dtype = next(self.parameters()).dtype
            out = self._finish(number.to(dtype)[:, None])
        return out if absent is None else out.masked_fill(absent[:, None], 0.0)

    def rows(self, ids: Tensor) -> Tensor:
        """(k,) rows of the table, finished: (k, width)."""
        return self._finish(F.embedding(ids, self.table))

    def _finish(self, out: Tensor) -> Tensor:
        if self.spec.unit:
            out = F.normalize(out, dim=-1)
        if self.mlp is not None:
            out = self.mlp(out)
        if self.norm is not None:
            out = self.norm(out)
        return out if self.spec.scale == 1.0 else out * self.spec.scale

    def bag(self, batch: PackedBatch) -> Tensor:
        """The weighted sum over a cell's list of genes, less the centre of the measured ones: (n, width)."""
        name = self.spec.channel
        if name not in batch.bags:
            raise ConfigError(
                f"the batch holds no bag {name!r} of expressed genes, which this model reads; pass bags= to pack, or "
                "tokenize with the model's own tokenizer"
            )
        bag = batch.bags[name]
        # the ids stay short, the offsets follow: a wider copy of the ids would take a tenth of the sum's time
        out = F.embedding_bag(
            bag.ids,
            self.table,
            bag.offsets[:-1].to(bag.ids.dtype),
            mode="sum",
            per_sample_weights=bag.values.to(self.table.dtype),
        )
        center = self.center if batch.measured is None else self.center * batch.measured
        return self._finish(out - center.to(self.table.dtype) @ self.table)


class BranchEnd(nn.Linear):
    """The last map of a residual branch, which may start at zero."""

    def __init__(self, width_in: int, width_out: int, *, bias: bool, starts_at_zero: bool) -> None:
        super().__init__(width_in, width_out, bias=bias)
        self.starts_at_zero = starts_at_zero


class Block(nn.Module):
    """Attention and feed-forward with residual sums, normed before (``pre``) or after (``post``) each branch."""

    projection: Tensor

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        inner = spec.n_heads * spec.head_dim
        self.spec = spec
        self.qkv = nn.Linear(spec.width, 3 * inner, bias=spec.qkv_bias)
        self.out = BranchEnd(inner, spec.width, bias=spec.bias, starts_at_zero=spec.zero_residual)
        self.up = nn.Linear(spec.width, spec.ff, bias=spec.bias)
        self.down = BranchEnd(spec.ff, spec.width, bias=spec.bias, starts_at_zero=spec.zero_residual)
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.eps, bias=spec.norm_bias)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.eps, bias=spec.norm_bias)
        if spec.attention == "performer":
            self.register_buffer("projection", torch.zeros(spec.n_features, spec.head_dim))

    def forward(self, x: Tensor, route: Route, rows: Rows | None = None) -> Tensor:
        """(T, width) -> (T, width), or (rows, width) where only some rows are wanted."""
        pre = self.spec.norm == "pre"
        kept = x if rows is None else x[rows.index]
        h = self._drop(self.attend(self.norm1(x) if pre else x, route, rows))
        kept = kept + h if pre else self.norm1(kept + h)
        h = ACTIVATIONS[self.spec.activation](self.up(self.norm2(kept) if pre else kept))
        h = self._drop(self.down(F.dropout(h, self.spec.ff_dropout, self.training)))
        return kept + h if pre else self.norm2(kept + h)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.spec.dropout, self.training)

    def attend(self, x: Tensor, route: Route, rows: Rows | None = None) -> Tensor:
        """The attention branch: (T, width) -> (T or rows, width)."""
        shape = (3, self.spec.n_heads, self.spec.head_dim)
        q, k, v = self.qkv(x).unflatten(-1, shape).unbind(1)
        if rows is None:
            return self._mix(q, k, v, route)
        out = self._softmax(q[rows.index], k, v, route, rows.segments, route.segments)
        return self.out(out.flatten(1))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, route: Route) -> Tensor:
        at = route.segments
        if self.spec.attention == "performer":
            if route.keys is not None:
                raise ConfigError("Performer attention has no query-only tokens; pack the batch without keys=")
            return self.out(performer_attention(q, k, v, at, at, self.projection).flatten(1))
        if route.past is not None and route.past.add(self, k, v, at):
            return self.out(route.past.attend(self, q, at).flatten(1))
        if route.keys is None:
            return self.out(self._softmax(q, k, v, route, at, at).flatten(1))
        seen, asking = route.keys.nonzero()[:, 0], (~route.keys).nonzero()[:, 0]
        ks, vs = k[seen], v[seen]
        own = (k[asking], v[asking]) if route.sees_itself else None
        context = self._softmax(q[seen], ks, vs, route, route.key_segments, route.key_segments).flatten(1)
        asked = query_only_attention(q[asking], ks, vs, route.query_segments, route.key_segments, own).flatten(1)
        out = torch.empty(len(q), self.out.out_features, dtype=q.dtype, device=q.device)
        out = out.index_copy(0, seen, self.out(context))
        return out.index_copy(0, asking, self.out(asked) if route.projected else asked)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, route: Route, at: Segments, to: Segments) -> Tensor:
        dropout = self.spec.attention_dropout if self.training else 0.0
        causal = self.spec.attention == "causal"
        return softmax_attention(route.attention, self, q, k, v, at, to, causal=causal, dropout=dropout)


class Rows:
    """The rows of the packed axis that a read-out wants from the last layer.

    Parameters
    ----------
    index
        (r,) tokens, cell by cell.
    segments
        Which of them belong to which cell.
    """

    def __init__(self, index: Tensor, segments: Segments) -> None:
        self.index = index
        self.segments = segments


class Route:
    """What a batch tells every layer: the segments, which tokens are keys, what came before, and the implementation."""

    def __init__(
        self,
        batch: PackedBatch,
        attention: str,
        *,
        sees_itself: bool = True,
        projected: bool = True,
        past: Past | None = None,
    ) -> None:
        self.segments = batch.segments
        self.attention = attention
        self.keys = batch.keys
        self.past = past
        self.sees_itself = sees_itself
        self.projected = projected
        if batch.keys is not None:
            keys = batch.keys.cpu().numpy()
            self.key_segments = batch.segments.select(keys)
            self.query_segments = batch.segments.select(~keys)


class Stack(nn.Module):
    """Blocks and the norms after the last.

    With ``checkpointing`` the inside of a block is computed again in the backward pass instead of being remembered.
    """

    checkpointing = False

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.n_layers))
        self.final_norms = nn.ModuleList(
            nn.LayerNorm(spec.width, eps=spec.eps, bias=spec.norm_bias) for _ in range(spec.final_norms)
        )

    def step(self, block: nn.Module, x: Tensor, route: Route) -> Tensor:
        """(T, width) -> (T, width) through one of the blocks."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, route, use_reentrant=False)
            return out
        return block(x, route)

    def finish(self, x: Tensor) -> Tensor:
        """The norms after the last layer."""
        for norm in self.final_norms:
            x = norm(x)
        return x
