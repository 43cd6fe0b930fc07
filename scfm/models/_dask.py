"""Embedding on a dask scheduler: each portion of rows on the worker that has it, one model per worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from scfm.counts import CountSource
from scfm.models._model import FoundationModel
from scfm.models._stream import BLOCK_ROWS, Embedding, Job, embed_blocks, join

ROWS_PER_TASK = 8 * BLOCK_ROWS


def embed_dask(model: FoundationModel, source: CountSource, job: Job, progress: Any = None) -> Embedding:
    """As `embed_blocks`, on the user's dask scheduler: a local one, or the cluster of the current client.

    Parameters
    ----------
    model
        Sent to every worker once.
    source
        Counts in a dask array.
    job, progress
        See `embed_blocks`; the bar moves when all is done.
    """
    import dask

    portions = source.delayed(ROWS_PER_TASK)
    if not portions:
        return embed_blocks(model, (), job, progress)
    shared = _share(model)
    embed = dask.delayed(_embed_portion)
    result = join(dask.compute(*(embed(shared, part, _job_of(job, rows)) for rows, part in portions)))
    if progress is not None:
        progress.update(len(result.cells))
    return result


def _embed_portion(model: FoundationModel, source: CountSource, job: Job) -> Embedding:
    return embed_blocks(model, source.blocks(BLOCK_ROWS), job)


def _job_of(job: Job, rows: slice) -> Job:
    """The job of some rows, as a job of its own."""
    return replace(
        job,
        context={name: v[rows] if np.ndim(v) else v for name, v in job.context.items()},
        groups=None if job.groups is None else job.groups[rows],
    )


def _share(model: FoundationModel) -> Any:
    """The model in the hands of every worker: scattered on a cluster, else one object of the graph."""
    import dask

    try:
        from distributed import get_client

        return get_client().scatter(model, broadcast=True, hash=False)
    except (ImportError, ValueError):
        return dask.delayed(model, traverse=False)
