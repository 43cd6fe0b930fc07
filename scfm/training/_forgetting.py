"""Did tuning spoil what a model had learnt? Its pretraining loss on held-out cells, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.training._config import build
from scfm.training._corpus import Corpus
from scfm.training._data import VALIDATION, Batches
from scfm.training._finetune_cells import hold
from scfm.training._index import Split
from scfm.training._sampler import BatchPlan, Sampling
from scfm.training._trainer import Meter
from scfm.training.objectives import OBJECTIVES, Objective

MOST_CELLS = 500


def pretraining_objective(model: FoundationModel, asked: bool | str | Mapping[str, Any]) -> Objective | None:
    """The objective whose change is reported.

    Parameters
    ----------
    model
        Before tuning.
    asked
        False: none; True: the one that fits the model's heads; or a name, or ``name`` and settings.

    Raises
    ------
    ConfigError
        If the model has no head that such an objective trained.
    """
    if asked is False:
        return None
    if asked is not True:
        settings = {"name": asked} if isinstance(asked, str) else dict(asked)
        name = settings.pop("name", None)
        if name not in OBJECTIVES:
            raise ConfigError(f"forgetting={name!r} is no pretraining objective; there are {', '.join(OBJECTIVES)}")
        objective: Objective = build(OBJECTIVES[name], settings, "forgetting.")
        objective.check(model)
        lacking = _lacking(objective, model)
        if lacking:
            raise ConfigError(f"{model.card.name} has no output {lacking[0]!r}, so its loss of {name} is not known")
        return objective
    for kind in OBJECTIVES.values():
        objective = kind()
        try:
            objective.check(model)
        except ConfigError:
            continue
        # a loss without a head of its own says nothing of what a model was trained for
        if objective.heads(model) and not _lacking(objective, model):
            return objective
    raise ConfigError(
        f"{model.card.name} has no output that was trained by one of {', '.join(OBJECTIVES)}, so there is no pretraining loss to "
        "look at; leave out forgetting="
    )


def _lacking(objective: Objective, model: FoundationModel) -> list[str]:
    return [
        name for name in {*objective.heads(model), *objective.told_by.values()} if name not in model.transformer.heads
    ]


def forgetting_of(
    before: FoundationModel, after: FoundationModel, corpus: Corpus, parts: Split, objective: Objective, seed: int
) -> dict[str, Any]:
    """Losses of both models on the same held-out (else training) cells with the same parts hidden."""
    which = parts.valid if len(parts.valid) else parts.train
    if len(which) > MOST_CELLS:
        which = np.sort(np.random.default_rng([seed, 11]).choice(which, MOST_CELLS, replace=False))
    cells = hold(corpus, before, None, False, objective.keep)
    plan = BatchPlan(cells.index, which, Sampling(seed=seed), objective.cost(cells.index.length, before))
    batches = Batches(cells, plan, objective, plan.n_batches(0), frozenset(before.config.cell_channels), seed)
    losses = []
    for model in (before, after):
        meter = Meter(objective.terms)
        for number in range(len(batches)):
            example = batches.make(plan[number][1], VALIDATION).to(model.device)
            with torch.no_grad():
                meter.add(example, objective.losses(model.transformer, example.batch, example.targets))
        losses.append(meter.read(list)["loss"])
    return {"objective": objective.name, "before": losses[0], "after": losses[1], "n_cells": len(which)}
