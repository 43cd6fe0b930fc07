"""Compare scfm.tl.annotate with what one would fit oneself, on labelled sets: transfer, calibration, new types.

    python scripts/compare_annotation.py baselines DATA OUT [--seeds 5]   # what one would fit oneself
    python scripts/compare_annotation.py ours DATA OUT [--seeds 5]        # scfm.tl.annotate
    python scripts/compare_annotation.py new DATA OUT                     # each type left out of the reference
    python scripts/compare_annotation.py table OUT                        # tables in Markdown

DATA holds ``reference/*.h5ad`` and ``benchmark/*.h5ad``. Seed 0 takes the whole reference, each other seed another 90 %
of it, the same for all methods. CellTypist is compared where it is installed. One file per case and seed; those that are
there already are not computed again.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import scfm
from scfm.annotation import Annotator
from scfm.annotation._classifiers import stratified
from scfm.annotation._expression import gene_space, log_values, shared, variable_genes
from scfm.evaluation import annotation_scores

OURS = "scfm auto"
MIN_CELLS = 20
N_BOOT = 500
CHEMISTRIES = ("1k_v2", "1k_v3", "5prime")
LOOSE = {
    "T": ("Naive CD4 T", "Memory CD4 T", "CD4 T", "CD8 T"),
    "Mono": ("CD14+ Mono", "FCGR3A+ Mono"),
}
"""Coarse names of the sets whose fine labels are derived; other names stay."""
SORTED = {
    "CD4 T": (
        "Naive CD4 T",
        "Memory CD4 T",
        "CD4+ T Helper2",
        "CD4+/CD45RO+ Memory",
        "CD4+/CD45RA+/CD25- Naive T",
        "CD4+/CD25 T Reg",
    ),
    "CD8 T": ("CD8+ Cytotoxic T", "CD8+/CD45RA+ Naive Cytotoxic"),
    "B": ("CD19+ B",),
    "NK": ("CD56+ NK",),
    "Mono": ("CD14+ Mono", "FCGR3A+ Mono", "CD14+ Monocyte"),
}
"""Names that the sorted populations and pbmc3k have in common."""
Cells = anndata.AnnData


@dataclass(frozen=True)
class Case:
    """Reference and query, or a function of a seed that gives both."""

    name: str
    kind: str
    pair: Callable[[int], tuple[Cells, Cells]]


def read(data: Path, name: str, names: dict[str, tuple[str, ...]] | None = None) -> Cells:
    """A set with vectors of scfm-mini and the column ``label``."""
    adata = anndata.read_h5ad(data / name)
    adata.X = adata.X.astype(np.float32)
    renamed = {fine: coarse for coarse, fines in (names or {}).items() for fine in fines}
    adata.obs["label"] = [renamed.get(x, x) for x in adata.obs["cell_type"].astype(str)]
    scfm.tl.embed(adata, gene_embeddings=None, progress=False)
    return adata


def only(adata: Cells, **conditions: str) -> Cells:
    """Cells whose columns of obs have some values."""
    kept = np.logical_and.reduce([(adata.obs[k].astype(str) == v).to_numpy() for k, v in conditions.items()])
    return adata[kept].copy()


def fixed(reference: Cells, query: Cells) -> Callable[[int], tuple[Cells, Cells]]:
    """Seed 0: the whole reference; others: a stratified 90 % of it."""

    def pair(seed: int) -> tuple[Cells, Cells]:
        if seed == 0:
            return reference, query
        codes = np.unique(reference.obs["label"], return_inverse=True)[1]
        return reference[stratified(codes, int(0.9 * reference.n_obs), seed)].copy(), query

    return pair


def halves(adata: Cells) -> Callable[[int], tuple[Cells, Cells]]:
    """A stratified half as reference, the other as query."""

    def pair(seed: int) -> tuple[Cells, Cells]:
        codes = np.unique(adata.obs["label"], return_inverse=True)[1]
        rows = stratified(codes, adata.n_obs // 2, seed)
        rest = np.setdiff1d(np.arange(adata.n_obs), rows)
        return adata[rows].copy(), adata[rest].copy()

    return pair


def cases(data: Path) -> Iterator[Case]:
    """Every comparison."""
    chemistries = {n: read(data, f"benchmark/pbmc_{n}.h5ad", LOOSE) for n in CHEMISTRIES}
    for a, b in permutations(chemistries, 2):
        yield Case(f"{a} to {b}", "chemistry", fixed(chemistries[a], chemistries[b]))
    three = only(read(data, "benchmark/sc_mixology_3cl_celseq2_dropseq.h5ad"), demuxlet_class="SNG")
    celseq2, dropseq = only(three, assay="CEL-seq2"), only(three, assay="Drop-seq")
    five = read(data, "benchmark/sc_mixology_5cl_celseq2.h5ad")
    yield Case("CEL-seq2 to Drop-seq", "cell lines", fixed(celseq2, dropseq))
    yield Case("Drop-seq to CEL-seq2", "cell lines", fixed(dropseq, celseq2))
    yield Case("five lines to Drop-seq", "cell lines", fixed(five, dropseq))
    kang = read(data, "reference/kang2018_ctrl_stim.h5ad", LOOSE)
    control, stimulated = only(kang, condition="ctrl"), only(kang, condition="stim")
    yield Case("ctrl to stim", "condition", fixed(control, stimulated))
    yield Case("pbmc3k to ctrl", "study", fixed(read(data, "reference/pbmc3k_labelled.h5ad", LOOSE), control))
    zheng, pbmc = (read(data, f"reference/{n}.h5ad", SORTED) for n in ("zheng_sorted_pbmc", "pbmc3k_labelled"))
    yield Case("sorted to pbmc3k", "same study", fixed(zheng, pbmc))
    yield Case("pbmc14k halves", "within", halves(read(data, "reference/pbmc14k_sorted.h5ad")))


def matrices(reference: Cells, query: Cells) -> tuple[Any, Any, list[str]]:
    """Log expression per 10,000 counts of the genes that both measure, and their names."""
    space = shared(gene_space(reference.var, "human", None, None), query.var, None, None)
    out = []
    for cells in (reference, query):
        block = next(iter(scfm.counts.find(cells).blocks(cells.n_obs)))
        out.append(log_values(space.counts(block, space.match(cells.var))))
    return out[0], out[1], list(space.names)


def regression(x: Any, labels: NDArray[Any], y: Any) -> NDArray[Any]:
    """Logistic regression on log expression of all shared genes."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=300, tol=1e-3).fit(x, labels).predict(y)


def pca_neighbours(x: Any, labels: NDArray[Any], y: Any) -> NDArray[Any]:
    """15 nearest neighbours on 50 principal components of 3,000 variable genes of the reference."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    genes = variable_genes(x)
    pca = PCA(50, random_state=0).fit(x[:, genes].toarray())
    near = KNeighborsClassifier(15, weights="distance").fit(pca.transform(x[:, genes].toarray()), labels)
    return near.predict(pca.transform(y[:, genes].toarray()))


def celltypist_names(x: Any, labels: NDArray[Any], y: Any, genes: list[str]) -> NDArray[Any]:
    """CellTypist trained on the reference, with its defaults."""
    import celltypist

    train = anndata.AnnData(x, var=pd.DataFrame(index=genes), obs=pd.DataFrame({"label": labels}))
    test = anndata.AnnData(y, var=pd.DataFrame(index=genes))
    model = celltypist.train(train, labels="label", check_expression=False, n_jobs=1)
    return celltypist.annotate(test, model=model).predicted_labels["predicted_labels"].to_numpy().astype(str)


def baselines(case: Case, seed: int) -> dict[str, NDArray[Any]]:
    """Names by each method that one would fit oneself."""
    reference, query = case.pair(seed)
    labels = reference.obs["label"].to_numpy().astype(str)
    x, y, genes = matrices(reference, query)
    out = {
        "LR on log expression": regression(x, labels, y).astype(str),
        "kNN on PCA": pca_neighbours(x, labels, y).astype(str),
    }
    if find_spec("celltypist"):
        out["CellTypist"] = celltypist_names(x, labels, y, genes)
    return out


def ours(case: Case, seed: int) -> dict[str, NDArray[Any]]:
    """True names, ours with and without rejection, and what calibration needs."""
    reference, query = case.pair(seed)
    annotator = Annotator.fit(reference, "label", query_var=query.var, seed=seed)
    found = annotator.annotate(query)
    codes, held = annotator.held_out or (np.zeros(0, int), np.zeros((0, 1)))
    return {
        "true": query.obs["label"].to_numpy().astype(str),
        "method": np.array(annotator.method),
        "classes": np.array(found.classes),
        "proba": found.proba,
        "rejecting": found.labels.astype(str),
        "held/codes": codes,
        "held/proba": held,
        "names": np.array(found.classes)[np.nan_to_num(found.proba).argmax(axis=1)],
    }


def leave_one_out(case: Case) -> Iterator[tuple[str, float, float, float, float]]:
    """For each type of both sides: F1 in the reference, AUROC of its cells as new, shares of known and new rejected."""
    reference, query = case.pair(0)
    labels, true = (c.obs["label"].to_numpy().astype(str) for c in (reference, query))
    fitted = Annotator.fit(reference, "label", method="linear", query_var=query.var)
    codes, proba = fitted.held_out or (np.zeros(0, int), np.zeros((0, 1)))
    own = annotation_scores(
        np.array(fitted.classes)[codes], np.array(fitted.classes)[proba.argmax(axis=1)], min_cells=1, n_boot=2
    ).per_class
    for name in np.intersect1d(labels, true):
        if min((labels == name).sum(), (true == name).sum()) < MIN_CELLS or len(np.unique(labels)) < 3:
            continue
        annotator = Annotator.fit(reference[labels != name].copy(), "label", method="linear", query_var=query.var)
        found = annotator.annotate(query)
        used = np.isin(true, labels)
        scores = annotation_scores(
            true[used], found.labels[used], found.proba[used], found.classes, novelty=found.novelty[used], n_boot=2
        )
        rejected = found.labels == "unknown"
        known = used & (true != name)
        yield (
            name,
            float(own.loc[name, "F1"]),
            scores["novelty AUROC"],
            rejected[known].mean(),
            rejected[true == name].mean(),
        )


def f1(true: NDArray[Any], names: NDArray[Any], classes: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Macro F1 (B,) over known classes with enough cells, under weights (B, n) of the cells."""
    every = np.unique(np.concatenate([true, names]))
    t, y = np.searchsorted(every, true), np.searchsorted(every, names)
    kept = np.isin(every, classes) & (np.bincount(t, minlength=len(every)) >= MIN_CELLS)
    known = np.isin(true, classes)
    k = len(every)
    tables = np.stack([np.bincount(t[known] * k + y[known], w[known], k * k).reshape(k, k) for w in weights])
    hits = np.diagonal(tables, axis1=1, axis2=2)
    below = tables.sum(axis=2) + tables.sum(axis=1)
    return (2 * hits / np.maximum(below, 1e-12))[:, kept].mean(axis=1)


@dataclass(frozen=True, eq=False)
class Scored:
    """What one case came to.

    Parameters
    ----------
    means
        Macro F1 of each method, mean over seeds.
    leads
        (B,) bootstrap draws of ours minus each other method.
    seeds, chosen, facts
        How many seeds, what ``auto`` took, calibration errors and the share of known cells that were rejected.
    """

    means: dict[str, float]
    leads: dict[str, NDArray[Any]]
    seeds: int
    chosen: str
    facts: dict[str, float]


def scored(paths: list[Path]) -> Scored:
    """Draws are over query cells (the same for all methods and, where the query is the same, all seeds) and over seeds."""
    rng = np.random.default_rng(0)
    runs = [(np.load(p), np.load(p.with_name(p.name.replace("ours_", "baselines_", 1)))) for p in paths]
    draws: dict[str, list[NDArray[Any]]] = {}
    means: dict[str, list[float]] = {}
    ece, own, unknown, weights = [], [], [], None
    for z, other in runs:
        true, classes = z["true"], z["classes"]
        if weights is None or not np.array_equal(true, runs[0][0]["true"]):
            weights = rng.multinomial(len(true), np.full(len(true), 1 / len(true)), N_BOOT).astype(float)
        for method, names in {OURS: z["names"], **other}.items():
            draws.setdefault(method, []).append(f1(true, names, classes, weights))
            means.setdefault(method, []).append(float(f1(true, names, classes, np.ones((1, len(true))))[0]))
        ece.append(annotation_scores(true, z["names"], z["proba"], [*classes], n_boot=2)["ECE"])
        if len(z["held/codes"]):
            names, proba = classes[z["held/codes"]], z["held/proba"]
            own.append(annotation_scores(names, classes[proba.argmax(1)], proba, [*classes], n_boot=2)["ECE"])
        unknown.append((z["rejecting"][np.isin(true, classes)] == "unknown").mean())
    picked = rng.integers(0, len(runs), (len(runs), N_BOOT))
    over_seeds = {m: np.take_along_axis(np.stack(d), picked, axis=0).mean(axis=0) for m, d in draws.items()}
    return Scored(
        {m: float(np.mean(v)) for m, v in means.items()},
        {m: over_seeds[OURS] - d for m, d in over_seeds.items() if m != OURS},
        len(runs),
        ", ".join(dict.fromkeys(str(z["method"]) for z, _ in runs)),
        {"own": float(np.mean(own)), "query": float(np.mean(ece)), "rejected": float(np.mean(unknown))},
    )


def lead(means: dict[str, float], draws: NDArray[Any], other: str) -> dict[str, str]:
    """Ours minus another, with its interval and what that means."""
    low, high = np.quantile(draws, [0.025, 0.975])
    verdict = "better" if low > 0 else "worse" if high < 0 else "tie"
    return {"difference": f"{means[OURS] - means[other]:+.3f} [{low:+.3f}, {high:+.3f}]", "": verdict}


def tables(folder: Path) -> str:
    """Means over seeds with paired intervals, calibration, and new types."""
    files = pd.Series(sorted(folder.glob("ours_*.npz")))
    names = files.map(lambda p: p.stem.split("_seed")[0].removeprefix("ours_").replace("-to-", " to "))
    every = {name: scored([*group]) for name, group in files.groupby(names)}
    rows, extra = [], []
    for name, s in every.items():
        best = max(s.leads, key=lambda m: s.means[m])
        row = {"case": name, "seeds": s.seeds, **{m: f"{v:.3f}" for m, v in s.means.items()}}
        rows.append({**row, "best other": best, **lead(s.means, s.leads[best], best)})
        own, query, rejected = (s.facts[k] for k in ("own", "query", "rejected"))
        extra.append(
            {
                "case": name,
                "chosen": s.chosen,
                "ECE, held-out reference": f"{own:.3f}",
                "ECE, query": f"{query:.3f}",
                "known cells rejected": f"{rejected:.1%}",
            }
        )
    parts = [markdown(rows), markdown([*pooled(every)]), markdown(extra)]
    left = [pd.read_csv(path) for path in sorted(folder.glob("left_*.csv")) if path.stat().st_size > 1]
    return "\n\n".join([*parts, *([new_type_tables(pd.concat(left))] if left else [])])


def pooled(every: dict[str, Scored]) -> Iterator[dict[str, str]]:
    """Ours against each other method, mean over the pairs of chemistries and over all cases."""
    pairs = [f"{a} to {b}" for a, b in permutations(CHEMISTRIES, 2)]
    for what, names in (("pairs of chemistries", pairs), ("all cases", [*every])):
        there = [every[name] for name in names if name in every]
        for other in there[0].leads if there else ():
            means = {m: float(np.mean([s.means[m] for s in there])) for m in (OURS, other)}
            found = lead(means, np.mean([s.leads[other] for s in there], axis=0), other)
            own, theirs = (f"{means[m]:.3f}" for m in (OURS, other))
            yield {
                "mean over": f"{len(there)} {what}",
                "other": other,
                OURS: own,
                "macro F1 of the other": theirs,
                **found,
            }


def new_type_tables(table: pd.DataFrame) -> str:
    """A row per case, and the mean over well-separated types."""
    rows = []
    for name, group in table.groupby("case"):
        lowest = group.loc[group["AUROC"].idxmin()]
        rows.append(
            {
                "case": name,
                "types left out": len(group),
                "mean AUROC": f"{group['AUROC'].mean():.3f}",
                "lowest AUROC": f"{lowest['AUROC']:.3f} ({lowest['left out']})",
                "known cells rejected": f"{group['known rejected'].mean():.1%}",
                "new cells rejected": f"{group['new rejected'].mean():.1%}",
            }
        )
    clear = table[table["F1 in the reference"] >= 0.9]
    return markdown(rows) + (
        f"\n\nWell-separated types (F1 of at least .9 in the reference): {len(clear)}; mean AUROC {clear['AUROC'].mean():.3f}; "
        f"known cells rejected {clear['known rejected'].mean():.1%}, new ones {clear['new rejected'].mean():.1%}."
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table."""
    names = [*dict.fromkeys(n for row in rows for n in row)]
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(n, "")) for n in names) + " |" for row in rows)])


def new_types(case: Case) -> pd.DataFrame:
    """`leave_one_out` as a table."""
    columns = ("left out", "F1 in the reference", "AUROC", "known rejected", "new rejected")
    return pd.DataFrame(leave_one_out(case), columns=columns).assign(case=case.name)


def main() -> None:
    """Run or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["baselines", "ours", "new", "table"])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scfm").setLevel(logging.ERROR)
    if args.what == "table":
        print(tables(args.paths[0]))
        return
    data, out = args.paths
    out.mkdir(parents=True, exist_ok=True)
    every = list(cases(data))
    work = {"baselines": baselines, "ours": ours}.get(args.what)
    for seed in range(args.seeds if work else 1):
        for case in every:
            name = case.name.replace(" ", "-")
            path = out / (f"{args.what}_{name}_seed{seed}.npz" if work else f"left_{name}.csv")
            if path.exists():
                continue
            if work:
                np.savez_compressed(path, **work(case, seed))
            else:
                new_types(case).to_csv(path, index=False)


if __name__ == "__main__":
    main()
