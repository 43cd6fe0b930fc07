"""Pairs of labelled sets on which naming cells is compared: other chemistries, assays, conditions and studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import anndata
import numpy as np

import scfm
from scfm.annotation._classifiers import stratified

MIN_CELLS = 20
"""Classes with fewer query cells stand outside macro F1."""
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
