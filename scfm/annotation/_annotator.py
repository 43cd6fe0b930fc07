"""A reference, fitted once and applied to many data sets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import models
from scfm.annotation import _store
from scfm.annotation._annotation import Annotation
from scfm.annotation._calibration import Floats, Rejection, tempered
from scfm.annotation._cells import Cells, Part, Reading
from scfm.annotation._classifiers import N_NEIGHBORS, Codes
from scfm.annotation._core import Core, Views, mean_probability
from scfm.annotation._decide import Rule, decide
from scfm.annotation._expression import Expression, GeneSpace, cell_keys
from scfm.annotation._fit import AUTO, fitted, vector_keys, with_genes
from scfm.annotation._reference import opened
from scfm.annotation._space import Rep, Space, load_model, stored_vectors
from scfm.errors import ConfigError
from scfm.ontology import Ontology

log = logging.getLogger("scfm")

MAX_CELLS = 200_000
MIN_GENES = 20
FALSE_REJECTION = 0.05
TOLERANCE = 0.85
"""Two thirds of the pairs of data sets on which it was chosen hold a rate of 5 %, and larger ones gain little; see the guide."""
LEAK = 0.01
"""Share of query cells that are in the reference, from which on a warning is due."""
Tree = Ontology | Mapping[str, Any] | str | Path | None


@dataclass(frozen=True, eq=False)
class Annotator:
    """Names cells after a reference; made by `fit` or `load`.

    Parameters
    ----------
    classes
        K names.
    method
        What it uses, see `METHODS`; and by which members.
    core
        Fitted members.
    temperature, rejection
        Calibration.
    space
        The vectors that members read; None: none.
    genes, expression
        The genes whose counts are read, and how; None: none.
    about
        How it was fitted, and what it scored on its own reference.
    tree
        What the classes are kinds of; None: not known.
    keys
        Sorted numbers of the reference's cells, by which they are recognised in a query.
    held_out
        Classes (m,) and calibrated probabilities (m, K) of held-out reference cells.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> annotator = scfm.annotation.Annotator.fit(adata[::2], "bulk_labels", method="expression-linear", model=None)
    >>> len(annotator.annotate(adata[1::2]))
    350
    """

    classes: tuple[str, ...]
    method: str
    core: Core
    temperature: float
    rejection: Rejection
    space: Space | None
    genes: GeneSpace | None
    expression: Expression | None
    about: Mapping[str, Any]
    tree: Ontology | None = None
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    held_out: tuple[Codes, NDArray[np.float32]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        what = f" on {self.space}" if self.space else ""
        return f"Annotator({len(self.classes)} classes, {self.method}{what}, {self.about.get('n_cells', 0):,} cells)"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the classifiers whose mean is taken."""
        return tuple(self.core.members)

    @classmethod
    def fit(
        cls,
        reference: AnnData | str | Path,
        label_key: str,
        *,
        model: str | Path | models.FoundationModel | None = "scfm-mini",
        method: str = AUTO,
        batch_key: str | None = None,
        use_rep: Rep = None,
        query_var: pd.DataFrame | None = None,
        query_reading: Reading | None = None,
        reading: Reading | None = None,
        species: str | None = None,
        ontology: Tree = None,
        n_neighbors: int = N_NEIGHBORS,
        max_cells: int = MAX_CELLS,
        device: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Annotator:
        """Learn the labels of a reference.

        Parameters
        ----------
        reference
            Cells with labels, in memory or in a file; only read.
        label_key
            Column of ``obs``; cells without a label are left out and counted.
        model
            Embeds the cells; None: expression alone is used.
        method
            ``"auto"``: what does best on held-out cells of the reference; or one of `METHODS`.
        batch_key
            Column of ``obs`` with donors or batches: whole groups are held out.
        use_rep
            Slot of ``.obsm`` to take the vectors from; None: found if `scfm.tl.embed` wrote it with this model, else
            computed; False: computed.
        query_var, query_reading
            ``var`` of the cells that will be asked, and how to read it: expression of shared genes only is used. Without,
            genes that a query lacks count as average.
        reading
            Where counts and gene names are.
        species
            Of the genes that the annotator speaks of; None: the model's, or human.
        ontology
            What the labels are kinds of: parents by label, or an OBO file whose terms the labels name.
        n_neighbors
            Neighbours that vote.
        max_cells
            Of a larger reference a stratified sample is used.
        device
            See `scfm.tl.embed`.
        seed
            Of folds and samples.
        progress
            Show a progress bar.

        Raises
        ------
        ConfigError, CountsError, GeneMatchError, MissingDependencyError
            Before the long work, if something does not fit.
        """
        return cls(
            **fitted(
                opened(reference, "reference"),
                label_key,
                model=model,
                method=method,
                batch_key=batch_key,
                use_rep=use_rep,
                query_var=query_var,
                query_reading=query_reading or Reading(),
                reading=reading or Reading(),
                species=species,
                tree=None if ontology is None else Ontology.of(ontology),
                n_neighbors=n_neighbors,
                max_cells=max_cells,
                device=device,
                seed=seed,
                progress=progress,
            )
        )

    def annotate(
        self,
        query: AnnData | str | Path,
        *,
        labels: Sequence[str] | None = None,
        reject: bool = True,
        false_rejection: float = FALSE_REJECTION,
        tolerance: float | None = None,
        min_genes: int = MIN_GENES,
        ontology: Tree = None,
        use_rep: Rep = None,
        model: models.FoundationModel | None = None,
        reading: Reading | None = None,
        device: str | None = None,
        progress: bool = False,
    ) -> Annotation:
        """Name the cells of a query; each cell by itself, block by block.

        Parameters
        ----------
        query
            Cells, in memory, backed or in a file; only read.
        labels
            Only these classes are possible.
        reject
            Whether cells may be ``"unknown"``.
        false_rejection, tolerance
            See `Rejection.thresholds`; tolerance None: the annotator's own, 0.85 unless it says otherwise.
        min_genes
            Cells that express fewer of the reference's genes are unknown.
        ontology
            Names a cell after a group of classes where it cannot be told which; None: as fitted.
        use_rep
            See `fit`.
        model
            The model, if it is loaded already or has no name.
        reading
            Where counts and gene names are.
        device
            See `scfm.tl.embed`.
        progress
            Show a progress bar.

        Raises
        ------
        ConfigError, CountsError, GeneMatchError
            Before the long work, if something does not fit.
        """
        tolerance = float(self.about.get("tolerance", TOLERANCE)) if tolerance is None else tolerance
        if not 0 <= false_rejection < 1 or tolerance < 0:
            raise ConfigError(
                f"false_rejection={false_rejection}, tolerance={tolerance}; a share below 1 and a number from 0 are needed"
            )
        known = self if labels is None else self.restricted(labels)
        reading = reading or Reading()
        adata = opened(query, "query")
        cells = known._cells(adata, use_rep, model, reading, device)
        tree = known.tree if ontology is None else Ontology.of(ontology)
        thresholds = known.rejection.thresholds(false_rejection, tolerance)
        rule = Rule(
            known.classes,
            thresholds if reject else np.full_like(thresholds, np.inf),
            tree.groups(known.classes) if tree is not None else {},
            min_genes if reject else 0,
        )
        probas, decisions, seen = [np.zeros((0, len(known.classes)))], [_nothing(known, rule)], 0
        with tqdm(total=adata.n_obs, desc="annotate", unit="cell", disable=not progress) as bar:
            for part in cells.parts():
                proba, distance = known._look(part, cells.measured)
                probas.append(proba.astype(np.float32))
                decisions.append(decide(proba, distance, known.rejection, rule, part.n_genes))
                seen += known._seen(part)
                bar.update(len(proba))
        if seen > LEAK * max(adata.n_obs, 1):
            log.warning(
                "%d of %d query cells are cells of the reference: their scores say nothing about new cells",
                seen,
                adata.n_obs,
            )
        joined = {name: np.concatenate([getattr(d, name) for d in decisions]) for name in vars(decisions[0])}
        facts = {
            "method": known.method,
            "members": list(known.members),
            "space": None if known.space is None else known.space.to_dict(),
            "reference": dict(known.about),
            "false_rejection": false_rejection if reject else 0.0,
            "tolerance": tolerance,
            "min_genes": min_genes,
            "temperature": known.temperature,
            "thresholds": dict(zip(known.classes, thresholds[:-1].tolist(), strict=True)) if reject else {},
            "n_in_reference": int(seen),
            "genes_missing": 0 if cells.measured is None else int((~cells.measured).sum()),
        }
        return Annotation(**joined, proba=np.concatenate(probas).astype(np.float32), classes=known.classes, facts=facts)

    def restricted(self, labels: Iterable[str]) -> Annotator:
        """An annotator of some of the classes.

        Raises
        ------
        ConfigError
            If a label is not known, or none is given.
        """
        wanted = dict.fromkeys(map(str, labels))
        unknown = [label for label in wanted if label not in self.classes]
        if unknown or not wanted:
            raise ConfigError(
                f"labels= names {', '.join(map(repr, unknown)) or 'nothing'}, which the reference does not have; it has "
                f"{', '.join(map(repr, self.classes))}"
            )
        kept = np.array([i for i, name in enumerate(self.classes) if name in wanted])
        return replace(
            self,
            classes=tuple(self.classes[i] for i in kept),
            core=self.core.restricted(kept),
            rejection=self.rejection.restricted(kept),
            held_out=None,
        )

    def save(self, path: str | Path) -> None:
        """Write as one ``.npz`` file of arrays and settings, without pickled objects."""
        _store.save(Path(path), *_store.packed(self))

    @classmethod
    def load(cls, path: str | Path) -> Annotator:
        """Read what `save` wrote.

        Raises
        ------
        ConfigError
            If it is no such file.
        """
        return cls(**_store.unpacked(Path(path)))

    def _cells(
        self, adata: AnnData, use_rep: Rep, model: models.FoundationModel | None, reading: Reading, device: str | None
    ) -> Cells:
        stored = computing = None
        if self.space is not None:
            stored = stored_vectors(adata, self.space, use_rep)
            if stored is None:
                computing = load_model(model or self.space.model, reading.context, device)
                _check_model(self.space, computing)
        return Cells(adata, reading, computing, stored, self.genes)

    def _look(self, part: Part, measured: NDArray[np.bool_] | None) -> tuple[Floats, dict[str, Floats]]:
        """Calibrated probabilities (n, K) and distances (n,) of consecutive cells, NaN where nothing is known."""
        n = part.rows.stop - part.rows.start
        proba = np.full((n, len(self.classes)), np.nan)
        distance = {view: np.full(n, np.nan) for view in self.rejection.scales}
        there = with_genes(part.vectors, part.counts)
        if not there.any():
            return proba, distance
        x = fill = None
        if part.counts is not None and self.expression is not None and measured is not None:
            x = self.expression.values(part.counts[there], measured)
            fill = None if measured.all() else self.expression.fill(measured)
        views = Views(None if part.vectors is None else part.vectors[there], x, fill)
        mean = mean_probability(self.core.probabilities(views), self.members)
        proba[there] = tempered(mean, self.temperature)
        for view, values in self.core.novelty(views).items():
            if view in distance:
                distance[view][there] = values
        return proba, distance

    def _seen(self, part: Part) -> int:
        """How many cells are in the reference."""
        if part.counts is not None:
            keys = cell_keys(part.counts)
        elif part.vectors is not None:
            keys = vector_keys(part.vectors)
        else:
            return 0
        return int(np.isin(keys[keys != 0], self.keys).sum())


def _nothing(known: Annotator, rule: Rule) -> Any:
    return decide(np.zeros((0, len(known.classes))), {}, known.rejection, rule, None)


def _check_model(space: Space, model: models.FoundationModel | None) -> None:
    """Raise a `ConfigError` unless the model is the one that the reference was embedded by."""
    found = None if model is None else (model.card.name, model.config.readout, model.config.hidden_layer)
    width = None if model is None else model.embedding_width()
    if found != (space.model, space.pooling, space.hidden_layer) or width != space.width:
        raise ConfigError(
            f"the reference was embedded by {space} ({space.width} axes, read-out {space.pooling}), the query would be by "
            f"{found and found[0]} ({width} axes); use the same model for both"
        )
