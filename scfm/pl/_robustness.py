"""`scfm.pl.robustness`: pictures of a robustness report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from anndata import AnnData

from scfm.evaluation import RobustnessReport
from scfm.get._robustness import robustness as stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def robustness(
    report: RobustnessReport | AnnData,
    kind: Literal["summary", "stress", "umap"] = "summary",
    *,
    key: str | None = None,
) -> Figure:
    """Draw a report.

    Parameters
    ----------
    report
        Of `scfm.tl.robustness`, or the AnnData that it was written into.
    kind
        ``summary``: table of scores as dots, and biology against batch; ``stress``: curves with 95 % bands; ``umap``:
        each embedding by label and by batch (only with the report itself: files do not hold the embeddings).
    key
        Of ``.uns``, where the report was written under another than the usual one.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If there is no report, no such kind, or nothing to draw.
    ControlError
        If a control of the report does not score as it must.
    """
    return (report if isinstance(report, RobustnessReport) else stored(report, key)).plot(kind)
