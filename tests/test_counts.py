"""Counts are the same whatever holds them, and nothing that holds them is changed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.io import sparse_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scfm import counts
from scfm.counts import _readers
from scfm.errors import CountsError

N_CELLS, N_GENES = 37, 23


def make_counts(n_cells: int = N_CELLS, n_genes: int = N_GENES, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.poisson(rng.gamma(0.5, 4, n_genes), (n_cells, n_genes))
    matrix[3] = 0
    return matrix


def collected(source: counts.CountSource, n_rows: int = 10, rows: slice | None = None) -> np.ndarray:
    """Everything that is streamed, dense; repeats added up."""
    start, stop, _ = (rows or slice(None)).indices(source.shape[0])
    dense = np.zeros((stop - start, source.shape[1]))
    at = start
    for block in source.blocks(n_rows, rows):
        assert block.start == at and 0 < block.n_cells <= n_rows and block.n_columns == source.shape[1]
        assert block.indptr.dtype == np.int64 and block.indices.dtype == np.int32 and block.indptr[0] == 0
        assert block.data.dtype in (np.float32, np.float64) and len(block.data) == block.indptr[-1]
        row = np.repeat(np.arange(block.n_cells), np.diff(block.indptr)) + at - start
        np.add.at(dense, (row, block.indices), block.data.astype(np.float64))
        at += block.n_cells
    assert at == stop
    return dense


def fingerprint(matrix: Any) -> str:
    """Changes with any byte that the matrix holds."""
    parts = [matrix.data, matrix.indices, matrix.indptr] if sparse.issparse(matrix) else [np.asarray(matrix)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() + str(part.dtype).encode())
    return digest.hexdigest()


def untidy(
    dense: np.ndarray, *, zeros: bool = False, repeats: bool = False, shuffle: bool = False
) -> sparse.csr_matrix:
    """The same matrix with entries that a tidy one would not have."""
    rng = np.random.default_rng(1)
    indptr, indices, data = [0], [], []
    for row in dense:
        entries = [(j, v) for j, v in enumerate(row) if v or (zeros and j % 3 == 0)]
        if repeats:
            entries = [e for j, v in entries for e in ([(j, v // 2), (j, v - v // 2)] if v > 1 else [(j, v)])]
        if shuffle:
            rng.shuffle(entries)
        indices += [int(j) for j, _ in entries]
        data += [v for _, v in entries]
        indptr.append(len(indices))
    return sparse.csr_matrix((np.array(data, np.float32), np.array(indices, np.int32), np.array(indptr)), dense.shape)


IN_MEMORY: dict[str, Callable[[np.ndarray], Any]] = {
    **{f"dense {t}": lambda x, t=t: x.astype(t) for t in ("f2", "f4", "f8", "i2", "i4", "i8", "u1", "u2", "u4", "u8")},
    "dense in column order": lambda x: np.asfortranarray(x, dtype=np.float32),
    "numpy matrix": lambda x: np.asmatrix(x.astype(np.float32)),
    **{
        f"{kind} {t}": lambda x, kind=kind, t=t: getattr(sparse, kind)(x.astype(t))
        for kind in ("csr_matrix", "csc_matrix", "csr_array", "csc_array")
        for t in ("f4", "f8", "i4", "i8", "u2", "u8")
    },
    "CSR with explicit zeros": lambda x: untidy(x, zeros=True),
    "CSR with repeated entries": lambda x: untidy(x, repeats=True),
    "CSR out of order": lambda x: untidy(x, shuffle=True),
    "untidy CSC": lambda x: untidy(np.ascontiguousarray(x.T), zeros=True, repeats=True, shuffle=True).T,
}


@pytest.mark.parametrize("form", IN_MEMORY)
def test_counts_are_the_same_in_every_form_and_the_form_is_not_changed(form: str) -> None:
    dense = make_counts()
    adata = ad.AnnData(IN_MEMORY[form](dense))
    before, held = fingerprint(adata.X), adata.X
    source = counts.find(adata)
    assert (source.where, source.report.kind) == ("X", "counts")
    for n_rows in (1, 7, 1000):
        np.testing.assert_array_equal(collected(source, n_rows), dense)
    np.testing.assert_array_equal(collected(source, 4, slice(5, 20)), dense[5:20])
    assert adata.X is held and fingerprint(adata.X) == before


@pytest.mark.parametrize("form", ["dense f4", "csr_matrix f4", "csc_matrix f4", "csr_array f4"])
@pytest.mark.parametrize("where", ["X", "layers['counts']", "raw"])
def test_views_are_read_where_they_lie(form: str, where: str) -> None:
    dense = make_counts()
    matrix, other = IN_MEMORY[form](dense), np.full((N_CELLS, N_GENES), -1.0, np.float32)
    adata = ad.AnnData(matrix if where == "X" else other, layers={"counts": matrix} if where.startswith("l") else None)
    if where == "raw":
        adata.raw = ad.AnnData(matrix)
    rows, columns = np.array([30, 2, 2, 17, 5, 3]), np.array([9, 1, 20])
    view = adata[rows][:, columns]
    source = counts.find(view)
    expected = dense[rows] if where == "raw" else dense[rows][:, columns]
    assert source.where == where and view.is_view and len(source.var) == expected.shape[1]
    np.testing.assert_array_equal(collected(source, 2), expected)
    assert view.is_view


def test_masks_and_slices_make_views_that_are_read_too() -> None:
    dense = make_counts()
    adata = ad.AnnData(sparse.csr_matrix(dense))
    mask = dense.sum(axis=1) > 20
    np.testing.assert_array_equal(collected(counts.find(adata[mask])), dense[mask])
    np.testing.assert_array_equal(collected(counts.find(adata[::-2, 3:9])), dense[::-2, 3:9])
    np.testing.assert_array_equal(collected(counts.find(adata[::2][1:5])), dense[::2][1:5])


@pytest.mark.parametrize("form", ["dense f4", "csr_matrix f4", "csc_matrix i8"])
@pytest.mark.parametrize("chunks", [(10, N_GENES), (N_CELLS, 5), (4, 4)])
def test_dask_arrays_give_the_same_counts(form: str, chunks: tuple[int, int]) -> None:
    da = pytest.importorskip("dask.array")
    dense = make_counts()
    if form.startswith("dense"):
        array = da.from_array(IN_MEMORY[form](dense), chunks=chunks)
    else:
        array = da.from_array(dense, chunks=chunks).map_blocks(
            IN_MEMORY[form], dtype=np.int64, meta=IN_MEMORY[form](np.zeros((1, 1)))
        )
    adata = ad.AnnData(array)
    source = counts.find(adata)
    assert source.is_dask and not source.is_backed
    for n_rows in (3, 11, 100):
        np.testing.assert_array_equal(collected(source, n_rows), dense)
    np.testing.assert_array_equal(collected(source, 6, slice(8, 30)), dense[8:30])
    rows = np.array([8, 1, 30])
    np.testing.assert_array_equal(collected(counts.find(adata[rows])), dense[rows])


def test_a_dask_chunk_is_computed_once_in_a_pass() -> None:
    da = pytest.importorskip("dask.array")
    dense, computed = make_counts(600), []

    def chunk(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        computed.append(block_info[0]["chunk-location"])
        return block

    array = da.from_array(dense, chunks=(150, N_GENES)).map_blocks(chunk, dtype=dense.dtype, meta=np.zeros((0, 0), int))
    source = counts.find(ad.AnnData(array))
    computed.clear()
    np.testing.assert_array_equal(collected(source, 20), dense)
    assert sorted(computed) == [(i, 0) for i in range(4)]


def test_a_dask_array_of_unknown_length_is_refused_with_the_call_that_helps() -> None:
    da = pytest.importorskip("dask.array")
    array = da.from_array(make_counts(), chunks=(10, N_GENES))
    with pytest.raises(CountsError, match="compute_chunk_sizes"):
        _readers.reader(array[array[:, 0] > 0])


ON_DISK = {"CSR": sparse.csr_matrix, "CSC": sparse.csc_matrix, "dense": np.asarray}


@pytest.fixture(params=["h5ad", "zarr"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[ad.AnnData], Path]:
    def write(adata: ad.AnnData) -> Path:
        path = tmp_path / f"cells.{request.param}"
        getattr(adata, f"write_{request.param}")(path)
        return path

    return write


@pytest.mark.parametrize("form", ON_DISK)
def test_stores_are_read_from_disk_in_blocks(form: str, store: Callable[[ad.AnnData], Path]) -> None:
    dense = make_counts().astype(np.float32)
    adata = ad.AnnData(np.log1p(dense) - 1, layers={"counts": ON_DISK[form](dense)})
    adata.raw = ad.AnnData(ON_DISK[form](dense[:, :9]))
    path = store(adata)
    for use_raw, expected in ((None, dense), (True, dense[:, :9])):
        source = counts.find(path, use_raw=use_raw)
        assert source.is_backed and list(source.obs_names) == list(adata.obs_names)
        for n_rows in (5, 100):
            np.testing.assert_array_equal(collected(source, n_rows), expected)


@pytest.mark.parametrize("form", ON_DISK)
def test_backed_objects_and_their_views_are_read_in_blocks(form: str, tmp_path: Path) -> None:
    dense = make_counts().astype(np.float32)
    written = ad.AnnData(ON_DISK[form](dense))
    written.raw = ad.AnnData(ON_DISK[form](dense[:, ::-1].copy()))
    written.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    rows, columns = np.array([30, 2, 17, 5, 3]), np.array([9, 1, 20])
    for use_raw, expected in ((False, dense), (True, dense[:, ::-1])):
        source = counts.find(adata, use_raw=use_raw)
        assert source.is_backed
        np.testing.assert_array_equal(collected(source), expected)
        view = adata[rows] if use_raw else adata[rows, columns]
        expected = expected[rows] if use_raw else expected[rows][:, columns]
        source = counts.find(view, use_raw=use_raw)
        assert source.is_backed
        np.testing.assert_array_equal(collected(source, 2), expected)
    adata.file.close()


@pytest.mark.parametrize("form", ["CSR", "CSC"])
def test_sparse_datasets_inside_an_object_are_read_in_blocks(form: str, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    dense = make_counts().astype(np.float32)
    ad.AnnData(ON_DISK[form](dense)).write_zarr(tmp_path / "cells.zarr")
    stored = sparse_dataset(zarr.open_group(str(tmp_path / "cells.zarr"), mode="r")["X"])
    source = counts.find(ad.AnnData(stored))
    assert source.is_backed
    np.testing.assert_array_equal(collected(source), dense)


def test_lazily_read_objects_are_read_in_blocks(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    pytest.importorskip("dask")
    dense = make_counts().astype(np.float32)
    ad.AnnData(sparse.csr_matrix(dense)).write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.experimental.read_lazy(tmp_path / "cells.h5ad")
    source = counts.find(adata)
    assert source.is_dask and isinstance(source.var, pd.DataFrame)
    np.testing.assert_array_equal(collected(source), dense)


def test_a_matrix_stored_by_column_is_turned_in_bands_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = make_counts()
    monkeypatch.setattr(_readers, "BAND_ENTRIES", 60)
    monkeypatch.setattr(_readers, "SEGMENT_ENTRIES", 17)
    reader = _readers.reader(sparse.csc_matrix(dense))
    assert isinstance(reader, _readers._Csc)
    source = counts.find(ad.AnnData(sparse.csc_matrix(dense)))
    for n_rows in (1, 3, 50):
        np.testing.assert_array_equal(collected(source, n_rows), dense)
    reader.rows(0, 1)
    assert reader._band is not None and len(reader._band[2].data) <= 60


def test_only_a_sample_of_a_large_matrix_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = ad.AnnData(sparse.csr_matrix(np.tile(make_counts(), (100, 1))))
    read: list[int] = []
    rows = _readers._Csr.rows
    monkeypatch.setattr(_readers._Csr, "rows", lambda self, a, b: (read.append(b - a), rows(self, a, b))[1])
    first = counts.find(adata).report.to_dict()
    assert sum(read) == first["candidates"][0]["evidence"]["n_sampled"] == 512
    assert counts.find(adata).report.to_dict() == first


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.float64])
def test_counts_too_large_for_float32_stay_exact(dtype: type) -> None:
    dense = np.array([[2**24 + 1, 1], [3, 0]], dtype=dtype)
    source = counts.find(ad.AnnData(dense))
    np.testing.assert_array_equal(collected(source), dense)
    first, second = source.blocks(1)
    assert (first.data.dtype, second.data.dtype) == (np.float64, np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dense=hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 5)),
    form=st.sampled_from(sorted(IN_MEMORY)),
    n_rows=st.integers(1, 13),
)
def test_any_matrix_in_any_form_in_any_blocks(dense: np.ndarray, form: str, n_rows: int) -> None:
    adata = ad.AnnData(IN_MEMORY[form](dense))
    before = fingerprint(adata.X)
    np.testing.assert_array_equal(collected(counts.find(adata), n_rows), dense)
    assert fingerprint(adata.X) == before


def test_blocks_of_no_rows_and_rows_with_a_step_are_refused() -> None:
    source = counts.find(ad.AnnData(make_counts()))
    with pytest.raises(CountsError, match="at least 1"):
        source.blocks(0)
    with pytest.raises(CountsError, match="without a step"):
        source.blocks(rows=slice(None, None, 2))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_cells_or_no_genes_is_an_error(shape: tuple[int, int]) -> None:
    with pytest.raises(CountsError, match="nothing to read counts from"):
        counts.find(ad.AnnData(np.zeros(shape)))


@pytest.mark.parametrize("form", ["dense f4", "csr_matrix f4"])
def test_portions_of_a_dask_array_are_sources_of_their_own(form: str) -> None:
    da = pytest.importorskip("dask.array")
    dense = make_counts()
    array = da.from_array(dense, chunks=(8, 9)).map_blocks(IN_MEMORY[form], dtype=np.float32)
    portions = counts.find(ad.AnnData(array)).delayed(10)
    assert len(portions) == 3
    for rows, part in portions:
        np.testing.assert_array_equal(collected(pickle.loads(pickle.dumps(part.compute()))), dense[rows])
