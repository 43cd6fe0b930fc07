"""The contract: a cell's result depends on that cell alone, for every model that is there."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from golden_cases import case

import scfm
from scfm.tl import _embed

CHECKPOINTS = {
    "geneformer_v1": "Geneformer-V1-tiny",
    "geneformer_v2": "Geneformer-V2-tiny",
    "scgpt": "pretrained",
    "nicheformer": "",
    "uce": "",
    "scbert": "",
    "scfoundation": "",
    "scmulan": "",
}
CONTEXT = {"nicheformer": {"species": "organism", "assay": "assay", "modality": "modality"}}
"""What the models of a family must be told about the cells of its case: columns of obs."""
MODELS = [*CHECKPOINTS, "scfm-mini"]


def real_cells() -> anndata.AnnData:
    """Cells of a recorded case: real gene names, counts, a few cells without any gene of a model."""
    adata = anndata.read_h5ad(case("geneformer_v2") / "cells.h5ad")
    adata.X = adata.X.astype(np.float32)
    return adata


def cells_for(name: str) -> anndata.AnnData:
    if name == "scfm-mini":
        return real_cells()
    return anndata.read_h5ad(case(name) / "cells.h5ad")


_LOADED: dict[str, scfm.models.FoundationModel] = {}


@pytest.fixture(params=MODELS)
def setting(request):
    """A model, cells it can read, and their embedding as computed in one go."""
    name = request.param
    if name not in _LOADED:
        folder = name if name == "scfm-mini" else case(name) / "checkpoint" / CHECKPOINTS[name]
        _LOADED[name] = scfm.models.load(folder)
    adata = cells_for(name)
    return _LOADED[name], adata, embedded(_LOADED[name], adata)


def embedded(model, adata, **options) -> np.ndarray:
    copy = adata if adata.isbacked else adata.copy()
    scfm.tl.embed(copy, model, key_added="x", progress=False, context=CONTEXT.get(model.card.family), **options)
    return np.asarray(copy.obsm["X_x"])


def assert_same(ours: np.ndarray, reference: np.ndarray) -> None:
    scale = np.nanmax(np.abs(reference))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(reference))
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * scale)


def with_matrix(adata, matrix) -> anndata.AnnData:
    return anndata.AnnData(matrix, obs=adata.obs.copy(), var=adata.var.copy())


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_embedding_does_not_depend_on_batch_mates(setting, batch_tokens):
    model, adata, reference = setting
    assert_same(embedded(model, adata, batch_tokens=batch_tokens), reference)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_embedding_does_not_depend_on_the_chunks_read(setting, rows, monkeypatch):
    model, adata, reference = setting
    monkeypatch.setattr(_embed, "BLOCK_ROWS", rows)
    assert_same(embedded(model, adata), reference)


def test_rows_come_back_in_their_own_order(setting):
    model, adata, reference = setting
    order = np.random.default_rng(0).permutation(adata.n_obs)
    assert_same(embedded(model, adata[order].copy()), reference[order])


def test_one_cell_alone_is_the_same_cell(setting):
    model, adata, reference = setting
    for i in (0, adata.n_obs - 1):
        assert_same(embedded(model, adata[[i]].copy()), reference[[i]])


def test_columns_may_come_in_any_order(setting):
    model, adata, reference = setting
    order = np.random.default_rng(1).permutation(adata.n_vars)
    assert_same(embedded(model, adata[:, order].copy()), reference)


def test_genes_without_counts_change_nothing(setting):
    model, adata, reference = setting
    extra = pd.DataFrame(index=[f"zero{i}" for i in range(5)])
    wider = anndata.AnnData(
        sp.hstack([adata.X, sp.csr_matrix((adata.n_obs, 5))]).tocsr().astype(np.float32),
        obs=adata.obs,
        var=pd.concat([adata.var.astype(object), extra]).fillna("").infer_objects(),
    )
    assert_same(embedded(model, wider), reference)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.toarray(),
        lambda x: np.asfortranarray(x.toarray()),
        sp.csc_matrix,
        sp.csr_array,
        lambda x: sp.csr_matrix(x, dtype=np.float64),
        lambda x: x.toarray().astype(np.int32),
        lambda x: x.toarray().astype(np.uint16),
    ],
    ids=["dense", "fortran", "csc", "csr_array", "float64", "int32", "uint16"],
)
def test_any_matrix_gives_the_same(setting, convert):
    model, adata, reference = setting
    assert_same(embedded(model, with_matrix(adata, convert(adata.X))), reference)


def test_backed_file_gives_the_same(setting, tmp_path):
    model, adata, reference = setting
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert_same(embedded(model, anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")), reference)


def test_zarr_gives_the_same(setting, tmp_path):
    model, adata, reference = setting
    adata.write_zarr(tmp_path / "cells.zarr")
    assert_same(embedded(model, anndata.read_zarr(tmp_path / "cells.zarr")), reference)


@pytest.mark.parametrize("chunk", [2, 100])
def test_dask_gives_the_same(setting, chunk):
    da = pytest.importorskip("dask.array")
    model, adata, reference = setting
    lazy = with_matrix(adata, da.from_array(adata.X.toarray(), chunks=(chunk, adata.n_vars)))
    assert_same(embedded(model, lazy), reference)


def test_only_the_slots_are_written(setting):
    model, adata, _ = setting
    before = adata.copy()
    scfm.tl.embed(adata, model, key_added="x", progress=False, context=CONTEXT.get(model.card.family))
    np.testing.assert_array_equal(adata.X.data, before.X.data)
    np.testing.assert_array_equal(adata.X.indices, before.X.indices)
    assert set(adata.obs) - set(before.obs) == {"x_n_tokens"}
    assert set(adata.obsm) - set(before.obsm) == {"X_x"}
    assert set(adata.varm) - set(before.varm) == {"x"}
    assert set(adata.uns) - set(before.uns) == {"scfm"}
    pd.testing.assert_frame_equal(adata.var, before.var)


def test_a_seed_gives_the_same_cells_again(setting):
    model, adata, reference = setting
    np.testing.assert_array_equal(embedded(model, adata, seed=0), reference)
