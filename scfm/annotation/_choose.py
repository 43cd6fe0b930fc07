"""Which method suits this reference? Cross-validation among its own cells."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.annotation._calibration import Rejection, fit_temperature, tempered
from scfm.annotation._classifiers import Codes, Vectors
from scfm.annotation._core import METHODS, Core, Views, mean_probability

log = logging.getLogger("scfm")

N_FOLDS = 5
RARE = 3
"""Classes with fewer cells are learnt, but never held out."""
Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What was said of reference cells by what was fitted on the others.

    Parameters
    ----------
    rows
        (m,) reference cells that were held out once.
    codes
        (m,) their classes.
    fold
        (m,) when.
    each
        (m, K) probabilities of each member.
    novelty
        (m,) distance in each view.
    """

    rows: NDArray[np.int64]
    codes: Codes
    fold: NDArray[np.int64]
    each: Mapping[str, Vectors]
    novelty: Mapping[str, NDArray[np.float64]]


def splits(codes: Codes, groups: NDArray[Any] | None, seed: int, n_folds: int = N_FOLDS) -> tuple[Splits, bool]:
    """Rows to learn from and rows to hold out, and whether whole groups are held out.

    Parameters
    ----------
    codes
        (n,) classes.
    groups
        (n,) donor or batch of each cell. Where most classes occur in one group only, groups cannot be held out.
    seed
        Of the folds.
    n_folds
        At most.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    sizes = np.bincount(codes)
    common = np.flatnonzero(sizes[codes] >= RARE)
    if not len(common):
        return [], False
    grouped = groups is not None and _can_hold_out(codes[common], groups[common])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        if grouped and groups is not None:
            names = groups[common]
            folds = StratifiedGroupKFold(min(n_folds, len(np.unique(names))), shuffle=True, random_state=seed)
            found = folds.split(codes[common], codes[common], names)
        else:
            n = min(n_folds, int(np.bincount(codes[common]).max()))
            found = StratifiedKFold(n, shuffle=True, random_state=seed).split(codes[common], codes[common])
        held = [common[test] for _learn, test in found]
    every = np.arange(len(codes))
    pairs = [(np.setdiff1d(every, test), test) for test in held if len(test)]
    return [(learn, test) for learn, test in pairs if len(np.unique(codes[learn])) > 1], grouped


def _can_hold_out(codes: Codes, groups: NDArray[Any]) -> bool:
    pairs = np.unique(np.stack([codes, np.unique(groups, return_inverse=True)[1].ravel()]), axis=1)
    n_groups = np.bincount(pairs[0])
    n_groups = n_groups[n_groups > 0]
    if 2 * int((n_groups > 1).sum()) > len(n_groups):
        return True
    log.warning(
        "the groups determine the label (%d of %d classes occur in one group only), so that no group can be held out; "
        "cells are held out instead, and scores within the reference will be too good",
        int((n_groups == 1).sum()),
        len(n_groups),
    )
    return False


def cross_validate(
    views: Views, codes: Codes, n_classes: int, pairs: Splits, names: Sequence[str], k: int, seed: int
) -> HeldOut:
    """Fit on each fold's cells, and look at those that were held out."""
    parts = []
    for learn, test in pairs:
        core = Core.fit(views[learn], codes[learn], n_classes, names, k, seed)
        part = views[test]
        parts.append((core.probabilities(part), core.novelty(part)))
    rows = np.concatenate([test for _learn, test in pairs])
    fold = np.concatenate([np.full(len(test), i) for i, (_learn, test) in enumerate(pairs)])
    each = {name: np.concatenate([p[name] for p, _ in parts]) for name in names}
    novelty = {view: np.concatenate([d[view] for _, d in parts]) for view in parts[0][1]}
    return HeldOut(rows, codes[rows], fold, each, novelty)


def candidates(available: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Methods and their members, as far as these are available; a method of fewer members is not offered."""
    whole = {name: members for name, members in METHODS.items() if set(members) <= set(available)}
    if "stack" not in whole and len(available) > 1:
        whole["stack"] = tuple(available)
    return whole


def macro_f1(codes: Codes, predicted: Codes) -> float:
    """Mean F1 over the classes that occur."""
    from sklearn.metrics import f1_score

    return float(f1_score(codes, predicted, labels=np.unique(codes), average="macro", zero_division=0))


def scores_of(held: HeldOut, methods: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Macro F1 of each method, fold by fold."""
    out = {}
    for name, members in methods.items():
        predicted = mean_probability(held.each, members).argmax(axis=1)
        out[name] = [_f1(held, predicted, held.fold == fold) for fold in np.unique(held.fold)]
    return out


def _f1(held: HeldOut, predicted: Codes, rows: NDArray[np.bool_]) -> float:
    return macro_f1(held.codes[rows], predicted[rows])


def best_method(scores: Mapping[str, Sequence[float]]) -> str:
    """The first method that the best one does not beat by two standard errors of their difference over folds."""
    best = max(scores, key=lambda name: float(np.mean(scores[name])))
    for name, own in scores.items():
        lead = np.asarray(scores[best]) - np.asarray(own)
        error = lead.std(ddof=1) / np.sqrt(len(lead)) if len(lead) > 1 else 0.0
        if lead.mean() <= 2 * error:
            return name
    return best


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Temperature and rejection of one method, and what it says of held-out cells.

    Parameters
    ----------
    temperature
        See `tempered`.
    rejection
        See `Rejection`.
    proba
        (m, K) calibrated probabilities of the held-out cells: each fold's by the temperature of the others.
    """

    temperature: float
    rejection: Rejection
    proba: NDArray[np.float64]


def calibrate(held: HeldOut, members: Sequence[str]) -> Calibrated:
    """Fit temperature and rejection on held-out cells."""
    bare = mean_probability(held.each, members)
    proba = np.empty_like(bare)
    for fold in np.unique(held.fold):
        rest = held.fold != fold
        fitted = fit_temperature(bare[rest], held.codes[rest]) if rest.any() else 1.0
        proba[~rest] = tempered(bare[~rest], fitted)
    temperature = fit_temperature(bare, held.codes)
    return Calibrated(temperature, Rejection.fit(tempered(bare, temperature), held.novelty), proba)


def lines(scores: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Each method with its mean macro F1."""
    for name, own in scores.items():
        yield f"{name} {np.mean(own):.3f}"
