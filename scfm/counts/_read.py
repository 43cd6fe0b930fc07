"""Files of counts as AnnData; matrices stay on disk where the format allows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
from anndata import AnnData
from anndata.io import read_elem, read_loom, sparse_dataset

from scfm.errors import CountsError, MissingDependencyError

KNOWN = "an AnnData .h5ad or .zarr, a 10x Genomics .h5, a folder with 10x matrix.mtx, or a .loom"
LOOM_CELLS = ("CellID", "obs_names", "cell_id", "barcode", "Barcode", "CellId")
LOOM_GENES = ("Gene", "var_names", "gene", "gene_name", "Accession", "GeneName")


def read(path: str | Path) -> AnnData:
    """Open a file or folder of counts.

    Parameters
    ----------
    path
        An AnnData ``.h5ad`` file or ``.zarr`` store (matrices stay on disk and are read by blocks), a 10x Genomics
        ``.h5`` file, a folder with 10x ``matrix.mtx``, or a ``.loom`` file (these are read into memory). What a file is
        is told from its content.

    Raises
    ------
    CountsError
        If there is nothing at the path, the format is not known, or the file is damaged.
    MissingDependencyError
        If a reader needs a package that is not installed.
    """
    path = Path(path)
    if not path.exists():
        there = ", ".join(sorted(p.name for p in path.parent.iterdir())[:5]) if path.parent.is_dir() else ""
        beside = f"; {path.parent} holds {there}" if there else f"; the folder {path.parent} is not there or empty"
        raise CountsError(f"there is no file {path}{beside}")
    how = _folder(path) if path.is_dir() else _file(path)
    try:
        return how(path)
    except CountsError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"{path.name} cannot be read without a further package: {error}") from error
    except (OSError, KeyError, ValueError, TypeError, IndexError, EOFError, RuntimeError, zlib.error) as error:
        raise CountsError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected {KNOWN}. Is it complete? It holds "
            f"{_size(path):,} bytes; copy or make it again and compare"
        ) from error


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _file(path: Path) -> Callable[[Path], AnnData]:
    """The reader for a file, told from its content."""
    if not h5py.is_hdf5(path):
        hint = f"; pass the folder {path.parent} instead" if "matrix.mtx" in path.name else ""
        raise CountsError(f"{path.name} ({_size(path):,} bytes) is not a file of counts: expected {KNOWN}{hint}")
    try:
        with h5py.File(path, "r") as file:
            keys = set(file)
            is_anndata = file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= keys
            groups = [file[key] for key in keys if isinstance(file[key], h5py.Group)]
            is_10x = any("barcodes" in group and "data" in group for group in groups)
    except OSError as error:
        raise CountsError(
            f"{path.name} begins like an HDF5 file, but is damaged or cut off at {_size(path):,} bytes ({error}); copy or "
            "make it again"
        ) from error
    if is_anndata:
        return _read_h5ad
    if {"matrix", "row_attrs", "col_attrs"} <= keys:
        return _read_loom
    if is_10x:
        return _read_10x_h5
    held = ", ".join(sorted(keys)[:6]) or "nothing"
    raise CountsError(f"{path.name} is an HDF5 file that holds {held}; expected {KNOWN}")


def _folder(path: Path) -> Callable[[Path], AnnData]:
    """The reader for a folder, told from its content."""
    names = sorted(p.name for p in path.iterdir())
    if {".zgroup", "zarr.json"} & set(names):
        return _read_zarr
    matrices = [n for n in names if n.removesuffix(".gz").endswith("matrix.mtx")]
    if len(matrices) == 1:
        return _read_10x_mtx
    if matrices:
        raise CountsError(
            f"{path} holds {len(matrices)} matrices ({', '.join(matrices[:3])}); put each into its own folder"
        )
    raise CountsError(f"the folder {path} holds {', '.join(names[:6]) or 'nothing'}; expected {KNOWN}")


def _read_h5ad(path: Path) -> AnnData:
    file = h5py.File(path, "r")
    if file.attrs.get("encoding-type") == "anndata":
        return _on_disk(file)
    file.close()
    return anndata.read_h5ad(path, backed="r")


def _read_zarr(path: Path) -> AnnData:
    import zarr

    group = zarr.open_group(str(path), mode="r")
    if group.attrs.get("encoding-type") != "anndata":
        raise CountsError(
            f"the zarr store {path} holds {', '.join(sorted(group)) or 'nothing'}; expected an AnnData store"
        )
    return _on_disk(group)


def _on_disk(root: Any) -> AnnData:
    """An AnnData object whose X, layers and raw stay in the file; everything else is read."""
    raw, stored = None, root.get("raw")
    if hasattr(stored, "keys") and "X" in stored:
        parts = {name: read_elem(stored[name]) for name in ("var", "varm") if name in stored}
        raw = {"X": _matrix(stored["X"]), **parts}
    rest = {
        name: read_elem(root[name]) for name in ("obs", "var", "obsm", "varm", "obsp", "varp", "uns") if name in root
    }
    layers = {name: _matrix(root[f"layers/{name}"]) for name in root["layers"]} if "layers" in root else None
    return AnnData(X=_matrix(root["X"]) if "X" in root else None, layers=layers, raw=raw, **rest)


def _matrix(stored: Any) -> Any:
    """A matrix that reads from the file what is asked of it."""
    kind = stored.attrs.get("encoding-type")
    if kind in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(stored)
    return stored if kind == "array" else read_elem(stored)


def _read_10x_h5(path: Path) -> AnnData:
    import scanpy

    return _unique(scanpy.read_10x_h5(path))


def _read_10x_mtx(path: Path) -> AnnData:
    import scanpy

    name = next(p.name.removesuffix(".gz") for p in path.iterdir() if p.name.removesuffix(".gz").endswith("matrix.mtx"))
    prefix = name.removesuffix("matrix.mtx")
    return scanpy.read_10x_mtx(path, prefix=prefix or None)


def _read_loom(path: Path) -> AnnData:
    with h5py.File(path, "r") as file:
        cells, genes = list(file["col_attrs"]), list(file["row_attrs"])
    return _unique(
        read_loom(
            path, X_name="", obs_names=_first(LOOM_CELLS, cells), var_names=_first(LOOM_GENES, genes), sparse=True
        )
    )


def _first(names: tuple[str, ...], there: list[str]) -> str:
    return next((name for name in names if name in there), names[0])


def _unique(adata: AnnData) -> AnnData:
    adata.var_names_make_unique()
    return adata
