"""How wrong is a guess of labels? Cross entropies and squared errors of several targets at once, on packed batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.training._finetune_targets import Target
from scfm.training.objectives import CellBatch, Chance, Example, Objective, Reference
from scfm.training.objectives._base import tensors
from scfm.training.objectives._outputs import on_tokens
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec, PackedBatch

FINAL = -1
"""Hidden layer that heads read."""


@dataclass(frozen=True, eq=False)
class Labels(Objective):
    """Classes and numbers of cells, or classes of genes.

    Classes have cross entropy weighted by class, divided by the sum of the weights as in torch; numbers the squared error of
    what is left after taking away the mean and dividing by the standard deviation of the training cells. Targets count alike.

    Parameters
    ----------
    targets
        What is learnt; cells without a value of one count for the others.
    pooling
        Read-out of the cells; None: the model's default.
    batch_cells, batch_tokens
        Most cells and tokens of a batch.
    """

    name: ClassVar[str] = "labels"
    targets: tuple[Target, ...] = ()
    pooling: str | None = None
    batch_cells: int = 32
    batch_tokens: int = 8192

    @property
    def terms(self) -> Mapping[str, float]:
        """One per target."""
        return {target.name: 1.0 for target in self.targets}

    def check(self, model: FoundationModel) -> None:
        """Raise if genes have no states of their own, or the read-out cannot be trained."""
        if any(t.kind == "genes" for t in self.targets) and model.transformer.n_layers == 0:
            raise ConfigError(
                f"{model.card.name} has no state of a gene in a cell, so genes cannot be classified by it; use a model with "
                "layers, or classify scfm.tl.embed_genes vectors"
            )
        spec = model.transformer.readout(self.pooling)
        if spec.continued or spec.padded_to:
            usable = [n for n, s in model.config.readout_specs.items() if not s.continued and not s.padded_to]
            raise ConfigError(
                f"pooling={self.pooling or model.config.readout!r} writes or pads cells first and cannot be tuned; choose "
                f"{', '.join(usable)}"
            )

    def heads(self, model: FoundationModel) -> dict[str, HeadSpec]:
        """A linear map per target."""
        on_cells = model.embedding_width(self.pooling, FINAL)
        on_genes = model.transformer.state_width(FINAL)
        return {
            t.name: HeadSpec("tokens", MLPSpec((on_genes, t.n_outputs)))
            if t.kind == "genes"
            else HeadSpec("cells", MLPSpec((on_cells, t.n_outputs)), readout=self.pooling)
            for t in self.targets
        }

    def cost(self, lengths: NDArray[np.integer], model: FoundationModel) -> NDArray[np.int64]:
        """Tokens, but short cells count more, so that a batch has not too many of them."""
        least = max(1, -(-self.batch_tokens // self.batch_cells))
        return np.maximum(np.asarray(lengths, dtype=np.int64), least)

    def examples(self, cells: CellBatch) -> Example:
        """The cells with what is known of them."""
        tokens = cells.tokens
        arrays, counts, reference = {}, {}, {}
        for target in self.targets:
            of = tokens.ids if target.kind == "genes" else cells.cells
            values = target.values[of]
            rows = np.flatnonzero(target.known[of])
            values = values[rows]
            arrays[f"{target.name}.rows"] = rows
            if target.kind == "number":
                values = ((values - target.center) / target.scale).astype(np.float32)
                counts[target.name], cost = float(len(rows)), float(np.square(values, dtype=np.float64).sum())
            else:
                weights = np.ones(len(target.classes)) if target.weights is None else target.weights
                counts[target.name] = float(weights[values].sum(dtype=np.float64))
                prior = np.full(len(weights), 1 / len(weights)) if target.prior is None else target.prior
                cost = -float((weights * np.log(prior))[values].sum())
            reference[target.name] = cost
            arrays[target.name] = values
            if target.kind == "genes":
                arrays[f"{target.name}.ids"] = tokens.ids[rows].astype(np.int64)
        return Example(cells.pack(tokens), tensors(**arrays), counts, cells.cells, reference)

    def outputs(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model says where something is known, by target."""
        vectors = states = None
        out = {}
        for target in self.targets:
            rows = targets[f"{target.name}.rows"]
            if target.kind == "genes":
                states = model.state(batch, FINAL) if states is None else states
                out[target.name] = on_tokens(model, target.name, states, batch, rows)
            else:
                vectors = model.embed(batch, self.pooling, FINAL) if vectors is None else vectors
                out[target.name] = model.head(target.name, batch, vectors)[rows]
        return out

    def losses(self, model: CellTransformer, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over cells or tokens of genes."""
        outputs = self.outputs(model, batch, targets)
        return {t.name: loss_sum(t, outputs[t.name], targets[t.name]) for t in self.targets}

    def reference(self, vocabulary_size: int) -> Reference:
        """Shares of the classes and the mean, which `examples` scores itself."""
        return Chance(self.targets[0].name)


def loss_sum(target: Target, outputs: Tensor, labels: Tensor) -> Tensor:
    """The loss of (m, k) outputs of a target, in float32 at least.

    Parameters
    ----------
    target
        With the weights of its classes.
    outputs
        (m, K) logits, or (m, 1) numbers.
    labels
        (m,) codes, or numbers in standard units.
    """
    if target.kind == "number":
        return F.mse_loss(outputs[:, 0].float(), labels.float(), reduction="sum")
    weights = None if target.weights is None else outputs.new_tensor(target.weights.tolist()).float()
    return F.cross_entropy(outputs.float(), labels.long(), weight=weights, reduction="sum")
