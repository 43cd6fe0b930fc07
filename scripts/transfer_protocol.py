"""Label transfer and mixing of an embedding on labelled sets: what is scored, and how.

An embedding is a function that takes some data sets at once and returns one matrix per set; what is computed zero-shot
treats them one by one. Intervals are 95 % percentiles over cells drawn again, with the neighbours as they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from scfm.evaluation._baselines import log_values
from scfm.evaluation._scores import Score, macro_f1, mean_of_groups, table_score
from scfm.evaluation._space import prepared
from scfm.evaluation._statistics import interval, resample_cells
from scfm.evaluation._transfer import knn_labels

N_NEIGHBORS = 15
N_BOOT = 300
N_DRAWS = 5
"""Thinnings and panels are random: mean over so many draws."""
ROWS = ("lines", "lines 5->3", "chem", "cross", "stim", "pbmc3k CV", "p14 CV", "depth 10 %", "depth 5 %", "panel 500")
COARSE = {
    "CD4 T": (
        "Naive CD4 T",
        "Memory CD4 T",
        "CD4 T",
        "CD4+ T Helper2",
        "CD4+/CD45RO+ Memory",
        "CD4+/CD45RA+/CD25- Naive T",
        "CD4+/CD25 T Reg",
    ),
    "CD8 T": ("CD8 T", "CD8+ Cytotoxic T", "CD8+/CD45RA+ Naive Cytotoxic"),
    "B": ("B", "CD19+ B"),
    "NK": ("NK", "CD56+ NK"),
    "Mono": ("CD14+ Mono", "FCGR3A+ Mono", "CD14+ Monocyte"),
}
FILES = {
    "reference": ("pbmc3k_labelled", "zheng_sorted_pbmc", "kang2018_ctrl_stim", "pbmc14k_sorted"),
    "benchmark": (
        "sc_mixology_3cl_celseq2_dropseq",
        "sc_mixology_5cl_celseq2",
        "pbmc_1k_v2",
        "pbmc_1k_v3",
        "pbmc_5prime",
    ),
}


@dataclass(frozen=True)
class Cells:
    """Counts (n, V) of n cells over the V vocabulary genes, the genes that were measured (V,), and labels (n,)."""

    counts: sp.csr_matrix
    measured: NDArray[np.bool_]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Cells:
        return replace(self, counts=self.counts[rows], labels=self.labels[rows])

    def coarse(self) -> Cells:
        """The cells whose label has a coarse name, under that name."""
        names = {fine: coarse for coarse, fines in COARSE.items() for fine in fines}
        return replace(self, labels=np.array([names.get(x, "") for x in self.labels])).labelled()

    def labelled(self, at_least: int = 1) -> Cells:
        """The cells of labels with enough cells."""
        names, n = np.unique(self.labels, return_counts=True)
        return self[np.isin(self.labels, [x for x, k in zip(names, n, strict=True) if x and k >= at_least])]

    def thinned(self, share: float, seed: int) -> Cells:
        """Every molecule kept with probability ``share``."""
        counts = self.counts.copy()
        counts.data = np.random.default_rng(seed).binomial(counts.data.astype(int), share).astype(np.float32)
        counts.eliminate_zeros()
        return replace(self, counts=counts)

    def panel(self, n_genes: int, seed: int) -> Cells:
        """Restricted to random genes that more than 25 cells express."""
        expressed = np.flatnonzero(self.counts.getnnz(axis=0) > 25)
        kept = np.zeros(len(self.measured), dtype=bool)
        kept[np.random.default_rng(seed).choice(expressed, n_genes, replace=False)] = True
        return replace(self, counts=(self.counts @ sp.diags(kept.astype(np.float32))).tocsr(), measured=kept)


Embed = Callable[[Sequence[Cells]], list[NDArray[Any]]]
Files = dict[str, tuple[Cells, pd.DataFrame]]


def transfer(
    reference: NDArray[Any], labels: NDArray[Any], query: NDArray[Any], n_neighbors: int = N_NEIGHBORS
) -> NDArray[Any]:
    """Majority label of the nearest reference cells by cosine; ties go to the closer ones."""
    names, codes = np.unique(labels, return_inverse=True)
    return names[knn_labels(_unit(reference), codes, _unit(query), n_neighbors)]


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    """Vectors of unit length; cells without a vector are at 0."""
    return prepared(np.nan_to_num(np.asarray(x, dtype=np.float32)))


@dataclass(frozen=True, eq=False)
class Row:
    """The mean of scores that may be of different cells."""

    scores: list[Score]

    @property
    def value(self) -> float:
        """The mean itself."""
        return float(np.mean([s.value for s in self.scores]))

    def replicates(self) -> NDArray[Any]:
        """(B,) means over cells drawn again; scores of equally many cells (altered copies) draw the same ones."""
        drawn = [resample_cells(np.zeros(s.cells.shape[0], int), N_BOOT, 0).replicates(s) for s in self.scores]
        return np.mean(drawn, axis=0)


def f1(true: NDArray[Any], predicted: NDArray[Any]) -> Score:
    """Macro F1 over the classes of the query."""
    names, codes = np.unique(true, return_inverse=True)
    place = {name: i for i, name in enumerate(names)}
    return table_score(codes, np.array([place.get(x, -1) for x in predicted]), macro_f1, n_rows=len(names))


def pair(embed: Embed, reference: Cells, query: Cells) -> Row:
    """Transfer from one set to another."""
    x, y = embed([reference, query])
    return Row([f1(query.labels, transfer(x, reference.labels, y))])


def folds(embed: Embed, cells: Cells, query: Cells | None = None) -> Row:
    """5-fold transfer within a set; the query may be an altered copy of its cells."""
    embedded = embed([cells] if query is None else [cells, query])
    predicted = np.empty_like(cells.labels)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(cells.labels, cells.labels):
        predicted[test] = transfer(embedded[0][train], cells.labels[train], embedded[-1][test])
    return Row([f1(cells.labels, predicted)])


def together(rows: Iterable[Row]) -> Row:
    """The mean over all scores of some rows."""
    return Row([score for row in rows for score in row.scores])


def every_pair(embed: Embed, sets: Sequence[Cells], at_least: int = 1) -> Row:
    """Mean over ordered pairs, each on the labels that both sides have in sufficient number."""
    sets = [s.labelled(at_least) for s in sets]
    rows = []
    for a, b in permutations(sets, 2):
        shared = np.intersect1d(a.labels, b.labels)
        rows.append(pair(embed, a[np.isin(a.labels, shared)], b[np.isin(b.labels, shared)]))
    return together(rows)


def ilisi(embed: Embed, sets: Sequence[Cells], n_neighbors: int = 30, at_least: int = 90) -> Row:
    """Effective number of batches among the neighbours of the same label, scaled to 0..1; mean over labels."""
    x = _unit(np.concatenate(embed(sets)))
    batch = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    names, codes = np.unique(np.concatenate([s.labels for s in sets]), return_inverse=True)
    mixing = np.full(len(x), np.nan)
    for code in range(len(names)):
        here = np.flatnonzero(codes == code)
        if len(here) < at_least:
            continue
        similarity = x[here] @ x[here].T
        np.fill_diagonal(similarity, -2)
        near = np.argpartition(-similarity, n_neighbors, axis=1)[:, :n_neighbors]
        share = np.stack([(batch[here][near] == b).mean(1) for b in range(len(sets))])
        mixing[here] = (1 / (share**2).sum(0) - 1) / (len(sets) - 1)
    return Row([mean_of_groups(mixing, codes, np.isfinite(mixing))])


def protocol(embed: Embed, files: Files) -> pd.DataFrame:
    """Value and ends of the interval of every row, of the mean of the ten F1 rows, and of iLISI."""
    three, about = files["sc_mixology_3cl_celseq2_dropseq"]
    celseq2, dropseq = (three[(about["assay"] == assay).to_numpy()] for assay in ("CEL-seq2", "Drop-seq"))
    five = files["sc_mixology_5cl_celseq2"][0]
    kang, about = files["kang2018_ctrl_stim"]
    control, stimulated = (kang[(about["condition"] == c).to_numpy()] for c in ("ctrl", "stim"))
    pbmc = files["pbmc3k_labelled"][0]
    chemistries = [files[name][0] for name in ("pbmc_1k_v2", "pbmc_1k_v3", "pbmc_5prime")]
    coarse = pbmc.coarse()

    def drawn(alter: Callable[[int], Cells]) -> Row:
        return together(folds(embed, coarse, alter(seed)) for seed in range(N_DRAWS))

    scores = {
        "lines": together([pair(embed, celseq2, dropseq), pair(embed, dropseq, celseq2)]),
        "lines 5->3": together([pair(embed, five, celseq2), pair(embed, five, dropseq)]),
        "chem": every_pair(embed, chemistries, 10),
        "cross": every_pair(embed, [coarse, files["zheng_sorted_pbmc"][0].coarse(), control.coarse()]),
        "stim": pair(embed, control, stimulated),
        "pbmc3k CV": folds(embed, pbmc),
        "p14 CV": folds(embed, files["pbmc14k_sorted"][0]),
        "depth 10 %": drawn(lambda seed: coarse.thinned(0.10, seed)),
        "depth 5 %": drawn(lambda seed: coarse.thinned(0.05, seed)),
        "panel 500": drawn(lambda seed: coarse.panel(500, seed)),
    }
    mixing = ilisi(embed, chemistries)
    values = {name: row.value for name, row in scores.items()}
    values |= {"mean": float(np.mean(list(values.values()))), "iLISI": mixing.value}
    replicates = {name: row.replicates() for name, row in scores.items()}
    replicates |= {"mean": np.mean(list(replicates.values()), axis=0), "iLISI": mixing.replicates()}
    n = sum(len(s) for s in chemistries)  # many: the intervals are plain percentiles
    return pd.DataFrame(
        {name: (x, *interval(replicates[name], n)) for name, x in values.items()}, ["value", "low", "high"]
    ).T


def random_projection(sets: Sequence[Cells], *, n_axes: int = 192, target: float = 300.0) -> list[NDArray[Any]]:
    """log1p values times a fixed random matrix."""
    axes = np.random.default_rng(0).standard_normal((sets[0].counts.shape[1], n_axes))
    return [log_values(s.counts, target) @ axes for s in sets]


def model_embedding(model: Any, vocabulary: Any = None) -> Embed:
    """The cell vectors of a loaded model, set by set, by way of its tokenizer.

    ``vocabulary`` is that of the cells, where it is not the model's.
    """
    from scfm.counts import CountBlock
    from scfm.genes import match

    vocabulary = vocabulary or model.vocabulary

    def one(cells: Cells) -> NDArray[Any]:
        columns = np.flatnonzero(cells.measured)
        x = cells.counts[:, columns].tocsr()
        names = [vocabulary.names[i] for i in genes_of(vocabulary)[columns]]
        block = CountBlock(x.indptr.astype(np.int64), x.indices.astype(np.int32), x.data, len(columns))
        return model.embed_cells(model.tokenizer.tokenize_block(block, match(names, model.vocabulary)))

    return lambda sets: [one(s) for s in sets]


def remembered(embed: Embed) -> Embed:
    """The same, where what was fitted on the same sets, in any order, is not fitted again."""
    known: dict[frozenset[str], dict[str, NDArray[Any]]] = {}

    def once(sets: Sequence[Cells]) -> list[NDArray[Any]]:
        names = [sha256(s.counts.data.tobytes() + s.counts.indices.tobytes()).hexdigest() for s in sets]
        if frozenset(names) not in known:
            known[frozenset(names)] = dict(zip(names, embed(sets), strict=True))
        return [known[frozenset(names)][name] for name in names]

    return once


def centred(embed: Embed) -> Embed:
    """Each set minus its mean."""
    return lambda sets: [x - x.mean(0) for x in embed(sets)]


def adapted(fit: Any, recipe: Any, vocabulary: Any, card: Any) -> Embed:
    """The gene vectors of a fit taken up again with all sets together, each a set of its own."""
    from scfm.training._fit_projection import projection_model
    from scfm.training._projection import CellSet, extend

    def embed(sets: Sequence[Cells]) -> list[NDArray[Any]]:
        of_cells = [CellSet(log_values(s.counts, recipe.target_sum), s.measured) for s in sets]
        extended = extend(fit, of_cells, recipe)
        return model_embedding(projection_model(extended, of_cells, recipe, vocabulary, card))(sets)

    return remembered(embed)


def genes_of(vocabulary: Any) -> NDArray[np.int64]:
    """(V,) ids of the genes among the tokens."""
    return np.flatnonzero(vocabulary.is_gene)


def read(
    path: Path, vocabulary: Any, label: str = "cell_type", species: str | None = None
) -> tuple[Cells, pd.DataFrame]:
    """Counts of a file over a vocabulary's genes, and its ``obs``."""
    import anndata

    from scfm import genes

    adata = anndata.read_h5ad(path)
    orthologues = genes.orthologues() if species not in (None, vocabulary.species) else None
    columns = genes.match(adata.var, vocabulary, orthologues=orthologues).columns
    place = np.full(len(vocabulary), -1)
    place[genes_of(vocabulary)] = np.arange(len(genes_of(vocabulary)))
    columns = np.where(columns >= 0, place[columns], -1)
    found = np.flatnonzero(columns >= 0)
    shape = (adata.n_vars, len(genes_of(vocabulary)))
    join = sp.csr_matrix((np.ones(len(found), np.float32), (found, columns[found])), shape=shape)
    measured = np.zeros(shape[1], dtype=bool)
    measured[columns[found]] = True
    labels = adata.obs[label].astype(str).to_numpy() if label in adata.obs else np.full(adata.n_obs, "")
    return Cells((sp.csr_matrix(adata.X) @ join).tocsr(), measured, labels.astype(object)), adata.obs


def evaluated_files(data: Path, vocabulary: Any) -> Iterator[tuple[str, tuple[Cells, pd.DataFrame]]]:
    """The files that the protocol uses, by name."""
    for folder, names in FILES.items():
        for name in names:
            yield name, read(data / folder / f"{name}.h5ad", vocabulary)
