"""`scfm.pl.training`: curves of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm.errors import ConfigError
from scfm.pl._pyplot import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scfm.training import Finetuned, Run

LOG = "log.csv"
SERIES = (
    ("loss", "training", "C0", "-"),
    ("reference", "training, without looking", "C0", ":"),
    ("eval_loss", "held out", "C1", "-"),
    ("eval_reference", "held out, without looking", "C1", ":"),
)
SMOOTHED = 20
"""Logs over which a running median is drawn, where there are many more."""


def training(run: Run | Finetuned | pd.DataFrame | str | Path) -> Figure:
    """Draw losses, learning rate and speed of a run.

    Parameters
    ----------
    run
        What `scfm.training.pretrain` or `scfm.tl.finetune` returned, its folder (also of a run that is going on), its
        ``log.csv``, or that as a table.

    Returns
    -------
    matplotlib.figure.Figure
        Losses beside those of guessing without looking, which a model that learns lies below; a part per term of the loss
        where there are several; learning rate and tokens per second.

    Raises
    ------
    ConfigError
        If there is no log, or nothing is in it yet.
    MissingDependencyError
        If matplotlib is not installed.
    """
    table: Any = _table(run)
    plt = pyplot()
    terms = sorted(
        {c.removeprefix("eval_").removeprefix("loss_") for c in table if c.startswith(("loss_", "eval_loss_"))}
    )
    figure, axes = plt.subplots(
        1, 2 + bool(terms), figsize=(5 * (2 + bool(terms)), 3.4), layout="constrained", squeeze=False
    )
    left, right = axes[0][0], axes[0][-1]
    for column, name, colour, style in SERIES:
        _curve(left, table, column, name, colour, style)
    left.set(xlabel="step", ylabel="loss", title="loss")
    left.legend(fontsize=8)
    for number, term in enumerate(terms):
        for prefix, style in (("loss_", "-"), ("eval_loss_", "--")):
            _curve(
                axes[0][1],
                table,
                prefix + term,
                prefix.replace("loss_", "").replace("eval_", "held out ") + term,
                f"C{number}",
                style,
            )
    if terms:
        axes[0][1].set(xlabel="step", title="terms of the loss")
        axes[0][1].legend(fontsize=8)
    _curve(right, table, "learning_rate", "learning rate", "C2", "-")
    right.set(xlabel="step", ylabel="learning rate", title="learning rate and speed")
    if table.get("tokens_per_second", pd.Series(dtype=float)).notna().any():
        beside = right.twinx()
        _curve(beside, table, "tokens_per_second", "tokens/s", "C7", "-")
        beside.set_ylabel("tokens per second", color="C7")
    return figure


def _table(run: Any) -> pd.DataFrame:
    if isinstance(run, str | Path):
        path = Path(run).expanduser()
        file = path / LOG if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(
                f"there is no log {file}; name the folder of a run of scfm.training.pretrain or scfm.tl.finetune"
            )
        table = pd.read_csv(file)
    else:
        held = run if isinstance(run, pd.DataFrame) else getattr(run, "history", None)
        if not isinstance(held, pd.DataFrame):
            raise ConfigError(f"{type(run).__name__} is no run; pass the run, its folder or its log.csv")
        table = held
    if "step" not in table or not len(table) or not {"loss", "eval_loss"} & set(table):
        raise ConfigError("nothing is logged yet: there is no step to draw")
    return table


def _curve(axes: Any, table: pd.DataFrame, column: str, name: str, colour: str, style: str) -> None:
    if column not in table:
        return
    rows = table[table[column].notna()]
    if not len(rows):
        return
    values = rows[column].astype(float)
    if len(rows) > 5 * SMOOTHED:
        axes.plot(rows["step"], values, color=colour, alpha=0.25, linewidth=0.8)
        values = values.rolling(SMOOTHED, min_periods=1, center=True).median()
    axes.plot(rows["step"], values, color=colour, linestyle=style, label=name, marker="." if len(rows) < 30 else None)
