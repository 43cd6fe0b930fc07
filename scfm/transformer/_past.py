"""What has a cell said so far? Keys and values that are kept while cells are written token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.transformer._packing import Segments


class Past:
    """Keys and values of the tokens that the cells of a batch have had, in every layer.

    For models in which a token sees only what stands before it: the states of earlier tokens never change, so only the
    new ones are computed. Cells of one length that are neighbours are held, and attend, together.

    Parameters
    ----------
    room
        Tokens that a cell may get after the first ones.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._held: dict[nn.Module, list[tuple[_Kept, _Kept]]] = {}
        self._runs: list[tuple[int, int, int]] = []

    def add(self, layer: nn.Module, k: Tensor, v: Tensor, at: Segments) -> bool:
        """Keep the keys and values (T, heads, head_dim) of new tokens; whether there were earlier ones.

        Parameters
        ----------
        layer
            Whose they are.
        at
            Which of them belong to which cell; cells of one length get equally many.
        """
        known = layer in self._held
        if not known:
            self._runs = at.runs
            self._held[layer] = [(_Kept(self.room), _Kept(self.room)) for _ in at.runs]
        for (keys, values), (first, n, _) in zip(self._held[layer], self._runs, strict=True):
            keys.add(_by_cell(k, at, first, n))
            values.add(_by_cell(v, at, first, n))
        return known

    def attend(self, layer: nn.Module, q: Tensor, at: Segments) -> Tensor:
        """Causal attention of the newest tokens, whose keys have been added: (T, heads, head_dim) -> the same."""
        pieces = []
        for (keys, values), (first, n, _) in zip(self._held[layer], self._runs, strict=True):
            new = _by_cell(q, at, first, n)
            k, v = keys.all, values.all
            n_new, n_all = new.shape[2], k.shape[2]
            hidden = None
            if n_new > 1:
                hidden = torch.ones(n_new, n_all, dtype=torch.bool, device=q.device).tril(n_all - n_new)
            out = F.scaled_dot_product_attention(new, k, v, attn_mask=hidden)
            pieces.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(pieces)


class _Kept:
    """Keys or values of n cells of one length: (n, heads, tokens so far, head_dim)."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = 0
        self.buffer: Tensor | None = None

    @property
    def all(self) -> Tensor:
        """Those of all tokens so far."""
        if self.buffer is None:
            raise RuntimeError("nothing has been kept yet")
        return self.buffer[:, :, : self.length]

    def add(self, new: Tensor) -> None:
        """Put new ones behind."""
        n, heads, n_new, head_dim = new.shape
        end = self.length + n_new
        if torch.is_grad_enabled():
            # what a gradient may need must not be overwritten
            self.buffer = new if self.buffer is None else torch.cat([self.all, new], dim=2)
        else:
            if self.buffer is None:
                self.buffer = new.new_empty(n, heads, n_new + self.room, head_dim)
            self.buffer[:, :, self.length : end] = new
        self.length = end


def _by_cell(x: Tensor, at: Segments, first: int, n: int) -> Tensor:
    """(n, heads, tokens, head_dim) of n neighbouring cells with equally many tokens."""
    return x[at.bounds[first] : at.bounds[first + n]].unflatten(0, (n, -1)).transpose(1, 2)
