"""Training on labels: looked at between times on held-out cells, and stopped when it gets no better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from scfm.training._data import Batches, loader
from scfm.training._finetune_objective import Labels
from scfm.training._finetune_targets import Target
from scfm.training._linear import mean_loss, scores
from scfm.training._trainer import CellTrainer, ObjectiveModel, _moved

COLLAPSE = 0.99
"""All guesses but this share being one class is a collapse, where the cells are not that much of one class."""
MOSTLY_ONE = 0.9
LOOKS = 2
"""Times in a row that a collapse is seen before it stops a run."""
LEAST_GAIN = 1e-4
ENOUGH = 10
"""Answers from which on guesses can be called collapsed."""


@dataclass(frozen=True, eq=False)
class Guesses:
    """What a model says of one target.

    Parameters
    ----------
    outputs
        (m, K) logits, or (m, 1) numbers in the unit of the target.
    answers
        (m,) codes or numbers.
    units
        (m,) numbers of the cells, or ids of the genes, each once.
    """

    outputs: NDArray[np.float64]
    answers: NDArray[Any]
    units: NDArray[np.int64]

    def scores(self, target: Target) -> dict[str, float]:
        """See `scfm.training._linear.scores`."""
        return scores(self.outputs, self.answers, "number" if target.kind == "number" else "classes")

    def loss(self, target: Target) -> float:
        """Mean over cells (genes) of the loss that is trained, in standard units."""
        if target.kind == "number":
            return mean_loss(self.outputs / target.scale, self.answers / target.scale, None)
        return mean_loss(self.outputs, self.answers, len(target.classes), target.weights)

    def collapsed(self, target: Target) -> str | None:
        """The one class that nearly all guesses are, where the answers are not."""
        if target.kind == "number" or len(self.answers) < ENOUGH:
            return None
        k = len(target.classes)
        shares = np.bincount(self.outputs.argmax(axis=1), minlength=k) / len(self.answers)
        true = np.bincount(self.answers, minlength=k) / len(self.answers)
        one = int(shares.argmax())
        return target.classes[one] if shares[one] >= COLLAPSE and true.max() < MOSTLY_ONE else None


class TuneTrainer(CellTrainer):
    """As `CellTrainer`; remembers the best weights on the held-out cells, and stops when nothing is gained.

    Parameters
    ----------
    model, args, train, valid, num_workers, callbacks
        See `CellTrainer`.
    patience
        Looks without a gain after which it stops.
    """

    def __init__(
        self,
        model: ObjectiveModel,
        args: TrainingArguments,
        train: Batches,
        valid: Batches | None,
        num_workers: int = 0,
        callbacks: list[Any] | None = None,
        *,
        patience: int = 3,
    ) -> None:
        self.patience = patience
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step = np.inf, 0
        self.seen_collapsed, self.waited = 0, 0
        self.stopped = ""
        self.history: list[dict[str, float]] = []
        super().__init__(model, args, train, valid, num_workers, callbacks)
        self.labels: Labels = model.objective  # type: ignore[assignment]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Losses and scores on the held-out cells; says when to stop."""
        if self.eval_dataset is None:
            return {}
        guesses = self.guesses(self.eval_dataset)
        losses = {t.name: guesses[t.name].loss(t) for t in self.labels.targets}
        metrics = {"eval_loss": sum(losses.values()), "eval_reference": self._reference(guesses)}
        if len(losses) > 1:
            metrics |= {f"eval_loss_{name}": value for name, value in losses.items()}
        for target in self.labels.targets:
            own = guesses[target.name].scores(target)
            metrics |= {f"eval_{target.name}_{name}": value for name, value in own.items()}
        self.log(dict(metrics))
        self._judge(metrics["eval_loss"], guesses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a row for the history too."""
        super().log(logs, start_time)
        row = self.state.log_history[-1]
        if "loss" in row or "eval_loss" in row:
            self.history.append(dict(row))

    def guesses(self, batches: Batches) -> dict[str, Guesses]:
        """What the model says of the cells of some batches, by target; of genes the mean over their tokens."""
        model: Any = self.model
        was_training = model.training
        model.eval()
        found: dict[str, list[tuple[NDArray[Any], ...]]] = {t.name: [] for t in self.labels.targets}
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                for example in loader(batches, self.n_workers):
                    batch, targets = _moved(example, self.args.device)
                    outputs = self.labels.outputs(model.transformer, batch, targets)
                    for target in self.labels.targets:
                        found[target.name].append(_found(target, outputs[target.name], targets, example.cells))
        finally:
            model.train(was_training)
        return {t.name: _joined(t, found[t.name]) for t in self.labels.targets}

    def _reference(self, guesses: Mapping[str, Guesses]) -> float:
        total = 0.0
        for target in self.labels.targets:
            answers = guesses[target.name].answers
            if target.kind == "number":
                total += float(np.square((answers - target.center) / target.scale).mean())
            elif target.prior is not None:
                outputs = np.tile(np.log(target.prior), (len(answers), 1))
                total += mean_loss(outputs, answers, len(target.classes), target.weights)
        return total

    def _judge(self, loss: float, guesses: Mapping[str, Guesses]) -> None:
        collapsed = [
            f"{t.source}: {one!r}" for t in self.labels.targets if (one := guesses[t.name].collapsed(t)) is not None
        ]
        step = self.state.global_step
        self.seen_collapsed = self.seen_collapsed + 1 if collapsed and step else 0
        if loss < self.best_loss - LEAST_GAIN:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            self.best = {
                name: p.detach().to("cpu", copy=True) for name, p in self.model.named_parameters() if p.requires_grad
            }
        else:
            self.waited += 1
        if self.seen_collapsed >= LOOKS:
            self._stop(
                f"collapsed at step {step}: nearly all held-out cells were given one class ({'; '.join(collapsed)}); try "
                "class_weights='balanced' or a lower learning_rate"
            )
        elif self.waited >= self.patience:
            self._stop(f"no gain on held-out cells in {self.waited} looks, at step {step}")

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self.control.should_training_stop = True

    def go_back(self) -> None:
        """Take the best weights again."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])


class FirstLook(TrainerCallback):
    """Looks at the held-out cells before the first step, so that tuning cannot end worse than it began."""

    trainer: TuneTrainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look."""
        self.trainer.evaluate()


def _found(
    target: Target, outputs: Tensor, targets: Mapping[str, Tensor], cells: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    numbers = outputs.detach().double().cpu().numpy()
    answers = targets[target.name].cpu().numpy()
    if target.kind == "genes":
        return numbers, answers, targets[f"{target.name}.ids"].cpu().numpy()
    units = cells[targets[f"{target.name}.rows"].cpu().numpy()]
    if target.kind == "number":
        numbers, answers = numbers * target.scale + target.center, answers * target.scale + target.center
    return numbers, answers, units


def _joined(target: Target, parts: list[tuple[NDArray[Any], ...]]) -> Guesses:
    outputs, answers, units = (np.concatenate([p[i] for p in parts]) for i in range(3))
    names, first, back = np.unique(units, return_index=True, return_inverse=True)
    if target.kind != "genes":
        return Guesses(outputs[first], answers[first], names)
    sums = np.zeros((len(names), outputs.shape[1]))
    np.add.at(sums, back.ravel(), outputs)
    return Guesses(sums / np.bincount(back.ravel(), minlength=len(names))[:, None], answers[first], names)
