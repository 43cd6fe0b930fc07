"""A dask-backed AnnData is embedded on the user's scheduler, with the local result."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from golden_cases import case

import scfm

da = pytest.importorskip("dask.array")


@pytest.fixture
def cells():
    return anndata.read_h5ad(case("geneformer_v1") / "cells.h5ad")


def lazily(adata, rows_per_chunk):
    chunks = (rows_per_chunk, adata.n_vars)
    matrix = da.from_array(adata.X.toarray(), chunks=chunks).map_blocks(_sparse)
    return anndata.AnnData(matrix, obs=adata.obs.copy(), var=adata.var.copy())


def _sparse(block):
    import scipy.sparse as sp

    return sp.csr_matrix(block)


def test_a_cluster_of_two_workers_gives_the_local_result(cells, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("scfm.models._dask.ROWS_PER_TASK", 4)
    model = scfm.models.load(case("geneformer_v1") / "checkpoint" / "Geneformer-V1-tiny")
    local = cells.copy()
    scfm.tl.embed(local, model, key_added="x", groupby="disease", progress=False)
    lazy = lazily(cells, 3)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert len(client.scheduler_info()["workers"]) == 2
        scfm.tl.embed(lazy, model, key_added="x", groupby="disease", progress=False)
    np.testing.assert_allclose(lazy.obsm["X_x"], local.obsm["X_x"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(lazy.varm["x_groups"], local.varm["x_groups"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(lazy.varm["x_n_cells"], local.varm["x_n_cells"])
    assert isinstance(lazy.X, da.Array)


def test_context_and_groups_follow_their_rows(cells, monkeypatch):
    monkeypatch.setattr("scfm.models._dask.ROWS_PER_TASK", 1)
    model = scfm.models.load(case("geneformer_v1") / "checkpoint" / "Geneformer-V1-tiny")
    local = cells.copy()
    scfm.tl.embed(local, model, key_added="x", groupby="cell_type", progress=False)
    lazy = lazily(cells, 1)
    scfm.tl.embed(lazy, model, key_added="x", groupby="cell_type", progress=False)
    np.testing.assert_allclose(lazy.varm["x_groups"], local.varm["x_groups"], rtol=0, atol=1e-5)
