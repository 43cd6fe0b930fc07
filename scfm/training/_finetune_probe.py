"""What do frozen vectors give on the same split? Where tuning starts, and what it is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm.models import FoundationModel
from scfm.models._gene_vectors import GeneSums
from scfm.training._data import Batches
from scfm.training._finetune_cells import HeldCells, genes_held_out
from scfm.training._finetune_objective import FINAL, Labels
from scfm.training._finetune_targets import ClassWeights, Target
from scfm.training._finetune_trainer import Guesses
from scfm.training._finetuned import BLIND, LINEAR, NEIGHBOURS
from scfm.training._index import Split
from scfm.training._linear import LinearMap, fit_linear, nearest
from scfm.training._sampler import BatchPlan, Sampling

READ_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Job:
    """Cells, what is learnt of which, and what is held out.

    Parameters
    ----------
    cells
        All of them.
    parts
        Those that are trained on, and those that are held out.
    train, valid
        What is learnt of them; of genes the two sides have their own.
    """

    cells: HeldCells
    parts: Split
    train: Labels
    valid: Labels

    @classmethod
    def of(
        cls, cells: HeldCells, parts: Split, labels: Labels, class_weights: ClassWeights, share: float, seed: int
    ) -> Job:
        """With classes weighed and numbers scaled after the training cells; ``share`` of the genes is held out."""
        if labels.targets[0].kind == "genes":
            genes = labels.targets[0]
            learnt, held = genes_held_out(genes, share, seed)
            fitted = genes.fitted(learnt, class_weights)
            each = [fitted.masked(learnt)], [fitted.masked(held)]
        else:
            both = [t.fitted(parts.train, class_weights) for t in labels.targets]
            each = both, both
        train, valid = (replace(labels, targets=tuple(t)) for t in each)
        return cls(cells, parts, train, valid)

    def batches(self, which: NDArray[np.int64], objective: Labels, model: FoundationModel, seed: int) -> Batches:
        """Of some cells, one epoch."""
        costs = objective.cost(self.cells.index.length, model)
        # what a bag model reads of a cell is no list of tokens
        bag = self.cells.tokens.parts.get("bag")
        costs = costs if bag is None else objective.cost(bag.lengths, model)
        plan = BatchPlan(self.cells.index, which, Sampling(batch_tokens=objective.batch_tokens, seed=seed), costs)
        return Batches(
            cells=self.cells,
            plan=plan,
            objective=objective,
            n_batches=plan.n_batches(0),
            channels=frozenset(model.config.cell_channels),
            seed=seed,
        )


def probe(
    model: FoundationModel, job: Job, seed: int, progress: bool
) -> tuple[dict[str, LinearMap], list[dict[str, Any]]]:
    """A linear map per target of the frozen model's vectors, and how well it, neighbours and a blind guess do.

    Parameters
    ----------
    model
        With the heads.
    job
        What is learnt of which cells.
    seed
        Of samples.
    progress
        Whether to show a bar.
    """
    maps, rows = {}, []
    for part in _known(model, job, progress):
        target, k = part.target, len(part.target.classes) or None
        x, y = part.train
        held = part.valid if len(part.valid[1]) else None
        maps[target.name] = fit_linear(x, y, k, weights=target.weights, held_out=held, seed=seed)
        blind = np.zeros(1) if target.prior is None else np.log(target.prior)
        for name, (vectors, answers) in (("validation", part.valid), ("train", part.train)):
            if not len(answers):
                continue
            found = {LINEAR: maps[target.name](vectors), BLIND: np.tile(blind, (len(answers), 1))}
            if name == "validation":
                found[NEIGHBOURS] = nearest(x, y, k, vectors, seed)
            for what, outputs in found.items():
                if target.kind == "number":
                    outputs, truth = outputs * target.scale + target.center, answers * target.scale + target.center
                else:
                    truth = answers
                rows.append(row(target, what, name, Guesses(outputs, truth, np.arange(len(truth)))))
    return maps, rows


def row(target: Target, model: str, part: str, guesses: Guesses) -> dict[str, Any]:
    """A row of the table of scores."""
    return {
        "target": target.source,
        "model": model,
        "part": part,
        "n": len(guesses.answers),
        **guesses.scores(target),
    }


@dataclass(frozen=True, eq=False)
class _Known:
    """Frozen vectors and answers (standard units) of a target."""

    target: Target
    train: tuple[NDArray[Any], NDArray[Any]]
    valid: tuple[NDArray[Any], NDArray[Any]]


def _known(model: FoundationModel, job: Job, progress: bool) -> Iterator[_Known]:
    if job.train.targets[0].kind == "genes":
        target = job.train.targets[0]
        sides = []
        for labels, cells in ((job.train, job.parts.train), (job.valid, job.parts.valid)):
            ids, vectors = _gene_vectors(model, job.cells, cells, labels.targets[0].values >= 0, progress)
            sides.append((vectors, labels.targets[0].values[ids]))
        yield _Known(target, sides[0], sides[1])
        return
    both = [_cell_vectors(model, job.cells, c, job.train.pooling, progress) for c in (job.parts.train, job.parts.valid)]
    for target in job.train.targets:
        known_sides = []
        for x, cells in zip(both, (job.parts.train, job.parts.valid), strict=True):
            known = target.known[cells]
            y = target.values[cells][known]
            known_sides.append((x[known], (y - target.center) / target.scale if target.kind == "number" else y))
        yield _Known(target, known_sides[0], known_sides[1])


def _cell_vectors(
    model: FoundationModel, cells: HeldCells, which: NDArray[np.int64], pooling: str | None, progress: bool
) -> NDArray[np.float32]:
    out = np.zeros((len(which), model.embedding_width(pooling, FINAL)), dtype=np.float32)
    with tqdm(total=len(which), desc="probe", unit="cell", disable=not progress or not len(which)) as bar:
        for start in range(0, len(which), READ_AT_ONCE):
            some = which[start : start + READ_AT_ONCE]
            out[start : start + len(some)] = model.embed_cells(cells.ready(some), pooling, FINAL)
            bar.update(len(some))
    return out


def _gene_vectors(
    model: FoundationModel, cells: HeldCells, which: NDArray[np.int64], wanted: NDArray[np.bool_], progress: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and mean final states of the wanted genes over some cells."""
    sums = GeneSums(model.tokenizer.n_ids, model.transformer.state_width(FINAL))
    for start in range(0, len(which), READ_AT_ONCE):
        tokens = cells.ready(which[start : start + READ_AT_ONCE])
        for _cells, part, states in model.over_batches(tokens, lambda batch: model.transformer.state(batch, FINAL)):
            sums.add(part, states)
    found = sums.finish()
    keep = wanted[found.ids] & (found.n_cells > 0)
    return found.ids[keep], found.vectors[keep]
