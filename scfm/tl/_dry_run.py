"""What would it take? A few cells are timed before the long work."""

from __future__ import annotations

import time
from dataclasses import dataclass

from scfm.counts import CountSource
from scfm.models import FoundationModel
from scfm.models._device import peak_memory_gb
from scfm.models._stream import Job, embed_blocks

N_CELLS = 64


@dataclass(frozen=True)
class DryRun:
    """An estimate from a few cells; prints as a few lines.

    Parameters
    ----------
    model, device
        What was timed, and where.
    n_cells, n_timed
        Cells of the data, and those timed (the first rows).
    cells_per_second
        Of the timed cells.
    minutes
        For all cells at that speed.
    peak_memory_gb
        Highest memory of this process, or of the GPU, so far, in GB.
    tokens_per_cell, truncated_share
        Of the timed cells: mean tokens, and the share of cells that were cut.
    """

    model: str
    device: str
    n_cells: int
    n_timed: int
    cells_per_second: float
    minutes: float
    peak_memory_gb: float | None
    tokens_per_cell: float
    truncated_share: float

    def __str__(self) -> str:
        memory = "" if self.peak_memory_gb is None else f", peak memory {self.peak_memory_gb:.1f} GB"
        return (
            f"{self.model} on {self.device}: {self.cells_per_second:,.0f} cells/s in {self.n_timed} cells{memory}\n"
            f"{self.n_cells:,} cells would take about {self._duration}\n"
            f"{self.tokens_per_cell:,.0f} tokens per cell; {100 * self.truncated_share:.0f} % of the cells are cut"
        )

    __repr__ = __str__

    @property
    def _duration(self) -> str:
        if self.minutes < 1:
            return f"{max(1, round(60 * self.minutes))} seconds"
        return f"{self.minutes:.1f} minutes" if self.minutes < 180 else f"{self.minutes / 60:.1f} hours"


def dry_run_report(model: FoundationModel, source: CountSource, job: Job) -> DryRun:
    """Embed the first cells twice (the first time compiles and warms up) and time the second."""
    rows = slice(0, min(N_CELLS, source.shape[0]))
    n = rows.stop
    embed_blocks(model, source.blocks(N_CELLS, rows), job)
    begin = time.perf_counter()
    result = embed_blocks(model, source.blocks(N_CELLS, rows), job)
    seconds = max(time.perf_counter() - begin, 1e-9)
    return DryRun(
        model=model.card.name,
        device=str(model.device),
        n_cells=source.shape[0],
        n_timed=n,
        cells_per_second=n / seconds,
        minutes=source.shape[0] * seconds / max(n, 1) / 60,
        peak_memory_gb=peak_memory_gb(model.device),
        tokens_per_cell=float(result.per_cell["n_tokens"].mean()) if n else 0.0,
        truncated_share=float((result.per_cell["n_dropped"] > 0).mean()) if n else 0.0,
    )
