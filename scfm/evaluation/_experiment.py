"""How is everything scored? Subject by subject, on the same cells, splits and draws."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.evaluation import _scib
from scfm.evaluation._baselines import controls, log_values, variable_genes
from scfm.evaluation._cells import Part, shared_matrix
from scfm.evaluation._controls import failures
from scfm.evaluation._metrics import METRICS, Computation, Values, computable, totals
from scfm.evaluation._neighbours import nearest
from scfm.evaluation._scores import Floats, Score, macro_f1, mean_of_cells, table_score
from scfm.evaluation._space import Design, Distance, Space, prepared
from scfm.evaluation._statistics import Resampling, resample_cells, resample_groups, subsample
from scfm.evaluation._stress import (
    Setting,
    Stress,
    altered_blocks,
    changed_neighbours,
    drift,
    kept_genes,
    possible,
    setting,
)
from scfm.evaluation._subjects import NO_COST, Altered, Cells, Cost, OfAlignment, OfArray, Subject
from scfm.evaluation._transfer import N_SEARCHED, FoldedVotes
from scfm.tokenizers import in_background

log = logging.getLogger("scfm")
MOST_EMPTY = 0.5
"""Share of cells without a vector above which a subject is not scored."""
UNSTRESSED = "none"


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done.

    Parameters
    ----------
    parts
        All cells, part by part.
    design
        Of all cells.
    usable
        (n,) cells with a label that is frequent enough.
    subjects
        To compare, the anchor first.
    stress
        Alterations.
    align
        Corrections of the models' embeddings that are scored beside them.
    with_controls
        Whether controls are scored.
    distance
        How vectors are compared.
    max_cells, n_subsamples
        Cells of a subsample, and how many are drawn where there are more.
    n_boot, n_draws, seed
        Bootstrap replicates, draws of every alteration, and the key of all that is random.
    """

    parts: Sequence[Part]
    design: Design
    usable: NDArray[np.bool_]
    subjects: Sequence[Subject]
    stress: Sequence[Stress] = ()
    align: Sequence[str] = ()
    with_controls: bool = True
    distance: Distance = "cosine"
    max_cells: int = 8000
    n_subsamples: int = 3
    n_boot: int = 500
    n_draws: int = 2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """A score in one subsample.

    Parameters
    ----------
    value
        The score.
    replicates
        (B,) bootstrap values; None where the library gives one number only.
    n
        Cells that take part.
    """

    value: float
    replicates: Floats | None
    n: int


@dataclass(eq=False)
class Outcome:
    """All that was found, subsample by subsample.

    Parameters
    ----------
    scores
        Per subject and name of a score (``metric`` or ``metric | detail``), one entry per subsample.
    costs
        Per subject, one entry per subsample.
    kinds
        What each subject is.
    n_units
        Units of the bootstrap, the smallest number of a subsample.
    over
        What a unit is.
    vectors, design
        Of the first subsample: embeddings by subject, and what is known of the cells.
    notes
        What a reader should know.
    failed
        Controls that do not score as they must.
    finished
        False after an interruption.
    """

    scores: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    n_units: int = 0
    over: str = "cells"
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    design: Design | None = None
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    finished: bool = True

    def note(self, text: str) -> None:
        """Keep a remark, once."""
        if text not in self.notes:
            self.notes.append(text)


def run(plan: Plan, progress: Any = None) -> Outcome:
    """Score every subject.

    Parameters
    ----------
    plan
        What is to be done.
    progress
        A progress bar that counts steps.

    Returns
    -------
    Outcome
        After Ctrl-C with the subjects that were finished.

    Raises
    ------
    KeyboardInterrupt
        If nothing was finished.
    """
    outcome = Outcome()
    strata = plan.design.stratum[plan.usable]
    usable = np.flatnonzero(plan.usable)
    n = 1 if len(usable) <= plan.max_cells else plan.n_subsamples
    try:
        for number in range(n):
            rows = usable[subsample(strata, plan.max_cells, [plan.seed, number])]
            _Round(plan, outcome, rows, number, n, progress).run()
    except KeyboardInterrupt:
        if not outcome.scores:
            raise
        outcome.finished = False
        outcome.note(f"Interrupted: {len(outcome.scores)} of {len(plan.subjects)} embeddings were finished.")
    return outcome


def steps(plan: Plan) -> int:
    """Steps of the progress bar."""
    n = 1 if plan.usable.sum() <= plan.max_cells else plan.n_subsamples
    models = sum(s.kind in ("model", "embedding") for s in plan.subjects)
    n_aligned = len(plan.align) * models * (len(plan.design.batches) > 1)
    each = len(computable(len(plan.design.labels), len(plan.design.batches)))
    scored = len(plan.subjects) + n_aligned + 3 * plan.with_controls
    return n * (len(plan.subjects) + scored * each + len(plan.stress) * plan.n_draws)


class _Round:
    """One subsample."""

    def __init__(
        self, plan: Plan, outcome: Outcome, rows: NDArray[np.int64], number: int, n: int, progress: Any
    ) -> None:
        self.plan, self.outcome, self.number, self.of, self.progress = plan, outcome, number, n, progress
        self.cells = cells_of(plan, rows)
        self.vectors_of: dict[str, NDArray[np.float32]] = {}
        self.design = plan.design[rows]

    def run(self) -> None:
        """Embed everything, then score it on the cells that all have a vector of."""
        embedded = self._embed()
        there = np.logical_and.reduce([~np.isnan(x).any(axis=1) for _s, x, _c in embedded])
        if not there.all():
            self.outcome.note(
                f"{(~there).sum():,} cells have no vector in one of the embeddings and were left out of all."
            )
        self.there = np.flatnonzero(there)
        self.known = self.design[self.there]
        self.computations = computable(len(np.unique(self.known.label)), len(np.unique(self.known.batch)))
        self.resampling = self._resampling()
        self.raw = self._raw()
        scored = []
        for subject, x, spent in self._with_alignments(embedded):
            self._score(subject, x, spent)
            scored.append(subject)
        if self.plan.with_controls:
            self._control(embedded[0][1])
        self._stress_all(scored)

    def _embed(self) -> list[tuple[Subject, NDArray[np.float32], Cost]]:
        done = []
        try:
            for subject in self.plan.subjects:
                self._say(f"{subject.name}: embedding")
                x, spent = subject.embed(self.cells)
                empty = float(np.isnan(x).any(axis=1).mean())
                if empty > MOST_EMPTY:
                    log.warning(
                        "%s has no vector for %.0f %% of the cells; it is not scored", subject.name, 100 * empty
                    )
                    self.outcome.note(f"{subject.name} has no vector for {empty:.0%} of the cells and was not scored.")
                else:
                    done.append((subject, x, spent))
                self._step()
        except KeyboardInterrupt:
            if not done:
                raise
            self.outcome.finished = False
            names = ", ".join(s.name for s, _x, _c in done)
            log.warning("interrupted: going on with %s; Ctrl-C again ends it", names)
            self.outcome.note(f"Interrupted: of {len(self.plan.subjects)} embeddings only {names} were computed.")
        return done

    def _with_alignments(self, embedded: Sequence[Any]) -> Iterator[tuple[Subject, NDArray[np.float32], Cost]]:
        several = len(np.unique(self.known.batch)) > 1
        for subject, x, spent in embedded:
            yield subject, x, spent
            if subject.kind in ("model", "embedding") and several:
                for method in self.plan.align:
                    corrected = OfAlignment(subject, x, method)
                    yield corrected, *corrected.embed(self.cells)

    def _resampling(self) -> Resampling:
        known, plan = self.known, self.plan
        if known.group is not None and len(np.unique(known.group)) > 1:
            found = resample_groups(known.group, known.batch, plan.n_boot, plan.seed)
        else:
            found = resample_cells(known.stratum, plan.n_boot, plan.seed)
        least = found.n_units if not self.outcome.n_units else min(self.outcome.n_units, found.n_units)
        self.outcome.n_units, self.outcome.over = least, found.over
        return found

    def _raw(self) -> NDArray[np.float32] | None:
        """Log-normalised variable genes, for the metric that compares with them."""
        if not _scib.is_here():
            return None
        counts = self.cells.counts[self.there]
        return np.asarray(log_values(counts)[:, variable_genes(counts)].toarray(), dtype=np.float32)

    def _space(self, x: NDArray[np.float32]) -> Space:
        """Of vectors of the cells that have one."""
        return Space(prepared(x, self.plan.distance), self.known, self.plan.seed, self.raw)

    def _score(self, subject: Subject, x: NDArray[np.float32], spent: Cost) -> None:
        self.vectors_of[subject.name] = x[self.there]
        self._keep(subject, self._metrics(subject.name, self._space(x[self.there])), spent)
        if self.number == 0:
            self.outcome.vectors[subject.name] = x[self.there]
            self.outcome.design = self.known
            if subject.note:
                self.outcome.note(f"{subject.name}: {subject.note}.")

    def _metrics(self, name: str, space: Space) -> dict[str, Score | float]:
        found: dict[str, Score | float] = {}
        for computation in self.computations:
            self._say(f"{name}: {computation.gives[0]}")
            found.update(_only_possible(computation, space))
            self._step()
        return {**found, **totals(found)}

    def _stress_all(self, scored: Sequence[Subject]) -> None:
        """Alter the cells level by level; each altered block goes to every subject and is gone."""
        subjects = [s for s in scored if s.can_be_stressed]
        if not self.plan.stress or not subjects:
            return
        where = setting(self.cells.parts, self.cells.batch, self.plan.seed)
        spaces = {s.name: _Before(self._space(self.vectors_of[s.name]), self.plan.seed) for s in subjects}
        several = len(np.unique(self.known.label)) > 1
        if several:
            for name, before in spaces.items():
                self._add(name, {f"stressed kNN | {UNSTRESSED}": [before.unaltered()]})
        draws = [(stress, draw) for stress in self._possible(where) for draw in range(self.plan.n_draws)]
        found: dict[str, dict[str, list[Score]]] = {}
        # the next draw is altered and embedded while this one is scored
        altered = in_background(lambda which: self._altered(subjects, where, *which), draws, ahead=1)
        for (stress, draw), vectors in zip(draws, altered, strict=True):
            self._say(f"{stress.kind} {stress}: all embeddings")
            if draw == 0:
                found = {s.name: {} for s in subjects}
            for name, x in vectors.items():
                after = prepared(x[self.there], self.plan.distance)
                for metric, score in spaces[name].response(after).items():
                    if several or metric != "stressed kNN":
                        found[name].setdefault(f"{metric} | {stress.kind} {stress}", []).append(score)
            self._step()
            if draw == self.plan.n_draws - 1:
                for name, scores in found.items():
                    self._add(name, scores)

    def _possible(self, where: Setting) -> list[Stress]:
        """Alterations that these cells have genes enough for; the others are noted."""
        there = [stress for stress in self.plan.stress if possible(stress, where)]
        for stress in self.plan.stress:
            if stress not in there:
                self.outcome.note(f"Fewer than {stress} are expressed, so panels of that size were left out.")
                self._step(self.plan.n_draws)
        return there

    def _altered(
        self, subjects: Sequence[Subject], where: Setting, stress: Stress, draw: int
    ) -> dict[str, NDArray[np.float32]]:
        kept = kept_genes(stress, where, draw)
        made: dict[str, list[NDArray[np.float32]]] = {s.name: [] for s in subjects}
        for number in range(len(self.cells.parts)):
            for block in altered_blocks(stress, where, number, draw):
                here: dict[str, NDArray[np.float32]] = {}
                for subject in subjects:
                    here[subject.name] = subject.stressed(self.cells, Altered(number, block, kept), here)
                    made[subject.name].append(here[subject.name])
        return {name: np.concatenate(blocks) for name, blocks in made.items()}

    def _control(self, anchor: NDArray[np.float32]) -> None:
        scores: dict[str, dict[str, float]] = {}
        for name, x in controls(anchor[self.there], self.known.label, self.plan.seed).items():
            found = self._metrics(name, self._space(x))
            subject = OfArray(name, x, "control")
            subject.corpus = "no training"
            self._keep(subject, found, NO_COST)
            scores[name] = {m: measured[-1].value for m, measured in self.outcome.scores[name].items()}
        self.outcome.failed += failures(scores, self.known)

    def _keep(self, subject: Subject, found: Mapping[str, Score | float], spent: Cost) -> None:
        """All scores of a subject at once, so that an interruption leaves none by half."""
        self._add(subject.name, found)
        self.outcome.costs.setdefault(subject.name, []).append(spent)
        self.outcome.kinds[subject.name] = subject.kind

    def _add(self, name: str, found: Mapping[str, Score | float | list[Score]]) -> None:
        measured = {score: self._measured(value) for score, value in found.items()}
        of = self.outcome.scores.setdefault(name, {})
        for score, value in measured.items():
            of.setdefault(score, []).append(value)

    def _measured(self, score: Score | float | list[Score]) -> Measured:
        if isinstance(score, list):
            each = np.stack([self.resampling.replicates(s) for s in score])
            # the draws of an alteration are drawn again too, the same ones for every subject
            rng = np.random.default_rng([self.plan.seed, 7])
            again = rng.multinomial(len(score), np.full(len(score), 1 / len(score)), size=each.shape[1]).T / len(score)
            return Measured(float(np.mean([s.value for s in score])), (again * each).sum(axis=0), score[0].n)
        if isinstance(score, Score):
            return Measured(score.value, self.resampling.replicates(score), score.n)
        return Measured(score, None, len(self.known))

    def _say(self, text: str) -> None:
        if self.progress is not None:
            which = f" ({self.number + 1}/{self.of})" if self.of > 1 else ""
            self.progress.set_description_str(text + which)

    def _step(self, n: int = 1) -> None:
        if self.progress is not None:
            self.progress.update(n)


class _Before:
    """An embedding of unaltered cells, ready to be compared with altered ones."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.votes = FoldedVotes.of(space.design.label, seed)
        self.rows, self.distances = nearest(space.x, None, N_SEARCHED)

    def unaltered(self) -> Score:
        """Macro F1 of the unaltered cells."""
        return self._f1(self.votes.predict(self.rows, self.distances))

    def response(self, after: NDArray[np.float32]) -> dict[str, Score]:
        """Scores of (n, d) altered vectors."""
        there = np.flatnonzero(~np.isnan(after).any(axis=1))
        rows = np.zeros((len(after), min(N_SEARCHED, len(after))), dtype=np.int64)
        distances = np.full(rows.shape, np.inf)
        if len(there):
            rows[there], distances[there] = nearest(self.space.x, after[there], N_SEARCHED)
        predicted = np.full(len(after), -1, dtype=np.int64)
        predicted[there] = self.votes.predict(rows, distances)[there]
        return {
            "stressed kNN": self._f1(predicted),
            "drift": mean_of_cells(drift(self.space.x, after)),
            "changed neighbours": mean_of_cells(changed_neighbours(rows[there], self.rows[:, 0], there)),
        }

    def _f1(self, predicted: NDArray[np.int64]) -> Score:
        design = self.space.design
        return table_score(design.label, predicted, macro_f1, n_rows=len(design.labels))


def _only_possible(computation: Computation, space: Space) -> Values:
    """What a computation gives, for the metrics whose needs these cells meet."""
    n = len(np.unique(space.design.label)), len(np.unique(space.design.batch))
    found = computation.compute(space)
    return {name: value for name, value in found.items() if METRICS[name.split(" | ")[0]].holds(*n)}


def cells_of(plan: Plan, rows: NDArray[np.int64]) -> Cells:
    """Some cells of the plan, held in memory.

    Parameters
    ----------
    plan
        Of all cells.
    rows
        (m,) numbers among all cells, ascending.
    """
    parts, start, first = [], 0, 0
    for part in plan.parts:
        n = part.source.shape[0]
        here = rows[(rows >= first) & (rows < first + n)] - first
        if len(here):
            parts.append(part.only(here, start))
        start, first = start + len(here), first + n
    return Cells(parts, plan.design.batch[rows], shared_matrix(parts), rows, plan.seed)
