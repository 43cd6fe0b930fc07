"""What does every gene of a cell look like, expressed or not? A second stack over all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from scfm.transformer._layers import Route, Stack, Term
from scfm.transformer._packing import PackedBatch, Segments
from scfm.transformer._specs import DecoderSpec


class Decoder(Stack):
    """A map to its own width, blocks over every gene of a cell, and the norms after the last; see `DecoderSpec`.

    Parameters
    ----------
    spec
        Its sizes.
    width
        Of the encoder.
    """

    def __init__(self, spec: DecoderSpec, width: int) -> None:
        super().__init__(spec.stack)
        self.spec = spec
        self.enter = nn.Linear(width, spec.stack.width)

    def segments(self, n_cells: int, device: torch.device) -> Segments:
        """The same number of rows for every cell."""
        return Segments(np.arange(n_cells + 1, dtype=np.int64) * self.spec.rows, device)

    def forward(self, x: Tensor, attention: str) -> Tensor:
        """(n x rows, encoder width) vectors of all genes of n cells -> (n, rows, width) states."""
        batch = PackedBatch({}, self.segments(len(x) // self.spec.rows, x.device))
        route = Route(batch, attention)
        x = self.enter(x)
        for block in self.layers:
            x = self.step(block, x, route)
        return self.finish(x).unflatten(0, (batch.n_cells, self.spec.rows))


def keys_only(batch: PackedBatch) -> PackedBatch:
    """The batch without its query-only tokens; itself where there are none."""
    if batch.keys is None:
        return batch
    keys = batch.keys
    return replace(
        batch,
        channels={name: channel[keys] for name, channel in batch.channels.items()},
        segments=batch.segments.select(keys.cpu().numpy()),
        keys=None,
    )


def every_gene(batch: PackedBatch, states: Tensor, gene: Term, value: Term, rows: int) -> Tensor:
    """What a decoder reads.

    The vector of a gene that is a key of its cell is the encoder's state of it, that of a query-only token its value
    term (NaN: the row for masked values), that of any other gene the value term of 0; each with its gene term added.

    Parameters
    ----------
    batch
        n packed cells.
    states
        (keys, width) of the encoder.
    gene, value
        Input terms.
    rows
        Genes with the ids from 0 on that every cell has.

    Returns
    -------
    (n x rows, width), cell after cell.
    """
    at = batch.segments.cell * rows + batch.channels["ids"].long()
    zero = value(torch.zeros(1, device=states.device))
    x = zero.expand(batch.n_cells * rows, -1).clone()
    if batch.keys is None:
        x.index_copy_(0, at, states.to(x.dtype))
    else:
        x.index_copy_(0, at[batch.keys], states.to(x.dtype))
        x.index_copy_(0, at[~batch.keys], value(batch.channels["values"][~batch.keys]))
    genes = gene.rows(torch.arange(rows, device=states.device))
    return (x.unflatten(0, (-1, rows)) + genes).flatten(0, 1)
