"""The report as one page that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError
from scfm.evaluation._metrics import METRICS

if TYPE_CHECKING:
    from scfm.evaluation._report import RobustnessReport

STYLE = """
:root { color-scheme: light; --line: #dde3ea; --soft: #f5f7fa; --ink: #1d2733; --dim: #5a6775; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 0; background: #fff; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; }
p.head, caption, .dim { color: var(--dim); }
.verdict { border-left: 4px solid #3b6ea5; background: var(--soft); padding: 10px 16px; margin: 12px 0; }
.verdict b { display: block; } .warn { border-left-color: #c0692b; background: #fdf5ee; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td.text, th.text { text-align: left; } thead th { vertical-align: bottom; border-bottom: 2px solid #b9c4d0; }
td small { color: var(--dim); } img { max-width: 100%; height: auto; } caption { text-align: left; padding: 4px 0; }
details { margin: 10px 0; } summary { cursor: pointer; color: #3b6ea5; } ul { padding-left: 20px; }
"""


def page(report: RobustnessReport) -> str:
    """The whole page."""
    body = "\n".join(_sections(report))
    title = "How robust is this embedding?"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{title}</h1>\n{body}\n</main></body></html>\n"
    )


def _sections(report: RobustnessReport) -> Iterator[str]:
    p = report.parameters
    yield (
        f'<p class="head">{p["n_cells"]:,} cells, {p["n_labels"]} labels ({escape(str(p["label_key"]))}), {p["n_batches"]} '
        f"batches ({escape(str(p['batch_key']))}). Intervals are 95 % bootstrap intervals over {p['n_units']:,} {p['over']}; "
        f"differences are paired, to PCA-50 on the same cells. Seed {p['seed']}.</p>"
    )
    for text in report.confounded:
        yield f'<div class="verdict warn"><b>Said first</b>{escape(text)}</div>'
    for name, text in report.verdicts.items():
        yield f'<div class="verdict"><b>{escape(name)}</b>{escape(text)}</div>'
    yield from _picture(report, "summary", "Scores", "Larger and darker is better; arrows say which direction is good.")
    yield _scores(report)
    yield from _picture(report, "stress", "Cells measured worse", "From mild to hard, with 95 % bands.")
    for metric in ("stressed kNN", "drift", "changed neighbours"):
        table = report.stress(metric)
        if len(table):
            yield _folded(f"{metric}: {METRICS[metric].formula}", _matrix(table, metric))
    pairs = report.pairs()
    if len(pairs.columns):
        yield "<h2>Labels carried over, reference → query</h2>"
        for metric in ("kNN transfer", "kNN drop", "linear transfer", "linear drop"):
            yield _folded(f"{metric}: {METRICS[metric].formula}", _matrix(report.pairs(metric), metric))
    yield from _picture(report, "umap", "UMAP", "For the eye only; no score is computed on it.")
    yield "<h2>Cost and leakage</h2>" + _costs(report)
    yield "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in report.notes) + "</ul>"
    yield _folded("Parameters and versions", _plain(pd.DataFrame({"value": report.parameters}).astype(str)))
    yield _folded("All metrics: formula and direction", _plain(_metrics(report)))


def _picture(report: RobustnessReport, kind: str, title: str, caption: str) -> Iterator[str]:
    if find_spec("matplotlib") is None:
        return
    try:
        figure = report.plot(kind)
    except ConfigError:  # nothing of that kind in this report
        return
    import matplotlib.pyplot as plt

    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    plt.close(figure)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    yield f'<h2>{title}</h2><p class="dim">{caption}</p><img alt="{title}" src="data:image/png;base64,{data}">'


def _scores(report: RobustnessReport) -> str:
    """All scores without detail, with intervals and paired differences."""
    table = report.table[report.table["detail"] == ""]
    names = [m for m in METRICS if (table["metric"] == m).any()]
    head = "".join(f"<th>{escape(m)} {_arrow(m)}</th>" for m in names)
    rows = []
    for embedding, own in table.groupby("embedding", sort=False):
        by = own.set_index("metric")
        cells = "".join(_cell(by.loc[m]) if m in by.index else "<td>-</td>" for m in names)
        leakage = escape(str(own["leakage"].iloc[0]))
        rows.append(f"<tr><td>{escape(str(embedding))} <small>{leakage}</small></td>{cells}</tr>")
    note = "Below each value: its interval, then the difference to PCA-50 (positive is better); * p < 0.05 after Holm."
    return (
        f'<div class="wide"><table><caption>{note}</caption><thead><tr><th>embedding</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(row: Any) -> str:
    if np.isnan(row["value"]):
        return "<td>-</td>"
    lines = [f"{row['value']:.3f}"]
    if not np.isnan(row["low"]):
        lines.append(f"<small>{row['low']:.3f} to {row['high']:.3f}</small>")
    if not np.isnan(row["difference"]):
        star = "*" if row["p_holm"] < 0.05 else ""
        lines.append(f"<small>{row['difference']:+.3f}{star}</small>")
    return f'<td style="background:{_colour(str(row.name), row["value"])}">{"<br>".join(lines)}</td>'


def _colour(metric: str, value: float) -> str:
    worst, best = METRICS[metric].limits
    good = float(np.clip((value - worst) / (best - worst), 0, 1))
    hue = {"bio": "59,110,165", "transfer": "118,88,170", "batch": "63,138,92"}.get(METRICS[metric].axis, "120,130,140")
    return f"rgba({hue},{0.45 * good:.2f})"


def _arrow(metric: str) -> str:
    return "↑" if METRICS[metric].better == "higher" else "↓"


def _matrix(table: pd.DataFrame, metric: str) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in table.columns)
    rows = []
    for name, row in table.iterrows():
        cells = "".join(
            "<td>-</td>" if np.isnan(v) else f'<td style="background:{_colour(metric, v)}">{v:.3f}</td>' for v in row
        )
        rows.append(f"<tr><td>{escape(str(name))}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>embedding {_arrow(metric)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _costs(report: RobustnessReport) -> str:
    table = report.costs.rename(
        columns={"cells_per_second": "cells/s", "peak_memory_gb": "peak memory of the process so far, GB"}
    )
    table = table.map(lambda v: v if isinstance(v, str) else "-" if np.isnan(v) else f"{v:,.1f}")
    wide = report.datasets.pivot_table(index="model", columns="dataset", values="leakage", aggfunc="first", sort=False)
    return _plain(table) + (_plain(wide.rename_axis(None).rename_axis(None, axis=1)) if len(wide) else "")


def _metrics(report: RobustnessReport) -> pd.DataFrame:
    used = [m for m in METRICS.values() if (report.table["metric"] == m.name).any()]
    rows = {m.name: {"axis": m.axis, "better": m.better, "formula": m.formula, "by": m.by} for m in used}
    return pd.DataFrame.from_dict(rows, orient="index")


def _plain(table: pd.DataFrame) -> str:
    head = "".join(f'<th class="text">{escape(str(c))}</th>' for c in table.columns)
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td>"
        + "".join(f'<td class="text" style="white-space:normal">{escape(str(v))}</td>' for v in row)
        + "</tr>"
        for name, row in zip(table.index, table.itertuples(index=False), strict=True)
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"
