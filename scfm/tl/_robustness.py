"""`scfm.tl.robustness`: does an embedding follow biology, or the assay, the depth, the gene panel?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts, models
from scfm.errors import ConfigError, GeneMatchError, require
from scfm.evaluation import RobustnessReport, run_plan
from scfm.evaluation._baselines import BASELINES
from scfm.evaluation._confounding import UNEVEN, composition_distance
from scfm.evaluation._experiment import MOST_EMPTY, Outcome, Plan, steps
from scfm.evaluation._leakage import Dataset, leakage, summary
from scfm.evaluation._metrics import absent
from scfm.evaluation._question import Measurement, Question, question, versions
from scfm.evaluation._stress import stresses
from scfm.evaluation._subjects import OfArray, OfBaseline, OfModel, Subject
from scfm.evaluation._table import tidy
from scfm.evaluation._verdict import verdict
from scfm.get._slots import ROBUSTNESS, plain
from scfm.tokenizers import from_obs
from scfm.tokenizers._context import resolve_context

log = logging.getLogger("scfm")

LINEAR = "scfm-mini"
"""The linear zero-shot baseline."""
LEAST_BOOT = 50
Data: TypeAlias = AnnData | Mapping[str, AnnData]
Models: TypeAlias = (
    str | Path | models.FoundationModel | Sequence[str | Path | models.FoundationModel] | Mapping[str, Any]
)


def robustness(
    adata: Data,
    *,
    batch_key: str | None = "assay",
    label_key: str = "cell_type",
    models: Models | None = None,
    use_rep: str | Sequence[str] | Mapping[str, NDArray[Any]] | None = None,
    baselines: Sequence[str] | None = None,
    controls: bool = True,
    group_key: str | None = None,
    stress: Sequence[str] = ("depth", "panel", "dropout", "ambient", "doublets"),
    align: Sequence[Literal["center", "harmony"]] = ("center",),
    distance: Literal["cosine", "euclidean"] = "cosine",
    n_boot: int = 500,
    n_draws: int = 3,
    max_cells: int = 8000,
    n_subsamples: int = 3,
    min_cells: int = 10,
    studies: Mapping[str, str] | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_tokens: int | Literal["auto"] = "auto",
    key_added: str = ROBUSTNESS,
    seed: int = 0,
    progress: bool = True,
) -> RobustnessReport:
    """Score embeddings beside baselines and controls on the same cells, splits and alterations.

    Parameters
    ----------
    adata
        Annotated data with raw counts; or several by name, each with genes of its own: models read each set's own
        genes, baselines the genes in common, and absence is never a zero. Only read, except for ``.uns[key_added]``.
    batch_key
        Column of ``obs`` with the assay or batch; None: one batch. Where a set of several lacks it, its name is the batch.
    label_key
        Column of ``obs`` with the cell types. Cells without a label are left out.
    models
        Names, folders or loaded models, or these by the name they shall have. None: ``scfm-mini``, unless ``use_rep``
        is given.
    use_rep
        Embeddings that are there already: keys of ``.obsm``, or arrays (n_obs, d) by name. They cannot be altered, so
        they have no stress rows.
    baselines
        Of ``pca``, ``hvg``, ``harmony``, ``scvi``, ``random-projection``, ``scfm-mini`` (the linear zero-shot baseline).
        None: all that are installed; the missing ones are named. PCA-50 always takes part: differences are to it.
    controls
        Also score shuffled rows, random vectors and an oracle. If one of them does not score as it must, the report
        refuses to be printed.
    group_key
        Column of ``obs`` with what was sampled (donor): bootstrap over its values instead of over cells.
    stress
        Alterations: thinned counts, gene panels, lost genes, ambient counts, doublets.
    align
        Corrections of each model's embedding (see `scfm.tl.align`) that are scored beside it.
    distance
        ``cosine`` (vectors are scaled to unit length) or ``euclidean``.
    n_boot, n_draws
        Bootstrap replicates, and draws of each alteration and level.
    max_cells, n_subsamples
        With more cells, so many stratified subsamples of that size are scored.
    min_cells
        Labels with fewer cells are left out.
    studies
        Publication (doi, or "Author et al. year") of each data set by name, for the leakage column; None: as told in
        ``.uns["source"]["publication"]``.
    layer, use_raw, gene_key, orthologues, context, device, dtype, batch_tokens
        See `scfm.tl.embed`.
    key_added
        Key of ``.uns`` for the report as plain types (`scfm.get.robustness` reads it); not for several sets.
    seed
        Of subsamples, folds, alterations and bootstrap.
    progress
        Show a progress bar.

    Returns
    -------
    RobustnessReport
        Print it; ``.to_dataframe()``, ``.to_html(path)``, ``.plot()``. After Ctrl-C with what was finished.

    Raises
    ------
    ConfigError, CountsError, GeneMatchError, MissingDependencyError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> report = scfm.tl.robustness(
    ...     adata, batch_key=None, label_key="bulk_labels", use_raw=True, stress=("depth",), progress=False
    ... )
    >>> report.stress().loc["scfm-mini", "depth 10 %"] > 0.2
    True
    """
    require("sklearn", "metrics of embeddings need scikit-learn", "robustness")
    data = _by_name(adata)
    _check_numbers(n_boot, n_draws, max_cells, n_subsamples, min_cells)
    if distance not in ("cosine", "euclidean"):
        raise ConfigError(f"distance={distance!r} is neither 'cosine' nor 'euclidean'")
    asked = stresses([stress] if isinstance(stress, str) else stress)
    measured = [_measurement(name, a, layer, use_raw, studies) for name, a in data.items()]
    asks = question(measured, batch_key, label_key, group_key, min_cells)
    arrays = _arrays(data, use_rep, asks.usable)
    loaded = _loaded(models, use_rep, {"device": device, "dtype": dtype})
    options = {"gene_key": gene_key, "orthologues": orthologues, "batch_tokens": batch_tokens}
    notes = list(asks.notes)
    subjects: list[Subject] = [OfArray(name, x) for name, x in arrays.items()]
    subjects += [_of_model(name, m, "model", data, asks, context, options) for name, m in loaded.items()]
    subjects = _with_baselines(subjects, baselines, data, asks, options, notes)
    for method in align:
        if method not in ("center", "harmony"):
            raise ConfigError(f"align={method!r} is neither 'center' nor 'harmony'")
        _require_harmony(method)
    plan = Plan(
        parts=asks.parts,
        design=asks.design,
        usable=asks.usable,
        subjects=subjects,
        stress=asked,
        align=align,
        with_controls=controls,
        distance=distance,
        max_cells=max_cells,
        n_subsamples=n_subsamples,
        n_boot=n_boot,
        n_draws=n_draws,
        seed=seed,
    )
    with tqdm(total=steps(plan), desc="robustness", unit="step", disable=not progress) as bar:
        outcome = run_plan(plan, bar)
    keys = {"batch_key": batch_key, "label_key": label_key, "group_key": group_key}
    report = _report(outcome, plan, asks, measured, [*notes, *outcome.notes], keys)
    if isinstance(adata, AnnData):
        adata.uns[key_added] = plain(report.to_dict())
    for failure in report.failed:
        log.error("a control does not score as it must: %s", failure)
    return report


def _by_name(adata: Data) -> dict[str, AnnData]:
    data = {"data": adata} if isinstance(adata, AnnData) else dict(adata) if isinstance(adata, Mapping) else {}
    wrong = [type(a).__name__ for a in data.values() if not isinstance(a, AnnData)]
    if not data or wrong:
        found = f"a {wrong[0]} in it" if wrong else f"{type(adata).__name__}"
        raise ConfigError(
            f"robustness works on an AnnData, or on several by name, not on {found}; open files with scfm.counts.read(path), "
            "or use the command scfm robustness FILE"
        )
    return data


def _check_numbers(n_boot: int, n_draws: int, max_cells: int, n_subsamples: int, min_cells: int) -> None:
    least = {
        "n_boot": (n_boot, LEAST_BOOT),
        "n_draws": (n_draws, 1),
        "max_cells": (max_cells, 100),
        "n_subsamples": (n_subsamples, 1),
        "min_cells": (min_cells, 5),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ConfigError(f"{name}={value}; at least {lowest} is needed")


def _measurement(
    name: str, adata: AnnData, layer: str | None, use_raw: bool | None, studies: Mapping[str, str] | None
) -> Measurement:
    source = counts.find(adata, layer=layer, use_raw=use_raw)
    told = adata.uns.get("source", {})
    study = str(told.get("publication", "")) if isinstance(told, Mapping) else ""
    return Measurement(name, source, adata.obs, (studies or {}).get(name, study))


def _arrays(data: Mapping[str, AnnData], use_rep: Any, usable: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Embeddings that are there, over all cells of all sets."""
    if use_rep is None:
        return {}
    n = len(usable)
    if isinstance(use_rep, Mapping):
        found = {str(name): np.asarray(x) for name, x in use_rep.items()}
    else:
        keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
        for key in keys:
            for name, a in data.items():
                if key not in a.obsm:
                    there = ", ".join(map(repr, a.obsm)) or "none"
                    raise ConfigError(f"use_rep={key!r} is not in obsm of {name}; there are {there}")
        found = {key: np.concatenate([np.asarray(a.obsm[key]) for a in data.values()]) for key in keys}
    for name, x in found.items():
        if x.ndim != 2 or len(x) != n or x.dtype.kind not in "fiu":
            raise ConfigError(f"use_rep {name!r} has shape {x.shape} and type {x.dtype}; expected numbers, ({n:,}, d)")
        empty = np.asarray(~np.isfinite(x.astype(np.float64)).all(axis=1))
        if empty[usable].mean() > MOST_EMPTY:
            raise ConfigError(
                f"use_rep {name!r} has no finite vector for {empty[usable].sum():,} of the {usable.sum():,} cells with a "
                "label; an embedding with that many gaps cannot be compared"
            )
        found[name] = np.where(empty[:, None], np.nan, x)
    return found


def _loaded(asked: Models | None, use_rep: Any, place: Mapping[str, Any]) -> dict[str, models.FoundationModel]:
    if asked is None:
        asked = () if use_rep is not None else (LINEAR,)
    if isinstance(asked, Mapping):
        named = {str(name): _open(m) for name, m in asked.items()}
    else:
        many = [asked] if isinstance(asked, str | Path | models.FoundationModel) else list(asked)
        opened = [_open(m) for m in many]
        names = [m.card.name for m in opened]
        named = {
            n if names.count(n) == 1 else f"{n} ({i + 1})": m
            for i, (n, m) in enumerate(zip(names, opened, strict=True))
        }
    return {name: m.to(place["device"], place["dtype"]) for name, m in named.items()}


def _open(model: Any) -> models.FoundationModel:
    return model if isinstance(model, models.FoundationModel) else models.load(model)


def _of_model(
    name: str,
    model: models.FoundationModel,
    kind: Literal["model", "baseline"],
    data: Mapping[str, AnnData],
    asks: Question,
    context: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> OfModel:
    model = model.for_context(context)
    known = model.tokenizer.context_options
    contexts = []
    for a in data.values():
        facts = from_obs(known, context, a.obs)
        resolve_context(known, facts, a.n_obs)
        contexts.append(facts)
    starts = [int(part.rows[0]) if len(part.rows) else 0 for part in asks.parts]
    subject = OfModel(name, model, kind, contexts=contexts, starts=starts, **options)
    for part in asks.parts:
        subject.match_of(part)
    return subject


def _with_baselines(
    subjects: list[Subject],
    asked: Sequence[str] | None,
    data: Mapping[str, AnnData],
    asks: Question,
    options: Mapping[str, Any],
    notes: list[str],
) -> list[Subject]:
    """All subjects, PCA first."""
    several = len(asks.design.batches) > 1
    names = [*BASELINES, LINEAR] if asked is None else list(dict.fromkeys(["pca", *asked]))
    unknown = [n for n in names if n not in (*BASELINES, LINEAR)]
    if unknown:
        raise ConfigError(f"baselines={unknown[0]!r} is none of {', '.join([*BASELINES, LINEAR])}")
    first: list[Subject] = []
    for name in names:
        if name == LINEAR:
            if LINEAR not in {s.name for s in subjects}:
                first += _linear(data, asks, options, notes, must=asked is not None)
            continue
        baseline = BASELINES[name]
        if baseline.batches and not several:
            notes.append(f"{baseline.title} corrects batches, and there is one: left out.")
        elif baseline.is_here:
            first.append(OfBaseline(baseline))
        elif asked is None:
            notes.append(f"{baseline.title} is not installed and was left out: {baseline.install}")
        else:
            _missing(baseline.title, baseline.install)
    return [*first, *subjects]


def _linear(
    data: Mapping[str, AnnData], asks: Question, options: Mapping[str, Any], notes: list[str], *, must: bool
) -> list[Subject]:
    try:
        return [_of_model(LINEAR, models.load(LINEAR), "baseline", data, asks, None, options)]
    except GeneMatchError as error:
        if must:
            raise
        notes.append(f"{LINEAR}, the linear zero-shot baseline, was left out: {str(error).split('. ')[0]}.")
        return []


def _missing(what: str, line: str) -> None:
    from scfm.errors import MissingDependencyError

    raise MissingDependencyError(f"{what} is not installed: {line}")


def _require_harmony(method: str) -> None:
    baseline = BASELINES["harmony"]
    if method == "harmony" and not baseline.is_here:
        _missing("harmonypy", baseline.install)


def _report(
    outcome: Outcome,
    plan: Plan,
    asks: Question,
    measured: Sequence[Measurement],
    notes: list[str],
    keys: Mapping[str, str | None],
) -> RobustnessReport:
    datasets, words = _leakage(outcome, plan, measured)
    for line in sorted(set(absent().values())):
        names = ", ".join(m for m, extra in absent().items() if extra == line)
        notes.append(f"Not in the table, because the library is not installed: {names} ({line}).")
    for s in plan.subjects:
        if s.n_known:
            notes.append(f"{s.n_known:,} of the cells are, count by count, in the corpus of {s.name}.")
    known = plan.design[plan.usable]
    if plan.align and len(known.batches) > 1 and composition_distance(known) > UNEVEN:
        notes.append(
            f"The batches differ in composition (mean total variation distance {composition_distance(known):.2f}): a row with "
            "'+ center' then moves cell types of one batch onto others of the next. Centring hurts there."
        )
    if outcome.over == "groups" and outcome.n_units < 6:
        notes.append(f"With {outcome.n_units} groups intervals can only be wide: read them as ranges.")
    judged = [s for s, kind in outcome.kinds.items() if kind in ("model", "embedding", "aligned")]
    judged = judged or [s for s, kind in outcome.kinds.items() if s == LINEAR]
    costs = pd.DataFrame.from_dict({s: asdict(c[0]) for s, c in outcome.costs.items()}, orient="index")
    return RobustnessReport(
        table=tidy(outcome, words),
        verdicts={
            s: verdict(outcome, s, asks.confounded, words.get(s, "unknown"), people_known=asks.people_known)
            for s in judged
        },
        confounded=asks.confounded,
        notes=list(dict.fromkeys(notes)),
        costs=costs.rename_axis("embedding"),
        datasets=datasets,
        parameters={
            **{name: "none" if key is None else key for name, key in keys.items()},
            "n_cells": int(min(plan.usable.sum(), plan.max_cells)),
            "n_cells_all": int(plan.usable.sum()),
            "n_subsamples": max((len(c) for c in outcome.costs.values()), default=0),
            "n_labels": len(known.labels),
            "n_batches": len(known.batches),
            "n_boot": plan.n_boot,
            "n_draws": plan.n_draws,
            "n_units": outcome.n_units,
            "over": outcome.over,
            "distance": plan.distance,
            "seed": plan.seed,
            "finished": outcome.finished,
            **versions(),
        },
        failed=outcome.failed,
        vectors=outcome.vectors,
        design=outcome.design,
    )


def _leakage(outcome: Outcome, plan: Plan, measured: Sequence[Measurement]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Per data set and embedding, and one word per embedding."""
    sets = [Dataset(name, m.study) for m in measured for name in _names(m)]
    rows, words = [], {}
    corpora: dict[str, Any] = {s.name: s.corpus for s in plan.subjects}
    known = {s.name for s in plan.subjects if s.n_known}
    for name, kind in outcome.kinds.items():
        corpus = "no training" if kind == "control" else corpora.get(name, corpora.get(name.rsplit(" + ", 1)[0]))
        if isinstance(corpus, str):
            words[name] = corpus
            continue
        found = [leakage(corpus, d) for d in sets]
        words[name] = "seen" if name.rsplit(" + ", 1)[0] in known else summary(found)
        rows += [{"dataset": d.name, "model": name, "leakage": f} for d, f in zip(sets, found, strict=True)]
    return pd.DataFrame(rows, columns=["dataset", "model", "leakage"]), words


def _names(m: Measurement) -> list[str]:
    if "dataset" in m.obs:
        return [str(x) for x in pd.unique(m.obs["dataset"].astype(str))]
    return [m.name]
