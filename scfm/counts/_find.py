"""Which matrix of an AnnData object holds raw counts?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scfm.counts._classify import examine
from scfm.counts._read import read
from scfm.counts._readers import RowReader, reader
from scfm.counts._recovery import Recovery
from scfm.counts._report import KINDS, Candidate, CountReport, CountsWarning
from scfm.counts._source import CountSource
from scfm.errors import CountsError

COUNT_LAYERS = ("counts", "raw_counts", "raw", "count", "umi", "umis", "umi_counts", "x_counts", "raw_count")
"""Names (in lower case) of layers that are looked at without being asked for."""


@dataclass(frozen=True)
class _Place:
    """A matrix that may hold counts."""

    where: str
    open: Callable[[], RowReader]
    var: pd.DataFrame


@dataclass(frozen=True)
class _Look:
    """A matrix that was looked at."""

    place: _Place
    reader: RowReader
    candidate: Candidate
    recovery: Recovery | None


def find(adata: AnnData | str | Path, *, layer: str | None = None, use_raw: bool | None = None) -> CountSource:
    """Find the raw counts.

    Looked at, in this order: ``X``, layers with a name like ``"counts"``, ``raw``. The first that holds raw counts is
    taken; failing that fractional counts; failing that normalised values from which the counts can be computed back,
    of these the matrix with most genes. Only a sample of the rows is read.

    Parameters
    ----------
    adata
        An AnnData object, which is not changed, or the path of a file (see `read`).
    layer
        Use this layer.
    use_raw
        True: use ``raw``. False: do not look at it.

    Returns
    -------
    CountSource
        Streams counts; its ``report`` says what was found.

    Raises
    ------
    CountsError
        If there are no cells, what was asked for is not there, or no usable counts are found. The message lists what
        each matrix holds, and the remedy.

    Warns
    -----
    CountsWarning
        What is used are not plain raw counts but fractions, or counts computed back from normalised values.
    """
    source, report = search(adata, layer=layer, use_raw=use_raw)
    if source is None:
        raise CountsError(_nothing(report))
    chosen = report.chosen
    if chosen is not None and chosen.kind not in ("counts", "empty"):
        says = "; ".join([KINDS[chosen.kind].meaning, *chosen.found])
        warnings.warn(f"{chosen.where} holds {says}", CountsWarning, stacklevel=2)
    return source


def search(
    adata: AnnData | str | Path, *, layer: str | None = None, use_raw: bool | None = None, thorough: bool = False
) -> tuple[CountSource | None, CountReport]:
    """As `find`, without an error or warning for what is found.

    Parameters
    ----------
    adata, layer, use_raw
        See `find`.
    thorough
        Look at every matrix, also after raw counts are found.

    Raises
    ------
    CountsError
        If there are no cells, or what was asked for is not there.
    """
    if not isinstance(adata, AnnData):
        adata = read(adata)
    if 0 in adata.shape:
        raise CountsError(f"there are {adata.n_obs:,} cells and {adata.n_vars:,} genes; nothing to read counts from")
    asked = _asked(adata, layer, use_raw)
    looks: list[_Look] = []
    unreadable: list[str] = []
    for place in _places(adata, layer, use_raw):
        try:
            opened = place.open()
        except CountsError as error:
            unreadable.append(f"{place.where}: {error}")
            continue
        looks.append(_Look(place, opened, *examine(place.where, opened, _frame(adata.obs))))
        if looks[-1].candidate.kind == "counts" and not thorough:
            break
    if not looks:
        raise CountsError("no matrix can be read. " + "; ".join(unreadable or ["X, layers and raw are all empty"]))
    candidates = tuple(look.candidate for look in looks)
    usable = [look for look in looks if look.candidate.usable]
    if not usable:
        elsewhere = tuple(_elsewhere(adata, {c.where for c in candidates}))
        return None, CountReport(None, None, candidates + elsewhere, asked)
    best = min(usable, key=_rank)
    report = CountReport(best.place.where, best.candidate.kind, candidates, asked)
    source = CountSource(best.place.where, best.place.var, adata.obs_names, report, best.reader, best.recovery)
    return source, report


def _rank(look: _Look) -> tuple[int, int]:
    """Raw before fractional before computed back; of the last the matrix with most genes."""
    usable = KINDS[look.candidate.kind].usable or 0
    return usable, -look.reader.shape[1] if look.recovery is not None else 0


def _asked(adata: AnnData, layer: str | None, use_raw: bool | None) -> str | None:
    if layer is not None and use_raw:
        raise CountsError(f"layer={layer!r} and use_raw=True exclude each other; give one of them")
    if layer is not None:
        if layer not in adata.layers:
            there = ", ".join(repr(name) for name in adata.layers if name is not None) or "no layers"
            raise CountsError(f"there is no layer {layer!r}; the object has {there}")
        return f"layer={layer!r}"
    if use_raw:
        if adata.raw is None:
            raise CountsError(
                "use_raw=True was asked for, but the object has no raw; leave use_raw out to have X looked at"
            )
        return "use_raw=True"
    return None


def _places(adata: AnnData, layer: str | None, use_raw: bool | None) -> Iterator[_Place]:
    """Matrices to look at, in order."""
    if layer is not None:
        yield _layer(adata, layer)
        return
    if not use_raw:
        whole = adata._adata_ref if adata.is_view else adata
        if whole.X is not None:
            yield _Place("X", lambda: _open(adata, lambda base: base.X), _frame(adata.var))
        named = {str(name).lower(): name for name in adata.layers if name is not None}
        yield from (_layer(adata, named[name]) for name in COUNT_LAYERS if name in named)
    if use_raw is not False and adata.raw is not None:
        yield _Place("raw", lambda: _open(adata, lambda base: base.raw.X, columns=False), _frame(adata.raw.var))


def _layer(adata: AnnData, name: str) -> _Place:
    return _Place(f"layers[{name!r}]", lambda: _open(adata, lambda base: base.layers[name]), _frame(adata.var))


def _frame(annotation: Any) -> pd.DataFrame:
    """Annotation as a data frame, also that of a lazily read object."""
    return annotation if isinstance(annotation, pd.DataFrame) else annotation.to_memory()


def _elsewhere(adata: AnnData, known: set[str]) -> Iterator[Candidate]:
    """Other matrices, for the error message."""
    others = [_layer(adata, name) for name in adata.layers if name is not None]
    for place in (*_places(adata, None, None), *others):
        if place.where in known:
            continue
        known.add(place.where)
        try:
            yield examine(place.where, place.open(), _frame(adata.obs))[0]
        except CountsError:
            continue


def _open(adata: AnnData, matrix: Callable[[AnnData], Any], columns: bool = True) -> RowReader:
    """Reader of a matrix; that of a view reads the rows and columns of its parent and copies nothing."""
    if not adata.is_view:
        return reader(matrix(adata))
    base = adata._adata_ref
    rows = _positions(adata._oidx, base.n_obs)
    wanted = _positions(adata._vidx, base.n_vars) if columns else None
    return reader(matrix(base)).select(rows, wanted)


def _positions(index: Any, length: int) -> NDArray[np.int64] | None:
    """Positions that an index of a view stands for; None: all, in order."""
    everything = np.arange(length)
    chosen = everything[index if isinstance(index, slice) else np.asarray(index)]
    return None if np.array_equal(chosen, everything) else chosen


def _nothing(report: CountReport) -> str:
    """The error when there are no usable counts."""
    looked = [c for c in report.candidates if not c.usable]
    better = [c for c in report.candidates if c.kind == "counts"]
    asked = (
        f"{report.asked} was asked for, but it holds no usable counts"
        if report.asked
        else "no usable counts were found"
    )
    lines = [f"{asked}:", *(f"  - {c}" for c in looked)]
    if better:
        first = better[0].where
        how = (
            "use_raw=True"
            if first == "raw"
            else f"layer={first[8:-2]!r}"
            if first != "X"
            else "neither layer= nor use_raw="
        )
        lines.append(f"{first} does hold raw counts: pass {how}")
    else:
        lines += [f"{c.where}: {c.remedy}" for c in looked[:1]]
    return "\n".join(lines)
