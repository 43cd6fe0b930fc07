"""Compare recipes of scfm-mini on labelled files of the corpus that took no part in the fit.

    python scripts/choose_mini.py DATA [--adapted] [--recipes NAME ...]

Three fits per recipe: each without half of the labelled files, and without four files of blood. Rows of the halves: mean over the files of the 5-fold label transfer
within a file, with the query as it is, thinned to 200 counts, cut to 500 genes, and with the rate of every gene changed
as another assay might; the transfer from the other donors or batches to each one, in three files; cell lines between the
counts as they are and other rates; and the transfer between human and mouse pancreas; the mean is that of these seven.
Rows of the blood: transfer from each file to each other one, and mixing of the files within labels (iLISI). Three of the
four have no labels; all are named by a classifier of the sorted cells, cluster by cluster. ``reference/`` and
``benchmark/`` are not looked at.

``--adapted``: the shipped recipe fitted in this way, taken up again by each candidate with the cells that are scored.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from transfer_protocol import (
    Cells,
    Embed,
    adapted,
    centred,
    every_pair,
    f1,
    folds,
    ilisi,
    model_embedding,
    pair,
    random_projection,
    read,
    together,
    transfer,
)

from scfm import genes
from scfm.evaluation._baselines import log_values
from scfm.genes import GeneVocabulary
from scfm.models import ModelCard
from scfm.training import _projection as training
from scfm.training._fit_projection import coding_vocabulary, projection_model
from scfm.training._projection import CellSet, ProjectionRecipe

HALVES = (
    ("baron_human_pancreas", "breast_cancer_cell_lines_dropseq", "darmanis_brain_smartseq", "zheng_sorted_mudan"),
    ("heart_san_nuclei_multiome", "lymph_node_ref", "pollen2014_fluidigm", "ipsc_cardiac_fluidigm"),
)
PANCREAS = ("baron_human_pancreas", "baron_mouse_pancreas")
LINES = "breast_cancer_cell_lines_dropseq"
BLOOD = ("pbmc4k_soupx", "pbmc_1k_citeseq", "pbmc_frozen_donor_a", "pbmc_pisces")
SORTED = "zheng_sorted_mudan"
DONORS = {"baron_human_pancreas": "batch", "darmanis_brain_smartseq": "donor", "lymph_node_ref": "donor"}
SHIPPED = replace(ProjectionRecipe(), max_cells=700)
EARLIER = replace(SHIPPED, scaling=0.75, weighting=0.5, steadying=0.0, whitening=0.5, evening=0.3)
RECIPES = {
    "as shipped": SHIPPED,
    "as shipped before": EARLIER,
    "before, steadying 10": replace(EARLIER, steadying=10.0),
    "before, steadying 10, evening 3": replace(EARLIER, steadying=10.0, evening=3.0),
    "without steadying": replace(SHIPPED, steadying=0.0),
    "without evening": replace(SHIPPED, evening=0.0),
    "without excess": replace(SHIPPED, excess_axes=0),
    "steadying 10": replace(SHIPPED, steadying=10.0),
    "steadying 50": replace(SHIPPED, steadying=50.0),
    "evening 1": replace(SHIPPED, evening=1.0),
    "evening 10": replace(SHIPPED, evening=10.0),
    "scaling 0": replace(SHIPPED, scaling=0.0),
    "scaling 0.5": replace(SHIPPED, scaling=0.5),
    "weighting 0.5": replace(SHIPPED, weighting=0.5),
    "weighting 0.8": replace(SHIPPED, weighting=0.8),
    "whitening 0": replace(SHIPPED, whitening=0.0),
    "whitening 0.5": replace(SHIPPED, whitening=0.5),
    "excess weight 0.1": replace(SHIPPED, excess_weight=0.1),
    "excess weight 0.4": replace(SHIPPED, excess_weight=0.4),
    "128 axes": replace(SHIPPED, n_axes=128),
    "1,000 counts": replace(SHIPPED, target_sum=1000.0),
}
ADAPTED = {
    f"adapted, {name}": replace(SHIPPED, n_axes=128, **changes)
    for name, changes in {
        "as it is": {},
        "without excess": {"excess_axes": 0},
        "evening 10": {"evening": 10.0},
    }.items()
}
CARD = ModelCard(name="candidate", family="scfm", title="a candidate", species="human", licence="none")
Files = dict[str, tuple[Cells, pd.DataFrame]]


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
        "panel 500": [cells.panel(500, 0)],
        "other rates": [altered_rates(cells, 0)],
    }


def corpus(data: Path, names: GeneVocabulary, species: str = "human") -> Files:
    """Files of a species whose source states a licence or a publication."""
    import anndata

    found = {}
    for path in sorted((data / "corpus").glob("*.h5ad")):
        backed = anndata.read_h5ad(path, backed="r")
        its_species, source = str(backed.obs["species"].iloc[0]), dict(backed.uns["source"])
        backed.file.close()
        if its_species == species and any("not stated" not in str(source[k])[:25] for k in ("licence", "publication")):
            found[path.stem] = read(path, names, species=its_species)
    return found


def named(cells: Cells, reference: Cells, names: GeneVocabulary) -> Cells:
    """The cells under coarse names of blood: each cluster that of its mean probability, and platelets by two genes."""
    import anndata
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression

    def values(c: Cells, target: float, columns: NDArray[np.intp]) -> sp.csr_matrix:
        return log_values(c.counts[:, columns], target).astype(np.float32)

    both = np.flatnonzero(reference.measured & cells.measured)
    both = both[reference.counts[:, both].getnnz(axis=0) > 15]
    model = LogisticRegression(C=0.05, max_iter=300).fit(values(reference, 1e3, both), reference.labels)
    likely = pd.DataFrame(model.predict_proba(values(cells, 1e3, both)), columns=model.classes_)
    adata = anndata.AnnData(values(cells, 1e4, np.flatnonzero(cells.measured)))
    sc.pp.highly_variable_genes(adata, n_top_genes=2000)
    sc.pp.pca(adata, n_comps=30, mask_var="highly_variable")
    sc.pp.neighbors(adata, n_neighbors=15)
    sc.tl.leiden(adata, resolution=2.0, flavor="igraph", n_iterations=2)
    clusters = adata.obs["leiden"].to_numpy()
    labels = likely.groupby(clusters).mean().idxmax(axis=1).loc[clusters].to_numpy(dtype=object)
    symbols = np.array(names.symbols)
    platelet = cells.counts[:, np.flatnonzero(np.isin(symbols, ["PPBP", "PF4"]))].toarray() > 1
    labels[np.isin(labels.astype(str), ["CD4 T", "CD8 T"])] = "T"
    labels[platelet.all(axis=1)] = "Platelet"
    return replace(cells, labels=labels)


def coarse_blood(label: str) -> str:
    """B, NK, Mono, CD8 T or CD4 T, of the names of the sorted cells."""
    words = {"CD19": "B", "CD56": "NK", "CD14": "Mono", "CD8": "CD8 T"}
    return next((coarse for word, coarse in words.items() if word in label), "CD4 T")


def shared_labels(a: Cells, b: Cells, at_least: int = 8) -> list[Cells]:
    """Both sets, restricted to the labels that both have often enough."""
    sets = [a.labelled(at_least), b.labelled(at_least)]
    shared = np.intersect1d(sets[0].labels, sets[1].labels)
    return [s[np.isin(s.labels, shared)] for s in sets]


def between_groups(embed: Embed, cells: Cells, groups: NDArray[Any], at_least: int = 10) -> float:
    """Transfer to each group of cells from all others."""
    names, n = np.unique(cells.labels, return_counts=True)
    kept = np.isin(cells.labels, names[n >= at_least])
    cells, groups = cells[kept], groups[kept]
    (x,) = embed([cells])
    predicted = np.empty_like(cells.labels)
    for group in np.unique(groups):
        here = groups == group
        predicted[here] = transfer(x[~here], cells.labels[~here], x[here])
    return f1(cells.labels, predicted).value


def score(
    embeds: Sequence[Embed], files: Files, altered: Mapping[str, dict[str, list[Cells]]], blood: Sequence[Cells] = ()
) -> pd.Series:
    """The rows of one candidate: one embedding per half, and a third one for blood."""
    halves = embeds[:2]
    rows = {
        name: {row: together(folds(embed, q["as it is"][0], x) for x in q[row]).value for row in q}
        for embed, half in zip(halves, HALVES, strict=True)
        for name, q in [(name, altered[name]) for name in half]
    }
    of_half = {name: embed for embed, half in zip(halves, HALVES, strict=True) for name in half}
    row = pd.DataFrame(rows).T.mean()
    row["donors"] = np.mean(
        [
            between_groups(of_half[name], files[name][0], files[name][1][key].astype(str).to_numpy())
            for name, key in DONORS.items()
        ]
    )
    (lines,), (others,) = altered[LINES]["as it is"], altered[LINES]["other rates"]
    lifted = [pair(of_half[LINES], lines, others), pair(of_half[LINES], others.thinned(0.3, 0), lines)]
    row["lines"] = together(lifted).value
    pancreas = shared_labels(*(files[name][0] for name in PANCREAS))
    row["species"] = together([pair(embeds[0], *pancreas), pair(embeds[0], *pancreas[::-1])]).value
    row["mean"] = row.mean()
    if blood:
        row["blood"] = every_pair(embeds[2], blood, 10).value
        row["iLISI"] = ilisi(embeds[2], blood).value
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with corpus/")
    parser.add_argument("--adapted", action="store_true", help="take the shipped fit up again with the cells scored")
    parser.add_argument("--recipes", nargs="*", help="some of the candidates; default: all")
    args = parser.parse_args()
    candidates = ADAPTED if args.adapted else RECIPES
    chosen = [*candidates] if args.recipes is None else args.recipes
    if unknown := {*chosen} - {*candidates}:
        parser.error(f"no recipe {sorted(unknown)}; there are {sorted(candidates)}")
    names = coding_vocabulary("human")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        human, mouse = corpus(args.data, names), corpus(args.data, names, "mouse")
    files = {**human, **mouse}
    altered = {name: queries(files[name][0].labelled(10)) for half in HALVES for name in half}
    reference = files[SORTED][0]
    reference = replace(reference, labels=np.array([coarse_blood(x) for x in reference.labels], dtype=object))
    blood = [named(read(args.data / "corpus" / f"{name}.h5ad", names)[0], reference, names) for name in BLOOD]
    left_out = [{*half, *(PANCREAS if PANCREAS[0] in half else ())} for half in HALVES] + [{*BLOOD}]
    fitted: dict[ProjectionRecipe, list[training.Projection]] = {}

    def embeds(recipe: ProjectionRecipe) -> list[Embed]:
        cells = [
            {
                name: CellSet(log_values(c.counts, recipe.target_sum), c.measured)
                for name, (c, _) in human.items()
                if name not in out
            }
            for out in left_out
        ]
        # what concerns the vectors alone needs no fit of its own
        fits = replace(SHIPPED, scaling=recipe.scaling, target_sum=recipe.target_sum)
        if fits not in fitted:
            fitted[fits] = [training.fit([*sets.values()], fits) for sets in cells]
        if args.adapted:
            return [adapted(fit, recipe, names, CARD) for fit in fitted[fits]]
        return [
            model_embedding(projection_model(fit, [*sets.values()], recipe, names, CARD))
            for fit, sets in zip(fitted[fits], cells, strict=True)
        ]

    def report(name: str, row: pd.Series) -> None:
        print(f"| {name} |", *(f"{x:.3f} |".lstrip("0") for x in row), flush=True)

    head = [*queries(altered[LINES]["as it is"][0]), "donors", "lines", "species", "mean", "blood", "iLISI"]
    print("| recipe |", *(f"{x} |" for x in head))
    print("| --- |", "---: |" * len(head), flush=True)
    for name in chosen:
        of_sets = embeds(candidates[name])
        report(name, score(of_sets, files, altered, blood))
        if args.adapted:
            report(f"{name}, centred", score([*map(centred, of_sets)], files, altered, blood))
    report("random projection", score([random_projection] * 3, files, altered, blood))


if __name__ == "__main__":
    main()
