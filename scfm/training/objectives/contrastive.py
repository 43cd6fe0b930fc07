"""Are these two the same cell? Two altered views of each cell against all other cells of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scfm.errors import CountsError
from scfm.models import FoundationModel
from scfm.tokenizers import Tokens, concatenate
from scfm.training._draws import CellDraws
from scfm.training._encode import Keep
from scfm.training.objectives._base import CellBatch, Example, Objective, cell_of, need, subset, tensors
from scfm.training.objectives._outputs import cross_entropy_sum
from scfm.training.objectives._reference import Chance, Reference
from scfm.transformer import CellTransformer, PackedBatch

_DEPTH, _THIN, _RATES, _PANEL, _GENES = 71, 73, 75, 77, 79


@dataclass(frozen=True)
class Contrastive(Objective):
    """InfoNCE: the view nearest to a view of a cell is to be the cell's other view.

    The other cells of the batch are the wrong answers, so batches of many cells, and of one data set
    (``sampling.within``), ask harder questions. Each process compares its own batch.

    Parameters
    ----------
    lowest, highest
        A view keeps a share of the counts between these, evenly on a logarithmic scale; each count is kept or lost alone.
    temperature
        Cosines are divided by it.
    pooling
        Read-out of the cells; None: the model's default.
    rates
        Standard deviation of the logarithm of a factor on each gene's share, drawn for each view: another assay catches other
        genes.
    panels
        Share of the views that see a random panel of genes only, of between a thirtieth of the genes and all of them.
    leash
        Weight of the second term: 1 less the cosine between a view's vector and what the model gives for it before its
        first layer. It holds layers that are put on top of a fitted model near it; 0 lets them go.
    """

    name: ClassVar[str] = "contrastive"
    keep: ClassVar[Keep] = "counts"
    lowest: float = 0.1
    highest: float = 0.8
    temperature: float = 0.1
    pooling: str | None = None
    rates: float = 0.0
    panels: float = 0.0
    leash: float = 0.0

    @property
    def terms(self) -> Mapping[str, float]:
        """The cross entropy of finding the other view, and the way from where a view started."""
        return {"pairs": 1.0} | ({"leash": self.leash} if self.leash else {})

    def check(self, model: FoundationModel) -> None:
        """Raise if the settings are impossible."""
        need(
            0 < self.lowest <= self.highest <= 1,
            f"objective.lowest {self.lowest} and highest {self.highest} must be shares with lowest <= highest",
        )
        need(self.temperature > 0, f"objective.temperature is {self.temperature}; it must be above 0")
        need(self.rates >= 0, f"objective.rates is {self.rates}; it is a standard deviation, 0 or above")
        need(0 <= self.panels <= 1, f"objective.panels is {self.panels}; it is a share between 0 and 1")
        need(self.leash >= 0, f"objective.leash is {self.leash}; it is a weight, 0 or above")
        model.transformer.readout(self.pooling)

    def cost(self, lengths: NDArray[np.integer[Any]], model: FoundationModel) -> NDArray[np.int64]:
        """Two views each."""
        return 2 * super().cost(lengths, model)

    def examples(self, cells: CellBatch) -> Example:
        """Alter each cell twice."""
        views = [cells.tokenize(self._view(cells, number), salt=number) for number in range(2)]
        tokens = concatenate(views)
        n = len(cells.kept)
        # a view that has lost all its genes is no answer and no question
        there = np.tile((views[0].per_cell["n_detected"] > 0) & (views[1].per_cell["n_detected"] > 0), 2)
        packed = cells.pack(tokens)
        asked = there if there.sum() > 2 else np.zeros(2 * n, dtype=bool)
        choices = np.full(int(asked.sum()), max(int(there.sum()) - 1, 1), np.int64)
        counts = dict.fromkeys(self.terms, float(asked.sum()))
        return Example(packed, tensors(asked=asked, choices=choices), counts, cells.cells)

    def _view(self, cells: CellBatch, number: int) -> Tokens:
        """Counts of the cells as another assay might have caught them."""
        share = self.lowest * (self.highest / self.lowest) ** cells.draws.per_cell(_DEPTH + number)
        caught = share[cell_of(cells.kept)]
        if self.rates:
            caught = caught * _factors(cells.kept, self.rates, cells.draws, _RATES + number)
        if self.panels:
            caught = caught * _on_panel(cells.kept, self.panels, cells.draws, number)
        return thinned(cells.kept, share, cells.draws, _THIN + number, caught=caught)

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy over the views of the batch."""
        rows = targets["asked"].nonzero()[:, 0]
        cells = F.normalize(model.embed(batch, self.pooling).float(), dim=-1)[rows]
        losses = {"pairs": _pairs(cells, self.temperature)}
        if self.leash:
            start = F.normalize(model.embed(batch, self.pooling, hidden_layer=0).float(), dim=-1)[rows]
            losses["leash"] = (1 - (cells * start).sum(-1)).sum()
        return losses

    def reference(self, vocabulary_size: int) -> Reference:
        """Guessing among the views."""
        return Chance("pairs")


def _pairs(cells: Tensor, temperature: float) -> Tensor:
    """Summed cross entropy of finding the other view of each of (2 n, width) unit vectors."""
    n = len(cells)
    if n == 0:
        return cells.sum()
    likeness = cells @ cells.T / temperature
    likeness = likeness.masked_fill(torch.eye(n, dtype=torch.bool, device=cells.device), -torch.inf)
    other = (torch.arange(n, device=cells.device) + n // 2) % n
    return cross_entropy_sum(likeness, other)


def _factors(counts: Tokens, spread: float, draws: CellDraws, purpose: int) -> NDArray[np.float64]:
    """(E,) log-normal factors, one for each gene of each cell, with a median of 1."""
    return np.concatenate(
        [np.exp(draws.generator(purpose, i).normal(0, spread, n)) for i, n in enumerate(counts.lengths)]
        or [np.empty(0)]
    )


def _on_panel(counts: Tokens, views: float, draws: CellDraws, number: int) -> NDArray[np.bool_]:
    """(E,) which genes are on the panel of their cell's view."""
    u = draws.per_cell(_PANEL + number)
    # the views without a panel see everything; of the others, the logarithm of the share of genes is uniform
    genes = np.where(u < views, 30 ** (u / views - 1), 1.0)
    return draws.uniform(_GENES + number, counts.offsets) < genes[cell_of(counts)]


def thinned(
    counts: Tokens,
    share: NDArray[np.float64],
    draws: CellDraws,
    purpose: int,
    caught: NDArray[np.float64] | None = None,
) -> Tokens:
    """Kept counts of which each single count stays with the probability of its cell.

    Parameters
    ----------
    counts
        Of n cells.
    share
        (n,) probabilities.
    draws, purpose
        Of what is random.
    caught
        (E,) probabilities of each entry of ``counts``, where they differ from that of the cell; above 1 is 1.

    Raises
    ------
    CountsError
        If the counts are not whole numbers.
    """
    values = np.asarray(counts.values, dtype=np.float64)
    if not bool((values == np.rint(values)).all()):
        raise CountsError("only whole counts can be thinned, and the corpus holds fractions; choose another objective")
    chances = np.repeat(share, counts.lengths) if caught is None else np.minimum(caught, 1.0)
    new = np.empty(len(values))
    rest = np.maximum(counts.per_cell["total"] - counts.per_cell["depth"], 0.0)
    missing = np.zeros(len(counts))
    for i, (a, b) in enumerate(zip(counts.offsets[:-1], counts.offsets[1:], strict=True)):
        rng = draws.generator(purpose, i)
        new[a:b] = rng.binomial(values[a:b].astype(np.int64), chances[a:b])
        rest[i] = rng.binomial(round(rest[i]), share[i])
        lost = counts.per_cell["depth"][i] - values[a:b].sum()
        missing[i] = rng.binomial(round(max(lost, 0.0)), share[i])
    matched = np.bincount(cell_of(counts), new, minlength=len(counts))
    depth = matched + missing
    kept = subset(replace(counts, values=new.astype(np.float32)), new > 0)
    return replace(kept, per_cell={**kept.per_cell, "depth": depth, "total": depth + rest})
