"""What does a run tell while it runs? A bar, a CSV, TensorBoard files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "reference",
    "eval_loss",
    "eval_reference",
    "learning_rate",
    "grad_norm",
    "tokens",
    "cells",
    "tokens_per_second",
    "seconds",
)
HISTORY = "log.csv"


class CsvLog(TrainerCallback):
    """One row per log, appended; a run that is resumed drops rows of steps that it does again.

    Parameters
    ----------
    path
        Of the file.
    terms
        Terms of the loss, which get columns of their own if there are several.
    """

    def __init__(self, path: Path, terms: Sequence[str]) -> None:
        self.path = path
        own = [f"{kind}_{term}" for kind in ("loss", "eval_loss") for term in terms] if len(terms) > 1 else []
        self.columns = [*COLUMNS, *own]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what belongs to steps before the one that is resumed."""
        if not state.is_world_process_zero:
            return
        rows = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [
                    r for r in csv.DictReader(file) if int(r["step"]) <= state.global_step and state.global_step > 0
                ]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log before each checkpoint, so that a resumed run misses nothing."""
        if control.should_save:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append a row."""
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore", restval="").writerow(
                {**logs, "step": state.global_step}
            )


class Bar(TrainerCallback):
    """A progress bar with the loss, the loss of the reference, and tokens per second.

    Parameters
    ----------
    desc
        What is going on.
    """

    def __init__(self, desc: str = "pretrain") -> None:
        self.desc = desc
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open it where the run stands."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.desc, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step on."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show what was logged."""
        if self.bar is not None and logs:
            names = {"loss": "loss", "reference": "reference", "tokens_per_second": "tokens/s", "eval_loss": "held out"}
            shown = {ours: f"{logs[name]:.4g}" for name, ours in names.items() if name in logs}
            self.bar.set_postfix(shown, refresh=False) if "loss" in logs else self.bar.write(
                f"step {state.global_step}: held-out loss {logs['eval_loss']:.4g}, reference {logs['eval_reference']:.4g}"
            ) if "eval_loss" in logs else None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        if self.bar is not None:
            self.bar.close()


class Board(TrainerCallback):
    """TensorBoard files, where torch can write them.

    Parameters
    ----------
    folder
        Where they go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open it; what an interrupted run wrote of later steps is passed over by TensorBoard."""
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)  # type: ignore[no-untyped-call]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write every number."""
        if self.writer is not None:
            for name, value in (logs or {}).items():
                self.writer.add_scalar(name, value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        if self.writer is not None:
            self.writer.close()


def tensorboard_is_there() -> bool:
    """Whether TensorBoard files can be written."""
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
