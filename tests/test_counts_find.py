"""Where counts are looked for, which files hold them, and what is said when there are none."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from scfm import counts, genes, pp
from scfm.errors import CountsError

N_CELLS, N_GENES = 40, 30


def make_counts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(1.5, (N_CELLS, N_GENES)).astype(np.float32)


def logged(dense: np.ndarray) -> np.ndarray:
    return np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)


def all_counts(source: counts.CountSource) -> np.ndarray:
    parts = [
        sparse.csr_array((b.data, b.indices, b.indptr), shape=(b.n_cells, b.n_columns)).toarray()
        for b in source.blocks(16)
    ]
    return np.vstack(parts)


def put(x: np.ndarray | None, raw: np.ndarray | None = None, **layers: np.ndarray) -> ad.AnnData:
    shape = None if x is not None else (N_CELLS, N_GENES)
    adata = ad.AnnData(x, layers=layers, shape=shape)
    if raw is not None:
        names = pd.DataFrame(index=[f"raw{i}" for i in range(raw.shape[1])])
        adata.raw = ad.AnnData(raw, var=names, obs=adata.obs)
    return adata


RAW, LOG, SCALED = make_counts(), logged(make_counts()), make_counts() - 1
HALF = make_counts() + np.float32(0.25) * (make_counts(1) > 0) + 40 * (make_counts(2) > 5)

PLACES = {
    "X before everything else": (put(RAW, RAW, counts=RAW), {}, "X"),
    "a layer named counts when X holds logarithms": (put(LOG, None, counts=RAW), {}, "layers['counts']"),
    "a layer of another usual name": (put(SCALED, None, Raw_Counts=RAW), {}, "layers['Raw_Counts']"),
    "a layer when there is no X": (put(None, None, counts=RAW), {}, "layers['counts']"),
    "raw when X is scaled": (put(SCALED, RAW), {}, "raw"),
    "raw counts before fractional ones": (put(HALF, RAW), {}, "raw"),
    "fractional counts before logarithms": (put(LOG, HALF), {}, "raw"),
    "of logarithms those with most genes": (put(LOG[:, :20], LOG), {}, "raw"),
    "an empty X only if nothing else is there": (put(np.zeros_like(RAW), RAW), {}, "raw"),
    "the layer that is asked for": (put(RAW, RAW, other=RAW), {"layer": "other"}, "layers['other']"),
    "raw when asked for": (put(RAW, RAW), {"use_raw": True}, "raw"),
    "no raw when it is ruled out": (put(LOG, RAW), {"use_raw": False}, "X"),
}


@pytest.mark.filterwarnings("ignore::scfm.counts.CountsWarning")
@pytest.mark.parametrize("name", PLACES)
def test_counts_are_taken_from(name: str) -> None:
    adata, asked, where = PLACES[name]
    source = counts.find(adata, **asked)
    assert (source.where, source.report.where) == (where, where)
    assert list(source.var.index) == list(adata.raw.var_names if where == "raw" else adata.var_names)
    assert where in str(source.report) and where in repr(source)
    assert (source.report.asked is None) == ("layer" not in asked and not asked.get("use_raw"))


ERRORS = {
    "a layer that is not there": (put(RAW, None, counts=RAW), {"layer": "count"}, r"no layer 'count'.*'counts'"),
    "raw that is not there": (put(RAW), {"use_raw": True}, "no raw"),
    "both at once": (put(RAW, RAW, counts=RAW), {"layer": "counts", "use_raw": True}, "exclude each other"),
    "scaled X without anything else": (put(SCALED), {}, r"layers\['counts'\] = adata.X.copy"),
    "a scaled layer where raw has counts": (
        put(SCALED, RAW, s=SCALED),
        {"layer": "s"},
        "raw does hold raw counts.*use_raw=True",
    ),
    "raw ruled out where it has counts": (
        put(SCALED, RAW),
        {"use_raw": False},
        "raw does hold raw counts.*use_raw=True",
    ),
    "counts in a layer of no usual name": (put(SCALED, None, soup=RAW), {}, "pass layer='soup'"),
    "nothing at all": (put(None), {}, "all empty"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_what_is_there_for(name: str) -> None:
    adata, asked, says = ERRORS[name]
    with pytest.raises(CountsError, match=f"(?s){says}"):
        counts.find(adata, **asked)


def test_text_and_masked_matrices_are_refused() -> None:
    from scfm.counts._readers import reader

    with pytest.raises(CountsError, match="expected numbers"):
        reader(np.array([["a", "b"]]))
    with pytest.raises(CountsError, match="masked"):
        reader(np.ma.masked_less(RAW, 1))
    with pytest.raises(CountsError, match="cells x genes"):
        reader(RAW[0])


def test_a_report_is_plain_data_and_prints_every_place() -> None:
    adata = put(SCALED, LOG, counts=RAW)
    _, report = counts.search(adata, thorough=True)
    plain = json.loads(json.dumps(report.to_dict()))
    assert [c["kind"] for c in plain["candidates"]] == ["scaled", "counts", "log1p"]
    assert plain["where"] == "layers['counts']" and plain["candidates"][0]["evidence"]["n_negative"] > 0
    for place in ("X", "layers['counts']", "raw", "negative values", "raw counts", "log1p"):
        assert place in str(report)


# files


def write_10x_h5(path: Path, dense: np.ndarray) -> None:
    matrix = sparse.csc_matrix(dense.T.astype(np.int32))
    ids = [f"ENSG{i:011d}" for i in range(dense.shape[1])]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = matrix.shape
        group["barcodes"] = np.array([f"CELL{i}-1" for i in range(dense.shape[0])], dtype="S")
        features = group.create_group("features")
        features["id"] = features["name"] = np.array(ids, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(ids), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(ids), dtype="S")


def write_10x_mtx(path: Path, dense: np.ndarray) -> None:
    path.mkdir()
    io.mmwrite(path / "matrix.mtx", sparse.coo_matrix(dense.T.astype(int)))
    lines = [f"ENSG{i:011d}\tG{i}\tGene Expression\n" for i in range(dense.shape[1])]
    texts = {"features.tsv.gz": "".join(lines), "barcodes.tsv.gz": "".join(f"C{i}-1\n" for i in range(len(dense)))}
    for name, text in texts.items():
        with gzip.open(path / name, "wt") as file:
            file.write(text)
    with (path / "matrix.mtx").open("rb") as plain, gzip.open(path / "matrix.mtx.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    (path / "matrix.mtx").unlink()


def write_loom(path: Path, dense: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["LOOM_SPEC_VERSION"] = "3.0.0"
        file["matrix"] = dense.T
        for name in ("layers", "row_graphs", "col_graphs", "attrs"):
            file.create_group(name)
        file["row_attrs/Gene"] = np.array([f"G{i}" for i in range(dense.shape[1])], dtype=h5py.string_dtype())
        file["col_attrs/CellID"] = np.array([f"C{i}" for i in range(len(dense))], dtype=h5py.string_dtype())


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "cells.h5ad": lambda path, dense: ad.AnnData(sparse.csr_matrix(dense)).write_h5ad(path),
    "cells.zarr": lambda path, dense: ad.AnnData(sparse.csr_matrix(dense)).write_zarr(path),
    "filtered_feature_bc_matrix.h5": write_10x_h5,
    "filtered_feature_bc_matrix": write_10x_mtx,
    "cells.loom": write_loom,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_by_what_they_hold(name: str, tmp_path: Path) -> None:
    pytest.importorskip("scanpy")
    path = tmp_path / name
    WRITERS[name](path, RAW)
    if name.endswith("loom"):
        pytest.importorskip("loompy")
    source = counts.find(path)
    assert source.is_backed == (name in ("cells.h5ad", "cells.zarr"))
    np.testing.assert_array_equal(all_counts(source), RAW)
    np.testing.assert_array_equal(all_counts(counts.find(str(path))), RAW)
    renamed = path.rename(tmp_path / "without_suffix")
    np.testing.assert_array_equal(all_counts(counts.find(renamed)), RAW)


def test_everything_but_matrices_comes_along_from_disk(tmp_path: Path) -> None:
    adata = put(LOG, RAW, counts=RAW)
    adata.obs["label"] = pd.Categorical(["a", "b"] * (N_CELLS // 2))
    adata.obsm["X_pca"], adata.uns["note"] = LOG[:, :3], {"a": 1}
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = counts.read(tmp_path / "cells.h5ad")
    assert list(back.obs["label"]) == list(adata.obs["label"]) and back.uns["note"] == {"a": 1}
    np.testing.assert_array_equal(back.obsm["X_pca"], adata.obsm["X_pca"])
    back.write_h5ad(tmp_path / "again.h5ad")
    again = ad.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X, LOG)
    np.testing.assert_array_equal(again.layers["counts"], RAW)
    np.testing.assert_array_equal(again.raw.X, RAW)


def truncated(path: Path) -> None:
    WRITERS["cells.h5ad"](path, RAW)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def short_of_values(path: Path) -> None:
    WRITERS["cells.h5ad"](path, RAW)
    with h5py.File(path, "r+") as file:
        data = file["X/data"][:-5]
        del file["X/data"]
        file["X/data"] = data


def without_indices(path: Path) -> None:
    WRITERS["cells.h5ad"](path, RAW)
    with h5py.File(path, "r+") as file:
        del file["X/indices"]


DAMAGED = {
    "missing": (lambda path: None, r"no file .*cells\.h5ad; .* holds neighbour\.txt"),
    "truncated": (truncated, "damaged or cut off"),
    "text": (lambda path: path.write_text("a,b\n1,2\n"), "not a file of counts: expected an AnnData"),
    "empty": (lambda path: path.write_bytes(b""), r"\(0 bytes\) is not a file of counts"),
    "another HDF5 file": (other_hdf5, "holds weights; expected"),
    "an empty folder": (lambda path: path.mkdir(), "holds nothing; expected"),
    "fewer values than announced": (short_of_values, "the file or object is damaged"),
    "a part missing": (without_indices, "indices is not there"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_without_counts_are_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    make, says = DAMAGED[name]
    (tmp_path / "neighbour.txt").write_text("")
    make(tmp_path / "cells.h5ad")
    with pytest.raises(CountsError, match=says):
        counts.find(tmp_path / "cells.h5ad")


def test_a_damaged_stretch_of_a_file_stops_the_stream_and_is_named(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).poisson(1.5, (20_000, N_GENES)).astype(np.float32)
    path = tmp_path / "cells.h5ad"
    ad.AnnData(sparse.csr_matrix(dense)).write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(file["X/data"].id.get_num_chunks() // 2 + 1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(bytes(damaged))
    with pytest.raises(CountsError, match=r"rows [\d,]+ to [\d,]+ of X cannot be read"):
        list(counts.find(path).blocks())


def test_a_folder_with_several_matrices_is_refused(tmp_path: Path) -> None:
    for sample in ("a", "b"):
        (tmp_path / f"{sample}_matrix.mtx.gz").write_bytes(b"")
    with pytest.raises(CountsError, match="holds 2 matrices"):
        counts.read(tmp_path)


# inspect


def test_inspect_tells_counts_genes_and_cells() -> None:
    scanpy = pytest.importorskip("scanpy")
    adata = scanpy.datasets.pbmc68k_reduced()
    report = pp.inspect(adata)
    assert (report.counts.where, report.counts.kind) == ("raw", "log1p") and report.genes is not None
    assert (report.genes.species, report.genes.namespace) == ("human", "symbol")
    assert report.genes.n_matched > 700 and report.cells is not None and report.cells.total[1] > 3000
    assert any("only 765 genes" in note for note in report.notes)
    json.dumps(report.to_dict())
    assert "raw" in str(report) and report._repr_html_().startswith("<pre>")


def test_inspect_recognises_mouse_and_compares_with_a_vocabulary() -> None:
    mouse = genes.table("mouse")
    names = mouse.loc[(mouse["biotype"] == "protein_coding") & (mouse["symbol"] != ""), "symbol"].iloc[:N_GENES]
    adata = ad.AnnData(RAW, var=pd.DataFrame(index=names.to_numpy()))
    report = pp.inspect(adata)
    assert report.genes is not None and report.genes.species == "mouse" and "mouse" in report.against
    vocabulary = genes.GeneVocabulary(tuple(names[:10]), "symbol", species="mouse")
    report = pp.inspect(adata, vocabulary)
    assert report.genes is not None and report.genes.n_matched == 10 and report.genes.count_coverage is not None


def test_inspect_reports_what_is_odd_and_does_not_fail_without_counts() -> None:
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 28 + ["Antibody Capture"] * 2}, index=["<b>"] * N_GENES)
    dense = RAW * 20_000
    dense[3] = 0
    report = pp.inspect(ad.AnnData(dense, var=var))
    text = " ".join(report.notes)
    for says in ("occur more than once", "2 Antibody Capture", "are empty", "reads and not molecules", "not known"):
        assert says in text
    assert "<b>" not in report._repr_html_() and report.genes is None
    nothing = pp.inspect(ad.AnnData(SCALED))
    assert nothing.counts.where is None and nothing.cells is None and "no usable counts" in str(nothing)
