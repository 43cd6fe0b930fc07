"""Are these two the same cell? Two thinned views of each cell against all other cells of the batch."""

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

_DEPTH, _THIN = 71, 73


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
    """

    name: ClassVar[str] = "contrastive"
    keep: ClassVar[Keep] = "counts"
    lowest: float = 0.1
    highest: float = 0.8
    temperature: float = 0.1
    pooling: str | None = None

    @property
    def terms(self) -> Mapping[str, float]:
        """The cross entropy of finding the other view."""
        return {"pairs": 1.0}

    def check(self, model: FoundationModel) -> None:
        """Raise if the settings are impossible."""
        need(
            0 < self.lowest <= self.highest <= 1,
            f"objective.lowest {self.lowest} and highest {self.highest} must be shares with lowest <= highest",
        )
        need(self.temperature > 0, f"objective.temperature is {self.temperature}; it must be above 0")
        model.transformer.readout(self.pooling)

    def cost(self, lengths: NDArray[np.integer[Any]], model: FoundationModel) -> NDArray[np.int64]:
        """Two views each."""
        return 2 * super().cost(lengths, model)

    def examples(self, cells: CellBatch) -> Example:
        """Thin each cell twice."""
        views = []
        for view in range(2):
            u = cells.draws.per_cell(_DEPTH + view)
            share = self.lowest * (self.highest / self.lowest) ** u
            views.append(cells.tokenize(thinned(cells.kept, share, cells.draws, _THIN + view), salt=view))
        tokens = concatenate(views)
        n = len(cells.kept)
        # a view that has lost all its genes is no answer and no question
        there = np.tile((views[0].per_cell["n_detected"] > 0) & (views[1].per_cell["n_detected"] > 0), 2)
        packed = cells.pack(tokens)
        asked = there if there.sum() > 2 else np.zeros(2 * n, dtype=bool)
        choices = np.full(int(asked.sum()), max(int(there.sum()) - 1, 1), np.int64)
        return Example(packed, tensors(asked=asked, choices=choices), {"pairs": float(asked.sum())}, cells.cells)

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy over the views of the batch."""
        cells = F.normalize(model.embed(batch, self.pooling).float(), dim=-1)
        rows = targets["asked"].nonzero()[:, 0]
        cells = cells[rows]
        n = len(cells)
        if n == 0:
            return {"pairs": cells.sum()}
        likeness = cells @ cells.T / self.temperature
        likeness = likeness.masked_fill(torch.eye(n, dtype=torch.bool, device=cells.device), -torch.inf)
        other = (torch.arange(n, device=cells.device) + n // 2) % n
        return {"pairs": cross_entropy_sum(likeness, other)}

    def reference(self, vocabulary_size: int) -> Reference:
        """Guessing among the views."""
        return Chance("pairs")


def thinned(counts: Tokens, share: NDArray[np.float64], draws: CellDraws, purpose: int) -> Tokens:
    """Kept counts of which each single count stays with the probability of its cell.

    Parameters
    ----------
    counts
        Of n cells.
    share
        (n,) probabilities.
    draws, purpose
        Of what is random.

    Raises
    ------
    CountsError
        If the counts are not whole numbers.
    """
    values = np.asarray(counts.values, dtype=np.float64)
    if not bool((values == np.rint(values)).all()):
        raise CountsError("only whole counts can be thinned, and the corpus holds fractions; choose another objective")
    new = np.empty(len(values))
    rest = np.maximum(counts.per_cell["total"] - counts.per_cell["depth"], 0.0)
    missing = np.zeros(len(counts))
    for i, (a, b) in enumerate(zip(counts.offsets[:-1], counts.offsets[1:], strict=True)):
        rng = draws.generator(purpose, i)
        new[a:b] = rng.binomial(values[a:b].astype(np.int64), share[i])
        rest[i] = rng.binomial(round(rest[i]), share[i])
        lost = counts.per_cell["depth"][i] - values[a:b].sum()
        missing[i] = rng.binomial(round(max(lost, 0.0)), share[i])
    matched = np.bincount(cell_of(counts), new, minlength=len(counts))
    depth = matched + missing
    kept = subset(replace(counts, values=new.astype(np.float32)), new > 0)
    return replace(kept, per_cell={**kept.per_cell, "depth": depth, "total": depth + rest})
