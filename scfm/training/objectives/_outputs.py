"""Heads on the few tokens that are asked about: the rows are picked before the head, not after."""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat
from torch.nn import functional as F

from scfm.errors import ConfigError
from scfm.transformer import CellTransformer, PackedBatch


def on_tokens(model: CellTransformer, name: str, states: Tensor, batch: PackedBatch, rows: Tensor) -> Tensor:
    """The output of a head on tokens for some of them.

    Parameters
    ----------
    model, name
        The head.
    states
        (T, width) final states.
    batch
        They belong to.
    rows
        (m,) tokens that are asked about.

    Returns
    -------
    (m, outputs)
    """
    head = _head(model, name, ("tokens", "tied"))
    cell = batch.segments.cell[rows]
    x = cat([states[rows], *(vectors[cell] for vectors in model._context(batch, head.spec))], dim=-1)
    return head(x, table=model.terms["gene"].table if head.spec.feed == "tied" else None)


def on_pairs(
    model: CellTransformer, name: str, cells: Tensor, batch: PackedBatch, genes: Tensor, of_cell: Tensor
) -> Tensor:
    """The output of a head on pairs of cell and gene.

    Parameters
    ----------
    model, name
        The head.
    cells
        (n, width) cell vectors.
    batch
        They belong to.
    genes, of_cell
        (m,) gene of each pair and number of its cell.

    Returns
    -------
    (m, outputs)
    """
    head = _head(model, name, ("pairs",))
    cells = cat([cells, *model._context(batch, head.spec)], dim=-1)
    return head(model._gene_vectors(head.spec, genes), cells=cells[of_cell])


def cell_vectors(model: CellTransformer, name: str, states: Tensor, batch: PackedBatch) -> Tensor:
    """(n, width) what a head reads of cells, from final states that are there already."""
    spec = model.readout(model.config.head_specs[name].readout)
    if spec.layers or spec.padded_to or spec.continued:
        raise ConfigError(
            f"the head {name!r} reads more than the final states; it cannot be trained with this objective"
        )
    return model.pool(states, batch, spec)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over targets, in float32 at least."""
    return F.cross_entropy(logits.float(), labels.long(), reduction="sum")


def squares_sum(guess: Tensor, labels: Tensor) -> Tensor:
    """Sum of squared differences, in float32 at least."""
    return F.mse_loss(guess.float(), labels.float(), reduction="sum")


def binary_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of binary cross entropies, in float32 at least."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum")


def _head(model: CellTransformer, name: str, feeds: tuple[str, ...]) -> Any:
    if name not in model.heads:
        raise ConfigError(f"the model has no head {name!r}; it has {', '.join(model.heads) or 'none'}")
    head: Any = model.heads[name]
    if head.spec.feed not in feeds:
        raise ConfigError(f"the head {name!r} is fed {head.spec.feed}, not {' or '.join(feeds)}")
    return head
