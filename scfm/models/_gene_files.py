"""What vectors of genes does this file hold? One reader per kind of file; nothing in a file is executed."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm.errors import CheckpointError, ConfigError, MissingDependencyError
from scfm.models._gene_table import GeneTable, make_table
from scfm.models._model import FoundationModel
from scfm.models._reading import kind_of, read_array, read_pickle, read_tensors, require

Found = tuple[Sequence[Any], Any]
"""Names, and one vector each."""


def gene_table(
    source: Any, *, names: Sequence[str] | None = None, key: str | None = None, species: str | None = None
) -> GeneTable:
    """Vectors of genes by name, from a file or from memory.

    Parameters
    ----------
    source
        A path, or a data frame with genes as rows, a dictionary of vectors, an AnnData with genes as ``obs`` (such as
        `scfm.tl.embed_sequences` returns), a loaded model (its input vectors), or a `GeneTable`. Files are told apart
        by their ending:

        - ``.txt``: Gene2vec, as a matrix or as word2vec text with a first line ``count width``;
        - ``.pickle``, ``.pkl``: a dictionary of vectors by symbol, as GenePT publishes it;
        - ``.csv``, ``.tsv``, ``.parquet``: names in the first column (or index), numbers in all others;
        - ``.npz``: one array of names and one of vectors; ``.npy``: vectors alone, with ``names``;
        - ``.h5ad``: genes as ``obs`` and vectors as ``X``, or ``varm[key]`` of cells;
        - ``.pt``, ``.pth``, ``.torch``: a dictionary of vectors by symbol, as UCE's protein tables.
    names
        One per row, for arrays without names.
    key
        Take ``varm[key]`` of an AnnData of cells.
    species
        Of the genes; None: recognised by the names.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not safe to read, or no table of vectors.
    ConfigError
        If the source is nothing of these.

    Examples
    --------
    >>> table = scfm.models.gene_table("GenePT_gene_embedding_ada_text.pickle")  # doctest: +SKIP
    >>> table.save("genept.npz")  # doctest: +SKIP
    """
    if isinstance(source, GeneTable):
        return source if species is None else replace(source, species=species)
    if isinstance(source, FoundationModel):
        return _of_model(source)
    if isinstance(source, str | Path):
        return _of_file(Path(source), names, key, species)
    read = next((read for kind, read in IN_MEMORY.items() if kind == _kind_in_memory(source)), None)
    if read is None:
        raise ConfigError(
            f"vectors of genes cannot be taken from a {type(source).__name__}; give a path, a data frame, a dictionary, an "
            "AnnData, a loaded model, or scfm.models.gene_table(array, names=...)"
        )
    found, words = read(source, names, key)
    return make_table(*found, source=words, species=species)


def is_table_name(source: Any) -> bool:
    """Whether a source is a file of vectors by its name, or such vectors in memory, rather than a model."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return path.is_file() or (_ending(path) in READERS and not path.is_dir())
    return not isinstance(source, FoundationModel)


def _ending(path: Path) -> str:
    """``.txt`` for ``a.txt`` and ``a.txt.gz``."""
    suffixes = path.suffixes
    return (suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else path.suffix).lower()


def _of_model(model: FoundationModel) -> GeneTable:
    vectors = model.embed_genes(kind="input")
    ids = vectors.ids[model.vocabulary.is_gene[vectors.ids]]
    names = [model.vocabulary.names[i] for i in ids]
    rows = vectors.vectors[model.vocabulary.is_gene[vectors.ids]]
    return make_table(names, rows, f"the input table of {model.card.name}", model.vocabulary.species)


def _of_file(path: Path, names: Sequence[str] | None, key: str | None, species: str | None) -> GeneTable:
    path = require(path.expanduser(), "the table of gene vectors", HINTS.get(_ending(path), ""))
    reader = READERS.get(_ending(path))
    if reader is None:
        raise ConfigError(
            f"{path.name} ends in {path.suffix!r}; tables of gene vectors are read from {', '.join(READERS)}"
        )
    found = reader(path, names, key)
    return make_table(*found, source=path.name, species=species)


HINTS = {
    ".pickle": "GenePT's files are in the Zenodo records 10030426 and 10833191",
    ".txt": "Gene2vec's are in pre_trained_emb of the authors' repository jingcheng-du/Gene2vec",
}


def _read_text(path: Path, _names: Any, _key: Any) -> Found:
    """Gene2vec: names and numbers between white space; a first line of two integers is a header."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = [line.split() for line in file if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)}, not text of names and numbers; download it again") from error
    header = [int(word) for word in lines[0]] if lines and len(lines[0]) == 2 and all(map(_whole, lines[0])) else None
    rows = lines[1:] if header else lines
    width = header[1] if header else len(rows[0]) - 1 if rows else 0
    if header and len(rows) != header[0]:
        raise CheckpointError(f"{path} promises {header[0]:,} genes and holds {len(rows):,}; download it again")
    for number, row in enumerate(rows, start=1 + bool(header)):
        if len(row) != width + 1 or width == 0:
            raise CheckpointError(
                f"{path}, line {number}: a name and {width} numbers were expected, and {len(row)} words found; the file "
                "may be cut off, or it is no Gene2vec text (tables with commas or tabs are read as .csv or .tsv)"
            )
    return [row[0] for row in rows], _numbers([row[1:] for row in rows], path)


def _whole(word: str) -> bool:
    return word.isdigit()


def _numbers(words: list[list[str]], path: Path) -> NDArray[np.float32]:
    try:
        return np.array(words, dtype=np.float32)
    except ValueError as error:
        raise CheckpointError(f"{path} holds something else than numbers behind the names: {error}") from error


def _read_pickle(path: Path, _names: Any, _key: Any) -> Found:
    return _of_mapping(read_pickle(path), path.name)


def _of_mapping(held: Any, source: str) -> Found:
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{source} holds {type(held).__name__}, but a dictionary of vectors by gene was expected")
    return [*held.keys()], [*held.values()]


def _read_torch(path: Path, _names: Any, _key: Any) -> Found:
    return _of_mapping(read_tensors(path), path.name)


def _read_csv(path: Path, _names: Any, _key: Any) -> Found:
    separator = "," if _ending(path) == ".csv" else "\t"
    try:
        first = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
        header = None if _is_row_of_numbers([*first.iloc[0]]) else 0
        frame = pd.read_csv(path, sep=separator, header=header, index_col=0, float_precision="round_trip")
    except (ValueError, UnicodeDecodeError, OSError) as error:  # the errors of pandas' reader are ValueErrors
        raise CheckpointError(f"{path} is {kind_of(path)} and cannot be read as a table: {error}") from error
    return _of_frame(frame, path.name)


def _is_row_of_numbers(words: list[str]) -> bool:
    """Whether a first line holds a gene and its vector rather than names of columns (0, 1, 2, ... are names)."""
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        return False
    start = int(numbers[0]) if numbers else 0
    return bool(numbers) and numbers != [float(i) for i in range(start, start + len(numbers))]


def _read_parquet(path: Path, _names: Any, _key: Any) -> Found:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise MissingDependencyError('reading parquet needs pyarrow: pip install "scfm[parquet]"') from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)} and cannot be read as parquet: {error}") from error
    return _of_frame(frame, path.name)


def _of_frame(frame: pd.DataFrame, source: str) -> Found:
    """Names are the index, or the first column where the index only counts the rows."""
    counted = pd.api.types.is_integer_dtype(frame.index.dtype)
    if counted and frame.shape[1] and not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[0]):
        frame = frame.set_index(frame.columns[0])
    elif counted:
        raise CheckpointError(f"{source} has no names of genes: they belong into the index or the first column")
    texts = [str(c) for c, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if texts:
        raise CheckpointError(
            f"{source}: beside the names there are columns without numbers ({', '.join(texts[:5])}); leave them out"
        )
    return [*frame.index], frame.to_numpy(dtype=np.float32)


def _read_npz(path: Path, names: Sequence[str] | None, _key: Any) -> Found:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise CheckpointError(
            f"{path} is {kind_of(path)} and cannot be read as arrays of numbers and texts ({error}); arrays of objects are "
            "not read: store names with np.array(names, dtype=str)"
        ) from error
    texts = {name: array for name, array in held.items() if array.dtype.kind in "US" and array.ndim == 1}
    matrices = {name: array for name, array in held.items() if array.dtype.kind in "fiu" and array.ndim == 2}
    if len(matrices) != 1 or (names is None and len(texts) != 1):
        raise CheckpointError(
            f"{path} holds {', '.join(f'{n} {a.shape}' for n, a in held.items()) or 'nothing'}; one array of vectors and one "
            "of names are needed"
        )
    (matrix,) = matrices.values()
    return _named(names if names is not None else [*next(iter(texts.values())).astype(str)], matrix, path.name)


def _read_npy(path: Path, names: Sequence[str] | None, _key: Any) -> Found:
    return _named(names, read_array(path), path.name)


def _named(names: Sequence[str] | None, vectors: Any, source: str) -> Found:
    if names is None:
        raise ConfigError(
            f"{source} holds no names of genes; say which gene each row is: "
            "table = scfm.models.gene_table(source, names=[...])"
        )
    if len(names) != len(vectors):
        raise ConfigError(f"{source} holds {len(vectors):,} vectors, and {len(names):,} names were given")
    return names, vectors


def _read_h5ad(path: Path, _names: Any, key: str | None) -> Found:
    from scfm import counts

    return _of_anndata(counts.read(path), key, path.name)


def _of_anndata(adata: Any, key: str | None, source: str) -> Found:
    if key is not None:
        if key not in adata.varm:
            raise ConfigError(f"{source} has no varm[{key!r}]; there are {', '.join(adata.varm) or 'none'}")
        return [*adata.var_names], np.asarray(adata.varm[key], dtype=np.float32)
    held = adata.X
    if held is None:
        raise CheckpointError(f"{source} has no X; vectors of genes are X with genes as obs, or varm[key]")
    held = held.to_memory() if hasattr(held, "to_memory") else held
    matrix = held.toarray() if hasattr(held, "toarray") else np.asarray(held)
    return [*adata.obs_names], matrix


def _kind_in_memory(source: Any) -> str:
    if isinstance(source, pd.DataFrame):
        return "frame"
    if isinstance(source, Mapping):
        return "dictionary"
    if isinstance(source, np.ndarray):
        return "array"
    return "anndata" if hasattr(source, "varm") and hasattr(source, "obs_names") else ""


IN_MEMORY: dict[str, Callable[[Any, Any, Any], tuple[Found, str]]] = {
    "frame": lambda held, _names, _key: (_of_frame(held, "a data frame"), "a data frame"),
    "dictionary": lambda held, _names, _key: (_of_mapping(held, "a dictionary"), "a dictionary"),
    "array": lambda held, names, _key: (_named(names, held, "the array"), "an array"),
    "anndata": lambda held, _names, key: (_of_anndata(held, key, "the AnnData"), "an AnnData"),
}
READERS: dict[str, Callable[[Path, Any, Any], Found]] = {
    ".txt": _read_text,
    ".pickle": _read_pickle,
    ".pkl": _read_pickle,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".h5ad": _read_h5ad,
    **dict.fromkeys((".pt", ".pth", ".torch"), _read_torch),
}
"""Readers by the ending of a file's name."""
