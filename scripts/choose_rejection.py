"""How lenient must rejection be, and which methods agree best with cells measured otherwise? Chosen on sets of their own.

    python scripts/choose_rejection.py DATA [--unseen] [--methods]

DATA holds ``corpus/*.h5ad``. References and queries differ in donor, batch, laboratory, species or depth; none of the sets
is in `compare_annotation.py`. Each type is left out of the reference in turn. Printed: macro F1 of every method, and for each
tolerance how many cells of known and of new types are unknown. scfm-mini has seen most of these cells, without their labels;
``--unseen`` fits it anew without them, as it meets the cells of its users. ``--methods`` leaves no type out: the first
table only, in a few minutes.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from fit_annotator import NAMES
from fit_mini import CONFIG
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score

import scfm
from scfm import models
from scfm.annotation import METHODS, Annotation, Annotator, Reading
from scfm.models import FoundationModel
from scfm.training._fit_projection import ProjectionConfig, fit_projection

TOLERANCES = (0, 0.75, 0.8, 0.85, 0.9, 0.95, 1, 1.05, 1.1)
LEAST = {"reference": 20, "query": 10}
"""Cells of a type that is left out."""
SEPARATED = 0.9
"""F1 on held-out cells of the reference, from which on a type counts."""
SHARES = (0.25, 0.5, 0.75)
"""Weights of the embedding in the mean of both regressions."""
PANCREAS, BLOOD, NODE = "baron_human_pancreas", "zheng_sorted_mudan", "lymph_node_ref"
LUNG, BRAIN, HEART = "mouse_lung_immune_cluey", "darmanis_brain_smartseq", "heart_san_nuclei_multiome"
Cells = anndata.AnnData


@dataclass(frozen=True, eq=False)
class Pair:
    """Reference and query with the column ``label``, the model of their vectors, and whether each is of a mouse."""

    name: str
    reference: Cells
    query: Cells
    model: FoundationModel
    mouse: tuple[bool, bool] = (False, False)

    def fit(self, reference: Cells, method: str) -> Annotator:
        """An annotator on some cells of the reference."""
        ways = [Reading(orthologues=True if mouse else None) for mouse in self.mouse]
        how = {"query_var": self.query.var, "reading": ways[0], "query_reading": ways[1], "model": self.model}
        return Annotator.fit(reference, "label", method=method, **how)

    def ask(self, annotator: Annotator, **options: Any) -> Annotation:
        """What it says of the query."""
        reading = Reading(orthologues=True if self.mouse[1] else None)
        return annotator.annotate(self.query, reading=reading, model=self.model, **options)


def unseen(data: Path, folder: Path) -> FoundationModel:
    """scfm-mini as it is fitted, but to none of the sets that are compared here."""
    config = ProjectionConfig.read(CONFIG)
    names = [Path(file).name for file in config.corpus.files]
    asked = {f"{name}.h5ad" for name in (PANCREAS, BLOOD, NODE, LUNG, BRAIN, HEART)}
    files = [str(data / "corpus" / name) for name in names if name not in asked]
    corpus = replace(config.corpus, files=type(config.corpus.files)(files))
    return fit_projection(replace(config, corpus=corpus, output=replace(config.output, folder=str(folder))))


def read(
    data: Path, model: FoundationModel, name: str, *, mouse: bool = False, broad: bool = False, share: float = 1.0
) -> Cells:
    """A set of the corpus with its vectors; ``share`` of its counts."""
    adata = anndata.read_h5ad(data / "corpus" / f"{name}.h5ad")
    x = adata.X.tocsr().astype(np.float32)
    if share < 1:
        x.data = np.random.default_rng(0).binomial(np.rint(x.data).astype(int), share).astype(np.float32)
        x.eliminate_zeros()
    adata.X = x
    ours = {theirs: name for name, several in NAMES.items() for theirs in several} if broad else {}
    adata.obs["label"] = [ours.get(label, label) for label in adata.obs["cell_type"].astype(str)]
    scfm.tl.embed(adata, model, gene_embeddings=None, orthologues=True if mouse else None, progress=False)
    return adata


def half(adata: Cells, column: str) -> NDArray[np.bool_]:
    """(n,) whether a cell is in a random half of the groups in a column."""
    groups = adata.obs[column].astype(str).to_numpy()
    names = np.random.default_rng(0).permutation(np.unique(groups))
    return np.isin(groups, names[: len(names) // 2])


def pairs(data: Path, model: FoundationModel) -> Iterator[Pair]:
    """Every reference with a query that was measured otherwise."""
    of = partial(read, data, model)
    pair = partial(Pair, model=model)
    human, mouse = of(PANCREAS), of("baron_mouse_pancreas", mouse=True)
    batches = human.obs["batch"].astype(str).to_numpy()
    for batch in np.unique(batches):
        yield pair(f"{PANCREAS}, {batch} held out", human[batches != batch].copy(), human[batches == batch].copy())
    yield pair("pancreas, human to mouse", human, mouse, mouse=(False, True))
    yield pair("pancreas, mouse to human", mouse, human, mouse=(True, False))
    yield pair("sorted blood to lymph node", of(BLOOD, broad=True), of(NODE, broad=True))
    for name, column, is_mouse in (
        (NODE, "donor", False),
        (LUNG, "donor", True),
        (BRAIN, "batch", False),
        ("mouse_brain_merfish", "batch", True),
    ):
        adata = of(name, mouse=is_mouse)
        first = half(adata, column)
        yield pair(f"{name}, by {column}", adata[first].copy(), adata[~first].copy(), mouse=(is_mouse, is_mouse))
    for name, is_mouse, thin_query in ((HEART, False, True), (PANCREAS, False, True), (LUNG, True, False)):
        whole, thin = of(name, mouse=is_mouse), of(name, mouse=is_mouse, share=1 / 3)
        first = half(whole, "donor") if is_mouse else np.random.default_rng(0).random(whole.n_obs) < 0.6
        parts = (whole[first].copy(), thin[~first].copy()) if thin_query else (thin[first].copy(), whole[~first].copy())
        side = "query" if thin_query else "reference"
        yield pair(f"{name}, {side} with a third of the counts", *parts, mouse=(is_mouse, is_mouse))


def labels(adata: Cells) -> NDArray[Any]:
    """(n,) names."""
    return adata.obs["label"].to_numpy().astype(str)


def by_method(pair: Pair) -> dict[str, float]:
    """Macro F1 over known classes with enough cells: what ``auto`` takes, each method, and other weights of the embedding."""
    fitted, true = pair.fit(pair.reference, "stack"), labels(pair.query)
    names, sizes = np.unique(true, return_counts=True)
    counted = [n for n, size in zip(names, sizes, strict=True) if size >= LEAST["query"] and n in fitted.classes]

    def score(proba: NDArray[Any]) -> float:
        found = np.array(fitted.classes)[proba.argmax(axis=1)]
        return float(f1_score(true, found, labels=counted, average="macro", zero_division=0))

    def ask(members: tuple[str, ...]) -> NDArray[Any]:
        bare = replace(fitted, core=fitted.core.only(members), method="stack", temperature=1.0)
        return pair.ask(bare, reject=False).proba

    out = {method: score(ask(members)) for method, members in METHODS.items()}
    vectors, expression = ask(("embedding-linear",)), ask(("expression-linear",))
    weighted = {f"linear, {w:.0%} embedding": score(w * vectors + (1 - w) * expression) for w in SHARES}
    return {"auto": out[pair.fit(pair.reference, "auto").method], **out, **weighted}


def left_out(pair: Pair) -> Iterator[dict[str, Any]]:
    """For each well-separated type that is left out: AUROC, and shares that are unknown at each tolerance."""
    own, true = labels(pair.reference), labels(pair.query)
    whole = pair.fit(pair.reference, "linear")
    codes, proba = whole.held_out or (np.zeros(0, int), np.zeros((0, 1)))
    within = f1_score(codes, proba.argmax(axis=1), labels=range(len(whole.classes)), average=None, zero_division=0)
    for name, f1 in zip(whole.classes, within, strict=True):
        enough = (own == name).sum() >= LEAST["reference"] and (true == name).sum() >= LEAST["query"]
        if f1 < SEPARATED or not enough or len(whole.classes) < 3:
            continue
        annotator = pair.fit(pair.reference[own != name].copy(), "linear")
        found = pair.ask(annotator, tolerance=0)
        level = np.array([found.facts["thresholds"][c] for c in found.classes])[found.proba.argmax(axis=1)]
        new, known = true == name, np.isin(true, found.classes)
        row = {"pair": pair.name, "type": name, "AUROC": roc_auc_score(new[new | known], found.novelty[new | known])}
        for tolerance in TOLERANCES:
            rejected = found.novelty > np.maximum(level, tolerance)
            row |= {f"known {tolerance}": rejected[known].mean(), f"new {tolerance}": rejected[new].mean()}
        yield row


def method_table(f1: dict[str, dict[str, float]]) -> str:
    """Mean, worst and mean rank over pairs, in Markdown."""
    methods = pd.DataFrame(f1)
    ranks = methods.drop(index="auto").rank(ascending=False).mean(axis=1)
    lines = [
        f"| over {methods.shape[1]} pairs | mean macro F1 | worst pair | mean rank |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, each in methods.iterrows():
        rank = f"{ranks[name]:.1f}" if name in ranks else ""
        lines.append(f"| {name} | {each.mean():.3f} | {each.min():.3f} | {rank} |")
    return "\n".join(lines)


def tolerance_table(rows: list[dict[str, Any]]) -> str:
    """Shares of known and new cells that are unknown, in Markdown."""
    table = pd.DataFrame(rows)
    lines = [
        f"{len(table)} types left out of {table['pair'].nunique()} pairs; mean AUROC {table['AUROC'].mean():.3f}",
        "",
        "| `tolerance` | known cells rejected, mean | median pair | worst pair | pairs below 5 % | new cells rejected |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tolerance in TOLERANCES:
        known, new = table[f"known {tolerance}"], table[f"new {tolerance}"]
        by_pair = known.groupby(table["pair"]).mean()
        shares = (known.mean(), by_pair.median(), by_pair.max())
        below = f"{(by_pair < 0.05).sum()} of {len(by_pair)}"
        lines.append(f"| {tolerance} | {' | '.join(f'{s:.1%}' for s in shares)} | {below} | {new.mean():.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--unseen", action="store_true", help="with a model that was fitted to none of these sets")
    parser.add_argument("--methods", action="store_true", help="only compare methods, leave no type out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scfm").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        model = unseen(args.data, Path(scratch)) if args.unseen else models.load("scfm-mini")
        f1, rows = {}, []
        for pair in pairs(args.data, model):
            f1[pair.name] = by_method(pair)
            rows += [] if args.methods else left_out(pair)
            print(pair.name, {name: round(value, 3) for name, value in f1[pair.name].items()}, flush=True)
        print(method_table(f1), tolerance_table(rows) if rows else "", sep="\n\n")


if __name__ == "__main__":
    main()
