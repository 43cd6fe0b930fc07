"""From the cells of a reference to the parts of an annotator."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts as counting
from scfm import models
from scfm.annotation import _choose
from scfm.annotation._calibration import Rejection
from scfm.annotation._cells import Cells, Reading
from scfm.annotation._classifiers import Codes
from scfm.annotation._core import MEMBERS, METHODS, Core, Views
from scfm.annotation._expression import Expression, cell_keys, gene_space, log_values, shared
from scfm.annotation._reference import labelled
from scfm.annotation._space import Rep, load_model, space_of, stored_vectors
from scfm.errors import ConfigError, require
from scfm.ontology import Ontology

log = logging.getLogger("scfm")

AUTO = "auto"


def fitted(
    adata: AnnData,
    label_key: str,
    *,
    model: str | Path | models.FoundationModel | None,
    method: str,
    batch_key: str | None,
    use_rep: Rep,
    query_var: pd.DataFrame | None,
    query_reading: Reading,
    reading: Reading,
    species: str | None,
    tree: Ontology | None,
    n_neighbors: int,
    max_cells: int,
    device: str | None,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """What an `Annotator` consists of; the arguments are those of its `fit`."""
    require("sklearn", "fitting an annotator needs scikit-learn", "annotate")
    wanted = _members_of(method, with_embedding=model is not None or isinstance(use_rep, str))
    known = labelled(adata.obs, label_key, batch_key, max_cells, seed)
    loaded = _needed_model(model, use_rep, wanted, reading.context, device)
    space = space_of(adata, loaded, use_rep) if _read_vectors(wanted) else None
    stored = None if space is None else stored_vectors(adata, space, use_rep)
    computing = loaded if space is not None and stored is None else None
    genes = None
    if _read_expression(wanted):
        spoken = species or (loaded.vocabulary.species if loaded is not None else "human")
        var = _var(adata, reading)
        genes = gene_space(var, spoken, reading.gene_key, reading.orthologues)
        if query_var is not None:
            genes = shared(genes, query_var, query_reading.gene_key, query_reading.orthologues)
    cells = Cells(adata, reading, computing, stored, genes)
    with tqdm(total=adata.n_obs, desc="reference", unit="cell", disable=not progress) as bar:
        vectors, counts = cells.read(known.rows, bar)
    there = with_genes(vectors, counts)
    if not there.all():
        log.warning("%d cells of the reference express no gene that is read and are left out", int((~there).sum()))
    codes = known.codes[there]
    groups = None if known.groups is None else known.groups[there]
    if len(np.unique(codes)) < 2:
        raise ConfigError("fewer than two classes are left after cells without genes; check the counts and gene names")
    expression = views_x = None
    keys = np.zeros(0, np.uint64)
    if counts is not None:
        counts = counts[there]
        values = log_values(counts)
        expression = Expression.fit(counts, values)
        views_x, keys = values[:, expression.selected], cell_keys(counts)
    elif vectors is not None:
        keys = vector_keys(vectors[there])
    views = Views(None if vectors is None else vectors[there], views_x)
    pairs, grouped = _choose.splits(codes, groups, seed)
    chosen = _Chosen.make(views, codes, len(known.classes), pairs, wanted, method, n_neighbors, seed)
    core = Core.fit(views, codes, len(known.classes), chosen.members, n_neighbors, seed)
    about = {
        **known.facts,
        "scfm": version("scfm"),
        "seed": seed,
        "asked": method,
        "n_without_genes": int((~there).sum()),
        "class_sizes": np.bincount(codes, minlength=len(known.classes)).tolist(),
        "held_out_groups": grouped,
        "scores": {name: float(np.mean(own)) for name, own in chosen.scores.items()},
    }
    log.info("%s", chosen.told(grouped))
    return {
        "classes": known.classes,
        "method": chosen.name,
        "core": core,
        "temperature": chosen.temperature,
        "rejection": chosen.rejection,
        "space": space,
        "genes": genes,
        "expression": expression,
        "about": about,
        "tree": None if tree is None else tree.among(known.classes),
        "keys": np.sort(keys),
        "held_out": chosen.held_out,
    }


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A method and how it is calibrated."""

    name: str
    members: tuple[str, ...]
    scores: Mapping[str, list[float]]
    temperature: float
    rejection: Rejection
    held_out: tuple[Codes, NDArray[np.float32]] | None

    @classmethod
    def make(
        cls,
        views: Views,
        codes: Codes,
        n_classes: int,
        pairs: _choose.Splits,
        wanted: tuple[str, ...],
        method: str,
        k: int,
        seed: int,
    ) -> _Chosen:
        methods = _choose.candidates(wanted)
        methods = methods if method == AUTO else {method: wanted}
        first = next(iter(methods))
        if not pairs:
            log.warning("no class has enough cells to hold some out: nothing is calibrated, and nothing is rejected")
            free = Rejection({}, np.full((n_classes + 1, 201), np.inf))
            return cls(first, methods[first], {}, 1.0, free, None)
        held = _choose.cross_validate(views, codes, n_classes, pairs, wanted, k, seed)
        scores = _choose.scores_of(held, methods)
        name = _choose.best_method(scores)
        fitted = _choose.calibrate(held, methods[name])
        said = (held.codes, fitted.proba.astype(np.float32))
        return cls(name, methods[name], scores, fitted.temperature, fitted.rejection, said)

    def told(self, grouped: bool) -> str:
        if not self.scores:
            return f"{self.name} was taken without cross-validation"
        what = "groups" if grouped else "cells"
        every = ", ".join(_choose.lines(self.scores))
        return f"{self.name} was taken; macro F1 on held-out {what} of the reference: {every}"


def _members_of(method: str, *, with_embedding: bool) -> tuple[str, ...]:
    """Members that are to be fitted."""
    if method != AUTO and method not in METHODS:
        raise ConfigError(f"method={method!r} is not one of {', '.join((AUTO, *METHODS))}")
    members = METHODS["stack"] if method == AUTO else METHODS[method]
    if with_embedding:
        return members
    left = tuple(m for m in members if MEMBERS[m].view != "embedding")
    if not left or (method != AUTO and left != members and method not in ("stack", "linear")):
        raise ConfigError(
            f"method={method!r} reads an embedding; pass model= or use_rep=, or method='expression-linear'"
        )
    return left


def _read_vectors(members: Iterable[str]) -> bool:
    return any(MEMBERS[m].view == "embedding" for m in members)


def _read_expression(members: Iterable[str]) -> bool:
    return any(MEMBERS[m].view != "embedding" for m in members)


def _needed_model(
    model: Any, use_rep: Rep, members: Iterable[str], context: Mapping[str, Any] | None, device: str | None
) -> models.FoundationModel | None:
    if not _read_vectors(members) or (isinstance(use_rep, str) and not isinstance(model, models.FoundationModel)):
        return None
    return load_model(model, context, device)


def _var(adata: AnnData, reading: Reading) -> pd.DataFrame:
    return counting.find(adata, layer=reading.layer, use_raw=reading.use_raw).var


def with_genes(vectors: Any, counts: Any) -> NDArray[np.bool_]:
    """(n,) cells of which something is known."""
    there = np.ones(len(vectors) if vectors is not None else counts.shape[0], dtype=bool)
    if vectors is not None:
        there &= ~np.isnan(vectors).any(axis=1)
    if counts is not None:
        there &= np.diff(counts.indptr) > 0
    return there


def vector_keys(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(n,) number of each cell by its vector."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    weights = np.random.default_rng(20261).integers(1, 2**63, bits.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.asarray((bits * weights).sum(axis=1, dtype=np.uint64))
