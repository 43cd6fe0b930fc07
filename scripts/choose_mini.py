"""Compare recipes of scfm-mini on labelled files of the corpus that took no part in the fit.

    python scripts/choose_mini.py DATA

Two fits per recipe, each without half of the labelled files. Rows: mean over the files of the 5-fold label transfer
within a file, with the query as it is, thinned to 200 and 100 counts, cut to 500 genes, and with the rate of every gene
changed as another assay might; and the transfer between human and mouse pancreas. ``reference/`` and ``benchmark/``
are not looked at.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from evaluate_mini import Cells, folds, pair, random_projection, read, together
from numpy.typing import NDArray

from scfm import genes
from scfm.evaluation._baselines import log_values
from scfm.genes import GeneVocabulary
from scfm.training import _projection as training
from scfm.training._fit_projection import coding_vocabulary
from scfm.training._projection import CellSet, ProjectionRecipe, without

HALVES = (
    ("baron_human_pancreas", "breast_cancer_cell_lines_dropseq", "darmanis_brain_smartseq", "zheng_sorted_mudan"),
    ("heart_san_nuclei_multiome", "lymph_node_ref", "pollen2014_fluidigm", "ipsc_cardiac_fluidigm"),
)
PANCREAS = ("baron_human_pancreas", "baron_mouse_pancreas")
SHIPPED = replace(ProjectionRecipe(), max_cells=700)
RECIPES = {
    "as shipped": SHIPPED,
    "256 axes": replace(SHIPPED, n_axes=256),
    "128 axes": replace(SHIPPED, n_axes=128),
    "scaling 1, weighting 1": replace(SHIPPED, scaling=1.0, weighting=1.0),
    "scaling 1, weighting 0.5": replace(SHIPPED, scaling=1.0),
    "scaling 0.5, weighting 0.5": replace(SHIPPED, scaling=0.5),
    "scaling 0.25, weighting 0.25": replace(SHIPPED, scaling=0.25, weighting=0.25),
    "whitening 0.25": replace(SHIPPED, whitening=0.25),
    "1,000 counts": replace(SHIPPED, target_sum=1000.0),
}
Embed = Callable[[Sequence[Cells]], list[NDArray[Any]]]
Map = Callable[[Any, NDArray[Any]], NDArray[Any]]
"""From (n, V) values, and the genes (V,) that were measured, to cell vectors."""


def _removed(vectors: NDArray[Any], center: NDArray[Any]) -> Map:
    kept = without(vectors, center)
    return lambda x, _: x @ kept


CENTRES: dict[str, Callable[[NDArray[Any], NDArray[Any]], Map]] = {
    "direction of the mean cell removed": _removed,
    "mean over the measured genes": lambda v, c: lambda x, measured: x @ v - (c * measured) @ v,
    "mean over all genes": lambda v, c: lambda x, _: x @ v - c @ v,
    "no centre": lambda v, c: lambda x, _: x @ v,
    "without the first axis": lambda v, c: lambda x, _: x @ np.ascontiguousarray(v[:, 1:]),
    "mean times its share in expressed genes": lambda v, c: lambda x, _: x @ v - np.outer((x > 0) @ c / c.sum(), c @ v),
}


def altered_rates(cells: Cells, seed: int, spread: float = 1.0) -> Cells:
    """Counts drawn anew at equal depth after every gene's rate was changed by a log-normal factor."""
    draw = np.random.default_rng(seed)
    factor = np.exp(draw.normal(0, spread, cells.counts.shape[1]))
    rates = (cells.counts.astype(np.float64) @ sp.diags(factor)).tocsr()
    depth = np.asarray(cells.counts.sum(axis=1)).ravel() / np.asarray(rates.sum(axis=1)).ravel()
    counts = (sp.diags(depth) @ rates).tocsr()
    counts.data = draw.poisson(counts.data).astype(np.float32)
    counts.eliminate_zeros()
    return replace(cells, counts=counts)


def queries(cells: Cells) -> dict[str, list[Cells]]:
    """Altered copies of the cells by row name."""
    depth = np.median(np.asarray(cells.counts.sum(axis=1)))
    return {
        "as it is": [cells],
        "200 counts": [cells.thinned(min(1, 200 / depth), 0)],
        "100 counts": [cells.thinned(min(1, 100 / depth), 0)],
        "panel 500": [cells.panel(500, seed) for seed in range(3)],
        "other rates": [altered_rates(cells, 0)],
    }


def corpus(data: Path, names: GeneVocabulary, species: str = "human") -> dict[str, Cells]:
    """Files of a species whose source states a licence or a publication."""
    import anndata

    found = {}
    for path in sorted((data / "corpus").glob("*.h5ad")):
        backed = anndata.read_h5ad(path, backed="r")
        its_species, source = str(backed.obs["species"].iloc[0]), dict(backed.uns["source"])
        backed.file.close()
        if its_species == species and any("not stated" not in str(source[k])[:25] for k in ("licence", "publication")):
            found[path.stem] = read(path, names, species=its_species)[0]
    return found


def shared_labels(a: Cells, b: Cells, at_least: int = 8) -> list[Cells]:
    """Both sets, restricted to the labels that both have often enough."""
    sets = [a.labelled(at_least), b.labelled(at_least)]
    shared = np.intersect1d(sets[0].labels, sets[1].labels)
    return [s[np.isin(s.labels, shared)] for s in sets]


def score(
    embeds: Sequence[Embed], files: Mapping[str, Cells], altered: Mapping[str, dict[str, list[Cells]]]
) -> pd.Series:
    """The rows of one candidate: one embedding per half."""
    rows = {
        name: {row: together(folds(embed, q["as it is"][0], x) for x in q[row]).value for row in q}
        for embed, half in zip(embeds, HALVES, strict=True)
        for name, q in [(name, altered[name]) for name in half]
    }
    pancreas = shared_labels(*(files[name] for name in PANCREAS))
    row = pd.DataFrame(rows).T.mean()
    row["species"] = together([pair(embeds[0], *pancreas), pair(embeds[0], *pancreas[::-1])]).value
    row["mean"] = row.mean()
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with corpus/")
    data = parser.parse_args().data
    names = coding_vocabulary("human")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        human = corpus(data, names)
        mouse = corpus(data, names, "mouse")
    files = {**human, **mouse}
    altered = {name: queries(files[name].labelled(10)) for half in HALVES for name in half}

    def projections(recipe: ProjectionRecipe, pool: Mapping[str, Cells]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        left_out = [{*half, *(PANCREAS if PANCREAS[0] in half else ())} for half in HALVES]
        fits = [
            training.fit(
                [
                    CellSet(log_values(c.counts, recipe.target_sum), c.measured)
                    for name, c in pool.items()
                    if name not in out
                ],
                recipe,
            )
            for out in left_out
        ]
        return [(f.vectors(recipe), f.moments.center) for f in fits]

    def report(name: str, recipe: ProjectionRecipe, fits: list[tuple[NDArray[Any], NDArray[Any]]], centre: str) -> None:
        maps = [CENTRES[centre](*f) for f in fits]
        embeds = [
            lambda sets, m=m: [m(log_values(s.counts, recipe.target_sum), s.measured) for s in sets] for m in maps
        ]
        print(f"{name:45}", *(f"{x:7.3f}" for x in score(embeds, files, altered)), flush=True)

    first = next(iter(CENTRES))
    print(" " * 45, "  as is  200 c.  100 c.   panel   rates species    mean")
    for name, recipe in RECIPES.items():
        fits = projections(recipe, human)
        report(name, recipe, fits, first)
        if recipe == SHIPPED:
            for centre in [*CENTRES][1:]:
                report(centre, recipe, fits, centre)
    report("with the mouse files", SHIPPED, projections(SHIPPED, files), first)
    print(f"{'random projection':45}", *(f"{x:7.3f}" for x in score([random_projection] * 2, files, altered)))


if __name__ == "__main__":
    main()
