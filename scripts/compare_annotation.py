"""Compare scfm.tl.annotate with what one would fit oneself, on labelled sets: transfer, calibration, new types.

    python scripts/compare_annotation.py baselines DATA OUT [--seeds 5]   # what one would fit oneself
    python scripts/compare_annotation.py ours DATA OUT [--seeds 5]        # scfm.tl.annotate
    python scripts/compare_annotation.py scanvi DATA OUT [--seeds 1]      # scANVI, where scvi-tools is installed
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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from naming_baselines import baselines, scanvi
from naming_cases import CHEMISTRIES, MIN_CELLS, Case, cases
from numpy.typing import NDArray

from scfm.annotation import Annotator
from scfm.evaluation import annotation_scores

OURS = "scfm auto"
N_BOOT = 500


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


def scored(paths: list[Path], against: str = "baselines") -> Scored:
    """Ours in some files against what stands beside them.

    Draws are over query cells (the same for all methods and, where the query is the same, all seeds) and over seeds.
    """
    rng = np.random.default_rng(0)
    runs = [(np.load(p), np.load(p.with_name(p.name.replace("ours_", f"{against}_", 1)))) for p in paths]
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
    names = files.map(lambda p: p.stem.split("_seed")[0].removeprefix("ours_"))
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
    parts = [markdown(rows), markdown([*pooled(every)]), markdown([*beside(files, names)]), markdown(extra)]
    left = [pd.read_csv(path) for path in sorted(folder.glob("left_*.csv")) if path.stat().st_size > 1]
    return "\n\n".join([*parts, *([new_type_tables(pd.concat(left))] if left else [])])


def beside(files: pd.Series, names: pd.Series) -> Iterator[dict[str, Any]]:
    """Ours against scANVI, on the cases and seeds that it was run on."""
    there = files.map(lambda p: p.with_name(p.name.replace("ours_", "scanvi_", 1)).exists())
    every = {name: scored([*group], "scanvi") for name, group in files[there].groupby(names[there])}
    for name, s in every.items():
        (other,) = s.leads
        each = {m: f"{v:.3f}" for m, v in s.means.items()}
        yield {"case": name, "seeds": s.seeds, **each, **lead(s.means, s.leads[other], other)}
    for row in pooled(every):
        yield {
            "case": row["mean over"],
            OURS: row[OURS],
            row["other"]: row["macro F1 of the other"],
            "difference": row["difference"],
            "": row[""],
        }


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
    parser.add_argument("what", choices=["baselines", "ours", "scanvi", "new", "table"])
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
    work = {"baselines": baselines, "ours": ours, "scanvi": scanvi}.get(args.what)
    for seed in range(args.seeds if work else 1):
        for case in every:
            path = out / (f"{args.what}_{case.name}_seed{seed}.npz" if work else f"left_{case.name}.csv")
            if path.exists():
                continue
            if work:
                np.savez_compressed(path, **work(case, seed))
            else:
                new_types(case).to_csv(path, index=False)


if __name__ == "__main__":
    main()
