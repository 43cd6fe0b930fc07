"""The trainer of transformers, on packed cells: losses by global counts, checkpoints that are whole."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from scfm.errors import OutputError, TrainingError
from scfm.training._data import Batches, loader
from scfm.training._files import PARTIAL, UNWRITTEN, finish_folder, is_full
from scfm.training.objectives import Example, Objective
from scfm.transformer import CellTransformer, PackedBatch

CHECKPOINT = "checkpoint"
NAMED_CELLS = 5


class ObjectiveModel(nn.Module):
    """A transformer with its objective: the module that processes wrap and share gradients of.

    Parameters
    ----------
    transformer, objective
        The two.
    """

    def __init__(self, transformer: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.transformer = transformer
        self.objective = objective

    def forward(self, batch: PackedBatch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum of the losses, by term."""
        return self.objective.losses(self.transformer, batch, targets)  # type: ignore[arg-type]


class Meter:
    """Sums of losses and counts since the last look."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self.sums: dict[str, Any] = dict.fromkeys(self.weights, 0.0)
        self.counts: dict[str, float] = dict.fromkeys(self.weights, 0.0)
        self.reference: dict[str, float] = dict.fromkeys(self.weights, 0.0)
        self.tokens = self.cells = 0

    def add(self, example: Example, sums: Mapping[str, Tensor]) -> None:
        """Count a batch."""
        for name in self.weights:
            if name in sums:
                self.sums[name] = self.sums[name] + sums[name].detach()
            self.counts[name] += example.counts.get(name, 0.0)
            self.reference[name] += example.reference.get(name, 0.0)
        self.tokens += example.batch.n_tokens
        self.cells += example.batch.n_cells

    def read(self, reduce: Any) -> dict[str, float]:
        """Means over all processes: ``loss``, ``reference``, one ``loss_<term>`` each, ``tokens``, ``cells``."""
        names = list(self.weights)
        row = [float(self.sums[n]) for n in names]
        row += [self.counts[n] for n in names] + [self.reference[n] for n in names] + [self.tokens, self.cells]
        row = reduce(row)
        k = len(names)
        sums, counts, reference = row[:k], row[k : 2 * k], row[2 * k : 3 * k]
        each = {n: s / c for n, s, c in zip(names, sums, counts, strict=True) if c}
        out = {
            "loss": sum(self.weights[n] * v for n, v in each.items()) if each else math.nan,
            "reference": sum(self.weights[n] * r / c for n, r, c in zip(names, reference, counts, strict=True) if c),
        }
        if k > 1:
            out |= {f"loss_{n}": v for n, v in each.items()}
        return {**out, "tokens": row[-2], "cells": row[-1]}


class CellTrainer(Trainer):
    """Trains an `ObjectiveModel` on `Batches`.

    Parameters
    ----------
    model, args
        What is trained, and how.
    train, valid
        Batches of this process.
    num_workers
        Processes that make batches.
    callbacks
        Of transformers.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: ObjectiveModel,
        args: TrainingArguments,
        train: Batches,
        valid: Batches | None,
        num_workers: int = 0,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.meter = Meter(model.objective.terms)
        self.n_workers = num_workers
        self._staging: str | None = None
        self._since = time.perf_counter()
        self._begin = self._since
        super().__init__(model=model, args=args, train_dataset=train, eval_dataset=valid, callbacks=callbacks)
        self.objective: Objective = model.objective
        self.control: Any = self.control

    # what is read

    def get_train_dataloader(self) -> DataLoader[Example]:
        """Batches in the order of the plan; each process has its own."""
        return loader(self.train_dataset, self.n_workers)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Example], num_batches: int, device: torch.device
    ) -> tuple[list[Example], Any]:
        """The batches of one optimizer step, and the number of targets of all processes by term."""
        examples = [example for _, example in zip(range(num_batches), epoch_iterator, strict=False)]
        names = list(self.objective.terms)
        local = [sum(example.counts.get(name, 0.0) for example in examples) for name in names]
        return examples, dict(zip(names, self._summed(local), strict=True))

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def _summed(self, numbers: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.args.world_size == 1:
            return numbers
        row = torch.tensor(numbers, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(row)
        return row.tolist()

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    # the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sums divided by the number of targets of all processes and accumulated batches.

        Raises
        ------
        TrainingError
            If the loss is not finite; the message names the cells.
        """
        sums = model(inputs.batch, inputs.targets)
        loss = self.total(sums, num_items_in_batch)
        if not bool(torch.isfinite(loss.detach())):
            raise TrainingError(self._not_finite(float(loss.detach()), inputs))
        self.meter.add(inputs, sums)
        # processes average their gradients, so what each contributes is multiplied by their number
        return (loss * self.args.world_size, sums) if return_outputs else loss * self.args.world_size

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> Tensor:
        """The weighted sum of the terms' means."""
        parts = [
            weight * sums[name] / max(counts[name], 1.0)
            for name, weight in self.objective.terms.items()
            if name in sums
        ]
        return torch.stack(parts).sum()

    def _not_finite(self, loss: float, example: Example) -> str:
        index = self.train_dataset.cells.index
        names = [index.name_of(int(cell)) for cell in example.cells[:NAMED_CELLS]]
        more = "" if len(example.cells) <= NAMED_CELLS else f" and {len(example.cells) - NAMED_CELLS} more"
        return (
            f"the loss is {loss} at step {self.state.global_step + 1}, on a batch of {', '.join(names)}{more}. Look at these "
            "cells; a lower run.learning_rate, a smaller run.clip or more run.warmup_steps often help. The last checkpoint is "
            "untouched"
        )

    # what is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last log."""
        if "loss" in logs:
            now = time.perf_counter()
            read = self.meter.read(self._summed)
            speed = read["tokens"] / max(now - self._since, 1e-9)
            # counted on from the last log, which a resumed run finds in its checkpoint
            before: dict[str, float] = next((row for row in reversed(self.state.log_history) if "tokens" in row), {})
            for name in ("tokens", "cells"):
                read[name] += before.get(name, 0)
            logs = {**logs, **read, "tokens_per_second": speed, "seconds": now - self._begin}
            self._since = now
            self.meter.clear()
        logs["epoch"] = self._epoch()
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _epoch(self) -> float:
        plan, batches = self.train_dataset.plan, self.train_dataset
        return self.state.global_step * batches.per_step * batches.world / plan.n_batches(0)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and reference on the held-out cells, whose hidden parts are always the same."""
        if self.eval_dataset is None:
            return {}
        meter = Meter(self.objective.terms)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                for example in loader(self.eval_dataset, self.n_workers):
                    meter.add(example, self.model(*_moved(example, self.args.device)))
        finally:
            self.model.train(was_training)
        read = meter.read(self._summed)
        metrics = {f"eval_{name}": value for name, value in read.items() if name not in ("tokens", "cells")}
        self.log(dict(metrics))
        self._since = time.perf_counter()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def last_metrics(self) -> dict[str, float]:
        """What `evaluate` gives at the step where the run stands; measured only if it was not."""
        rows = [row for row in self.state.log_history if "eval_loss" in row and row["step"] == self.state.global_step]
        return {k: v for k, v in rows[-1].items() if k.startswith("eval_")} if rows else self.evaluate()

    # what is kept

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written under another name, put on disk, and given its name at once."""
        folder = Path(self.args.output_dir)
        name = f"{CHECKPOINT}-{self.state.global_step}"
        partial = folder / f"{name}{PARTIAL}"
        try:
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._wait()
            self._staging = str(partial)
            super()._save_checkpoint(model, trial)
            self._wait()
            if self.args.should_save:
                finish_folder(partial / name, folder / name)
                partial.rmdir()
                rotate_checkpoints(str(folder), self.args.save_total_limit, use_mtime=False)
            self._wait()
        except UNWRITTEN as error:
            full = is_full(error)
            if not full and not isinstance(error, OSError):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            reason = "the disk is full, or a quota is reached" if full else str(error)
            raise OutputError(
                f"the checkpoint of step {self.state.global_step} could not be written to {folder}: {reason}. Earlier "
                "checkpoints are whole; make room and run again to go on from the last one"
            ) from error
        finally:
            self._staging = None

    def _wait(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()


def _moved(example: Example, device: torch.device) -> tuple[PackedBatch, Mapping[str, Tensor]]:
    moved = example.to(device)
    return moved.batch, moved.targets


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step; what was not finished is removed.

    Parameters
    ----------
    folder
        Of the checkpoints.
    """
    if not folder.is_dir():
        return None
    for partial in folder.glob(f"{CHECKPOINT}-*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
    whole = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(rf"{CHECKPOINT}-(\d+)", p.name))}
    return whole[max(whole)] if whole else None


def trainable(transformer: CellTransformer, objective: Objective) -> None:
    """Leave alone the heads that an objective does not use: nothing would move them but weight decay."""
    used = set(objective.told_by.values())
    for name, head in transformer.heads.items():
        head.requires_grad_(name in used)
