"""How is the result read? A tidy table, a text, one HTML file, pictures, and plain types for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.errors import ControlError
from scfm.evaluation._metrics import METRICS
from scfm.evaluation._space import Design
from scfm.evaluation._table import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = (
    "bio total", "batch total", "kNN within", "kNN transfer", "kNN drop", "linear transfer", "same-batch neighbours",
    "batch ASW", "batch probe",
)  # fmt: skip
"""What the text shows first."""
NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm")
COUNTS = ("n_cells", "n_units", "n_subsamples")


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """What `scfm.tl.robustness` found. Print it, or take `to_dataframe`, `to_html`, `plot`.

    Parameters
    ----------
    table
        One row per embedding and score; see `to_dataframe`.
    verdicts
        Three sentences per embedding that is no baseline.
    confounded
        What cannot be told apart in these cells, the worst first.
    notes
        What a reader should know: cells left out, metrics that are absent, genes in common.
    costs
        Per embedding: seconds, cells per second, peak memory in GB, device.
    datasets
        Per data set and model: whether the model knows it.
    parameters
        Of the call, and versions of the libraries.
    failed
        Controls that do not score as they must: the report is then not printed.
    vectors, design
        Embeddings of the cells that were scored, for pictures; not stored in files.
    """

    table: pd.DataFrame
    verdicts: Mapping[str, str]
    confounded: Sequence[str]
    notes: Sequence[str]
    costs: pd.DataFrame
    datasets: pd.DataFrame
    parameters: Mapping[str, Any]
    failed: Sequence[str] = ()
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    design: Design | None = field(default=None, repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """The tidy table, a copy.

        Returns
        -------
        One row per embedding and score: ``value`` with its 95 % interval (``low``, ``high``), the paired ``difference``
        to PCA-50 (positive is better, whatever the direction of the metric) with its interval, p-value and p-value
        after Holm's correction over the embeddings, the number of cells and of bootstrap units, and the leakage.
        """
        return self.table.copy()

    def summary(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Values of some scores without detail, embeddings as rows; None: the usual ones.

        Parameters
        ----------
        metrics
            Names as in `metric_table`.
        """
        wanted = [m for m in (metrics or SUMMARY) if ((self.table["metric"] == m) & (self.table["detail"] == "")).any()]
        plain = self.table[(self.table["detail"] == "") & self.table["metric"].isin(wanted)]
        return _wide(plain, "metric", self.embeddings, wanted)

    def stress(self, metric: str = "stressed kNN") -> pd.DataFrame:
        """Values per alteration, embeddings as rows.

        Parameters
        ----------
        metric
            ``"stressed kNN"``, ``"drift"`` or ``"changed neighbours"``.
        """
        found = self.table[(self.table["axis"] == "stress") & (self.table["metric"] == metric)]
        return _wide(found, "detail", self.embeddings, list(dict.fromkeys(found["detail"])))

    def pairs(self, metric: str = "kNN transfer") -> pd.DataFrame:
        """Values per ordered pair of batches (reference -> query), embeddings as rows."""
        found = self.table[(self.table["metric"] == metric) & (self.table["detail"] != "")]
        return _wide(found, "detail", self.embeddings, list(dict.fromkeys(found["detail"])))

    @property
    def embeddings(self) -> list[str]:
        """Names of all that was compared, in order."""
        return list(dict.fromkeys(self.table["embedding"]))

    def __str__(self) -> str:
        self.check()
        blocks = [*self._verdict_lines(), "", self._head(), "", _text(self.summary())]
        if len(self.stress()):
            blocks += ["", "Macro F1 of labels of altered cells (15 unaltered neighbours)", _text(self.stress())]
        if len(self.pairs().columns) > 0:
            blocks += ["", "Macro F1 of labels carried over, kNN, reference -> query", _text(self.pairs())]
        blocks += ["", "Cost and leakage", self._costs_text(), "", *(f"- {note}" for note in self.notes)]
        return "\n".join(blocks)

    def __repr__(self) -> str:
        if self.failed:
            return f"RobustnessReport(not to be trusted: {'; '.join(self.failed)})"
        return f"RobustnessReport({len(self.embeddings)} embeddings, {len(self.table)} scores; print it to read it)"

    def check(self) -> None:
        """Raise if a control does not score as it must.

        Raises
        ------
        ControlError
            With the control, its score and what was expected.
        """
        if self.failed:
            raise ControlError(
                f"the report is not printed, because {'; '.join(self.failed)}. The table is in .to_dataframe(); look for "
                "misaligned rows, too few cells per label, or labels that are no labels"
            )

    def _verdict_lines(self) -> list[str]:
        return [line for text in self.verdicts.values() for line in (text, "")][:-1]

    def _head(self) -> str:
        p = self.parameters
        return (
            f"{p['n_cells']:,} cells, {_many(p['n_labels'], 'label', 'labels')}, {_many(p['n_batches'], 'batch', 'batches')}; "
            "95 % intervals and differences to "
            f"PCA-50 by {p['n_boot']} bootstrap replicates over {p['n_units']:,} {p['over']}; seed {p['seed']}"
        )

    def _costs_text(self) -> str:
        table = self.costs.copy()
        table["leakage"] = [self._leakage(e) for e in table.index]
        return _text(table)

    def _leakage(self, embedding: str) -> str:
        found = self.table.loc[self.table["embedding"] == embedding, "leakage"]
        return str(found.iloc[0]) if len(found) else ""

    def plot(self, kind: str = "summary") -> Figure:
        """A picture: ``"summary"`` (table of scores, biology against batch), ``"stress"`` (curves with bands), ``"umap"``.

        Raises
        ------
        ControlError
            If a control does not score as it must.
        MissingDependencyError
            If matplotlib is not installed.
        """
        from scfm.evaluation._figures import draw

        self.check()
        return draw(self, kind)

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page, written to ``path`` if that is given; nothing is loaded from elsewhere.

        Raises
        ------
        ControlError
            If a control does not score as it must.
        """
        from scfm.evaluation._html import page

        self.check()
        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_dict(self) -> dict[str, Any]:
        """As plain types that an h5ad holds; see `from_dict`."""
        return {
            "table": _columns(self.table),
            "verdicts": _named(self.verdicts),
            "confounded": _texts(self.confounded),
            "notes": _texts(self.notes),
            "costs": _columns(self.costs.reset_index()),
            "datasets": _columns(self.datasets),
            "parameters": dict(self.parameters),
            "failed": _texts(self.failed),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobustnessReport:
        """The inverse of `to_dict`, without the embeddings."""
        table = pd.DataFrame({c: _column(c, data["table"][c]) for c in COLUMNS})
        names = [str(n) for n in data["verdicts"]["name"]]
        costs = pd.DataFrame({k: np.asarray(v) for k, v in data["costs"].items()})
        order = ["embedding", "seconds", "cells_per_second", "peak_memory_gb", "device"]
        return cls(
            table=table,
            verdicts=dict(zip(names, map(str, data["verdicts"]["text"]), strict=True)),
            confounded=[str(x) for x in data["confounded"]],
            notes=[str(x) for x in data["notes"]],
            costs=costs[order].set_index("embedding"),
            datasets=pd.DataFrame(
                {k: np.asarray(data["datasets"][k], dtype=object) for k in ("dataset", "model", "leakage")}
            ),
            parameters={k: v.item() if isinstance(v, np.generic) else v for k, v in data["parameters"].items()},
            failed=[str(x) for x in data["failed"]],
        )


def _many(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def _wide(table: pd.DataFrame, column: str, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    out = table.pivot_table(index="embedding", columns=column, values="value", sort=False, dropna=False)
    out = out.reindex(index=[r for r in rows if r in out.index], columns=list(columns))
    out.columns.name = out.index.name = None
    return out


def _text(table: pd.DataFrame) -> str:
    titles = {c: _arrow(str(c)) for c in table.columns}
    shown = table.rename(columns=titles)
    return shown.to_string(float_format=lambda x: f"{x:,.3f}" if abs(x) < 100 else f"{x:,.0f}", na_rep="-")


def _arrow(name: str) -> str:
    if name not in METRICS:
        return name
    return f"{name} {'↑' if METRICS[name].better == 'higher' else '↓'}"


def _columns(table: pd.DataFrame) -> dict[str, NDArray[Any]]:
    return {
        str(c): table[c].to_numpy(dtype=np.float64 if table[c].dtype.kind in "fiu" else object)
        if table[c].dtype.kind in "fiu"
        else _texts(table[c])
        for c in table.columns
    }


def _column(name: str, values: Any) -> NDArray[Any]:
    if name in NUMBERS:
        return np.asarray(values, dtype=np.float64)
    return np.asarray(values).astype(np.int64) if name in COUNTS else np.asarray(values, dtype=object)


def _texts(values: Any) -> NDArray[Any]:
    return np.array([str(v) for v in values], dtype=object)


def _named(texts: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    return {"name": _texts(texts.keys()), "text": _texts(texts.values())}
