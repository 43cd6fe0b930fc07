"""Which genes vary together? Gene vectors by singular value decomposition of many small data sets: scfm-mini's fit.

A cell's vector is the sum of the vectors of its genes, each times the gene's value. What the fit needs of its data is
small (`Projection`), so that it can be taken up again with further cells.

Such vectors know what varied in the data sets, and nothing else. Behind them stands a second sum, over the genes that a cell
expresses far above their usual value, on random axes (`random_axes`): what the fit has never seen is not lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfm.errors import CheckpointError

STATISTICS_FILE = "statistics.npz"
SPARE_AXES = 128
"""Axes beyond those asked for that are carried from one chunk of cells to the next."""


@dataclass(frozen=True)
class ProjectionRecipe:
    """How the gene vectors are learnt.

    Parameters
    ----------
    n_axes
        Length of a vector.
    target_sum
        Values are log1p of counts per so many.
    max_cells, min_genes
        Cells of a set: at most so many, each with so many genes.
    measured_in
        Genes are kept that at least this share of the sets measured.
    scaling, weighting
        A gene is divided by its standard deviation within sets to this power: while fitting, and in its vector.
        1 would let the noise of rare genes in deep cells drown everything, 0 hides all but the abundant genes.
    clip
        Scaled values are cut there while fitting.
    steadying
        How much genes count less in a cell's vector whose level differs between sets (`Moments.steadiness`).
    whitening
        Each axis is divided by its singular value to this power.
    evening
        How much the directions are shrunk in which sets differ (`evened`).
    excess_axes, excess_weight
        Number of random axes for genes far above their usual value, and their weight against the others.
    few_counts, least
        See `scfm.tokenizers.BagTokenizer`.
    seed
        Of the sample of cells, of the decomposition and of the random axes.
    """

    n_axes: int = 192
    target_sum: float = 300.0
    max_cells: int = 1500
    min_genes: int = 100
    measured_in: float = 0.3
    scaling: float = 0.25
    weighting: float = 0.65
    clip: float = 10.0
    steadying: float = 20.0
    whitening: float = 0.25
    evening: float = 3.0
    excess_axes: int = 64
    excess_weight: float = 0.2
    few_counts: float = 2.0
    least: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class CellSet:
    """Cells that were measured together.

    Parameters
    ----------
    values
        (n, V) log-normalised values.
    measured
        (V,) genes that the set has a column for: a gene that was not measured is not a gene without counts.
    """

    values: sp.csr_matrix
    measured: NDArray[np.bool_]

    def sample(self, recipe: ProjectionRecipe) -> CellSet:
        """At most ``max_cells`` of the cells that express ``min_genes``."""
        rows = np.flatnonzero(self.values.getnnz(axis=1) >= recipe.min_genes)
        if len(rows) > recipe.max_cells:
            rows = np.sort(np.random.default_rng(recipe.seed).choice(rows, recipe.max_cells, replace=False))
        return CellSet(self.values[rows], self.measured)


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of each gene over all sets.

    Parameters
    ----------
    sets, cells
        (V,) sets that measured the gene, and cells of these.
    means
        (n_sets, V) mean of each set; 0 for genes that it did not measure.
    squares
        (V,) squared deviations from the mean of the own set, summed.
    """

    sets: NDArray[np.float64]
    cells: NDArray[np.float64]
    means: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, sets: Sequence[CellSet]) -> Moments:
        """Of some sets."""
        measured = np.stack([s.measured for s in sets])
        means = np.stack([np.asarray(s.values.mean(axis=0)).ravel() for s in sets])
        squares = np.stack([np.asarray(s.values.power(2).sum(axis=0)).ravel() for s in sets])
        sizes = np.array([[s.values.shape[0]] for s in sets])
        within = (squares - sizes * means**2).clip(0) * measured
        return cls(
            measured.sum(axis=0).astype(float),
            (sizes * measured).sum(axis=0).astype(float),
            means * measured,
            within.sum(axis=0),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.sets + other.sets,
            self.cells + other.cells,
            np.concatenate([self.means, other.means]),
            self.squares + other.squares,
        )

    @property
    def n_sets(self) -> int:
        """Number of sets."""
        return len(self.means)

    @property
    def center(self) -> NDArray[np.float64]:
        """(V,) mean of the means of the sets that measured a gene; 0 where none did."""
        return np.asarray(self.means.sum(axis=0) / np.maximum(self.sets, 1))

    @property
    def usual(self) -> NDArray[np.float32]:
        """(V,) highest mean of a gene in any set."""
        return np.asarray(self.means.max(axis=0), dtype=np.float32)

    @property
    def within(self) -> NDArray[np.float64]:
        """(V,) pooled variance within sets; 0 for genes that none measured."""
        return np.asarray(self.squares / np.maximum(self.cells, 1))

    def power_of_deviation(self, exponent: float) -> NDArray[np.float64]:
        """(V,) pooled standard deviation within sets to a power; 0 for genes that do not vary."""
        deviation = np.sqrt(self.within)
        varies = deviation > 0
        return np.where(varies, deviation, 1.0) ** exponent * varies

    def steadiness(self, amount: float) -> NDArray[np.float64]:
        """(V,) 1 over the root of 1 + ``amount`` r, for a gene whose means of sets scatter r times as much as the cells of a set.

        Low for genes whose level is that of the assay, the study or the tissue: those of ribosomes first.
        """
        between = (self.means**2).sum(axis=0) / np.maximum(self.sets, 1) - self.center**2
        return np.asarray((1 + amount * between.clip(0) / np.where(self.within > 0, self.within, 1)) ** -0.5)

    def weights(self, recipe: ProjectionRecipe) -> NDArray[np.float64]:
        """(V,) what the axes of a gene are multiplied by in its vector."""
        return self.power_of_deviation(-recipe.weighting) * self.steadiness(recipe.steadying)


@dataclass(frozen=True, eq=False)
class Projection:
    """A fit, as much of it as is needed to go on.

    Parameters
    ----------
    moments
        Of the genes.
    axes
        (V, k) right singular vectors of the centred, scaled and clipped values; 0 for genes that were left out.
    singular
        (k,) singular values.
    """

    moments: Moments
    axes: NDArray[np.float64]
    singular: NDArray[np.float64]

    def vectors(self, recipe: ProjectionRecipe) -> NDArray[np.float64]:
        """(V, n_axes) vector of each gene, the direction of the mean cell included."""
        k = recipe.n_axes
        return self.axes[:, :k] * self.moments.weights(recipe)[:, None] / self.singular[:k] ** recipe.whitening


def fit(sets: Sequence[CellSet], recipe: ProjectionRecipe) -> Projection:
    """Decompose the values of all sets together.

    Each set is centred by its own mean, each gene divided by a power of its standard deviation within the sets that
    measured it.
    """
    sets = [s.sample(recipe) for s in sets]
    moments = Moments.of(sets)
    kept = np.flatnonzero(moments.sets / moments.n_sets >= recipe.measured_in)
    return _decompose(moments, kept, [_scaled(s, moments, kept, recipe) for s in sets], recipe)


def extend(projection: Projection, sets: Sequence[CellSet], recipe: ProjectionRecipe) -> Projection:
    """The fit to the earlier cells and these together, from what the projection kept of the earlier ones.

    Earlier cells count by their ``k`` axes, new ones in full, and a gene that all new sets measured is kept however few
    of the earlier ones did.
    """
    sets = [s.sample(recipe) for s in sets]
    moments = projection.moments + Moments.of(sets)
    everywhere = np.logical_and.reduce([s.measured for s in sets])
    kept = np.flatnonzero((moments.sets / moments.n_sets >= recipe.measured_in) | everywhere)
    before = projection.moments.power_of_deviation(-recipe.scaling)
    ratio = np.where(before > 0, moments.power_of_deviation(-recipe.scaling) / np.where(before > 0, before, 1), 0)
    old = (projection.axes * projection.singular).T * ratio
    parts = [old[:, kept].astype(np.float32), *(_scaled(s, moments, kept, recipe) for s in sets)]
    return _decompose(moments, kept, parts, recipe, chunked=True)


def finished(projection: Projection, recipe: ProjectionRecipe, sets: Iterable[CellSet]) -> NDArray[np.float64]:
    """Gene vectors (V, n_axes) as a model has them, at a median length of 1 for a cell of the sets.

    Without the direction of the mean cell, so that a cell's vector needs no centre: it is a weighted sum over the genes
    that the cell expresses.
    """
    vectors = without(projection.vectors(recipe), projection.moments.center)
    vectors = vectors @ evened(projection, vectors, recipe)
    lengths = [np.linalg.norm(s.values @ vectors, axis=1) for s in sets]
    return vectors / np.median(np.concatenate(lengths))


def without(vectors: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gene vectors (V, d) less their part along the vector of one cell with the values ``center`` (V,)."""
    middle = center @ vectors
    return vectors - np.outer(vectors @ middle, middle) / (middle @ middle)


def evened(projection: Projection, vectors: NDArray[np.float64], recipe: ProjectionRecipe) -> NDArray[np.float64]:
    """The map (n_axes, n_axes) after which sets differ less.

    In a direction in which the means of sets scatter r times as much as the cells of a set, vectors are divided by the
    root of 1 + ``evening`` r: most where assays and studies differ, little where cells do. The directions are those of the
    generalised eigenproblem of the scatter between sets and that within, as in linear discriminant analysis.
    """
    from scipy.linalg import eigh

    moments = projection.moments
    scale = moments.power_of_deviation(-recipe.scaling)
    back = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    axes, singular = projection.axes[:, : recipe.n_axes], projection.singular[: recipe.n_axes]
    cells = (axes * back[:, None]).T @ vectors * singular[:, None] / np.sqrt(moments.cells.max())
    within = cells.T @ cells
    within += 1e-6 * np.trace(within) / len(within) * np.eye(len(within))
    means = moments.means @ vectors
    means -= means.mean(axis=0)
    ratios, basis = eigh(means.T @ means / len(means), within)
    # basis.T @ within @ basis is the unit matrix
    return np.asarray(basis / np.sqrt(1 + recipe.evening * ratios.clip(0)) @ basis.T @ within)


def random_axes(n_genes: int, recipe: ProjectionRecipe) -> NDArray[np.float64]:
    """(n_genes, excess_axes) vectors of genes far above their usual value: one direction for each, drawn from a seed."""
    draws = np.random.default_rng(recipe.seed).standard_normal((n_genes, recipe.excess_axes))
    return draws * (recipe.excess_weight / np.sqrt(max(recipe.excess_axes, 1)))


def _scaled(cells: CellSet, moments: Moments, kept: NDArray[np.int64], recipe: ProjectionRecipe) -> NDArray[np.float32]:
    mean = np.asarray(cells.values.mean(axis=0)).ravel()[kept]
    scale = moments.power_of_deviation(-recipe.scaling)[kept]
    x = (cells.values[:, kept].toarray() - mean) * scale
    return np.asarray(x.clip(-recipe.clip, recipe.clip), dtype=np.float32)


def _decompose(
    moments: Moments,
    kept: NDArray[np.int64],
    parts: Sequence[NDArray[np.float32]],
    recipe: ProjectionRecipe,
    *,
    chunked: bool = False,
) -> Projection:
    rows = parts[0]
    if chunked:
        # one part after the other, so that memory does not grow with their number
        for i, part in enumerate(parts[1:], start=2):
            rows = np.concatenate([rows, part])
            if i < len(parts) and len(rows) > recipe.n_axes + SPARE_AXES:
                singular, axes = _truncated_svd(rows, recipe.n_axes + SPARE_AXES, recipe.seed)
                rows = (axes * singular).T.astype(np.float32)
    else:
        rows = np.concatenate(parts)
    singular, axes = _truncated_svd(rows, min(recipe.n_axes, *rows.shape), recipe.seed)
    out = np.zeros((len(moments.squares), axes.shape[1]))
    out[kept] = axes
    return Projection(moments, out, singular)


def _truncated_svd(x: NDArray[np.float32], k: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The k largest singular values and right vectors (columns), each with its largest entry positive.

    By random projection with power iterations (Halko, Martinsson and Tropp 2011).
    """
    draws = np.random.default_rng(seed).standard_normal((x.shape[1], k + 20), dtype=np.float32)
    basis = np.linalg.qr(x @ draws)[0]
    for _ in range(4):
        basis = np.linalg.qr(x @ np.linalg.qr(x.T @ basis)[0])[0]
    _, singular, axes = np.linalg.svd((basis.T @ x).astype(np.float64), full_matrices=False)
    axes = axes[:k].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return singular[:k], axes * np.sign(largest)


def save_statistics(
    folder: str | Path, projection: Projection, recipe: ProjectionRecipe, table: NDArray[np.floating]
) -> None:
    """Write what the finished table (V, n_axes) does not say of the fit it came from.

    The axes follow from the table, except for the direction of the mean cell, which is stored, and the map of `evened`.
    """
    vectors, m = projection.vectors(recipe), projection.moments
    middle = m.center @ vectors
    middle /= np.linalg.norm(middle)
    plain = without(vectors, m.center)
    even = evened(projection, plain, recipe)
    length = np.linalg.norm(plain @ even) / np.linalg.norm(table)
    np.savez_compressed(
        Path(folder) / STATISTICS_FILE,
        sets=m.sets.astype(np.uint16),
        cells=m.cells.astype(np.uint32),
        means=m.means.astype(np.float16),
        squares=m.squares.astype(np.float32),
        singular=projection.singular,
        middle=middle,
        along=(vectors @ middle).astype(np.float32),
        length=length,
        even=even.astype(np.float32),
    )


def load_statistics(folder: str | Path, table: NDArray[np.floating], recipe: ProjectionRecipe) -> Projection:
    """The fit behind a table (V, n_axes) of gene vectors.

    Raises
    ------
    CheckpointError
        If the folder holds no statistics, or those of another table.
    """
    file = Path(folder) / STATISTICS_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds no {STATISTICS_FILE}: only models that were fitted as a projection, such as scfm-mini, can be "
            "adapted; others are fine-tuned"
        )
    with np.load(file, allow_pickle=False) as stored:
        s = {name: stored[name] for name in stored.files}
    if len(s["along"]) != len(table) or len(s["singular"]) != table.shape[1]:
        raise CheckpointError(
            f"{file} is of a table of {len(s['along'])} genes and {len(s['singular'])} axes, the model has {table.shape}"
        )
    moments = Moments(*(s[name].astype(float) for name in ("sets", "cells", "means", "squares")))
    plain = np.linalg.solve(s["even"].astype(float).T, table.T * float(s["length"])).T
    vectors = plain + np.outer(s["along"], s["middle"])
    weight = moments.weights(recipe)
    axes = vectors * s["singular"] ** recipe.whitening / np.where(weight > 0, weight, 1)[:, None]
    return Projection(moments, axes, s["singular"])
