"""Names of cells by what one would fit oneself: regression, neighbours, CellTypist and scANVI, on the same cells."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import anndata
import numpy as np
import pandas as pd
from naming_cases import Case, Cells
from numpy.typing import NDArray

import scfm
from scfm.annotation._expression import gene_space, log_values, shared, variable_genes

GENES = 2000
"""Genes that scANVI reads."""
FEW, EPOCHS = 1000, 100
"""Cells from which on scVI is trained for so many epochs; its default of 400 would take four times as long."""


def matrices(reference: Cells, query: Cells) -> tuple[Any, Any, list[str]]:
    """Counts of the genes that both measure, and their names."""
    space = shared(gene_space(reference.var, "human", None, None), query.var, None, None)
    out = []
    for cells in (reference, query):
        block = next(iter(scfm.counts.find(cells).blocks(cells.n_obs)))
        out.append(space.counts(block, space.match(cells.var)))
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
    *counts, genes = matrices(reference, query)
    x, y = map(log_values, counts)
    out = {
        "LR on log expression": regression(x, labels, y).astype(str),
        "kNN on PCA": pca_neighbours(x, labels, y).astype(str),
    }
    if find_spec("celltypist"):
        out["CellTypist"] = celltypist_names(x, labels, y, genes)
    return out


def scanvi(case: Case, seed: int) -> dict[str, NDArray[Any]]:
    """scANVI after scVI, with their defaults but for `EPOCHS`, on the `GENES` that vary most in the reference.

    It learns from the query, too, without its labels: its names of a cell depend on the other cells.
    """
    import scvi

    scvi.settings.seed = seed
    reference, query = case.pair(seed)
    x, y, genes = matrices(reference, query)
    kept = variable_genes(log_values(x), GENES)
    var = pd.DataFrame(index=np.array(genes)[kept])
    both = anndata.concat(
        {"reference": anndata.AnnData(x[:, kept], var=var), "query": anndata.AnnData(y[:, kept], var=var)},
        label="set",
        index_unique="-",
    )
    both.obs["label"] = [*reference.obs["label"].astype(str), *["not known"] * query.n_obs]
    scvi.model.SCVI.setup_anndata(both, batch_key="set")
    model = scvi.model.SCVI(both)
    # a last batch of one cell is dropped: batch normalisation needs two
    how: Any = {"accelerator": "cpu", "enable_progress_bar": False, "datasplitter_kwargs": {"drop_last": True}}
    model.train(EPOCHS if both.n_obs >= FEW else None, **how)
    naming = scvi.model.SCANVI.from_scvi_model(model, "not known", labels_key="label")
    naming.train(**how)
    return {"scANVI": np.asarray(naming.predict(both[both.obs["set"] == "query"].copy())).astype(str)}
