"""Which cells is a model trained on? Many files, each on disk, each with its own genes, ids and species."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm import counts, genes
from scfm.counts import CountSource
from scfm.errors import ConfigError, CountsError, GeneMatchError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.training._index import Column

log = logging.getLogger("scfm")

SUFFIXES = (".h5ad", ".zarr", ".h5", ".loom")
DONOR_COLUMNS = ("donor", "donor_id", "individual", "patient", "patient_id", "subject", "sample", "sample_id")
DATASET_COLUMNS = ("dataset", "dataset_id", "study")
UNKNOWN = "unknown"
COLLECTION = "annbatch-preshuffled"
"""Encoding type of a zarr collection of annbatch, whose parts ``dataset_0``, ``dataset_1``, ... are AnnData stores."""
_OPEN_AT_ONCE = 16

Source: TypeAlias = str | Path | AnnData


@dataclass(frozen=True, eq=False)
class CorpusFile:
    """One file of a corpus, or one AnnData in memory.

    Parameters
    ----------
    name
        Unique in the corpus.
    path
        Where it lies; None: in memory.
    n_cells
        Rows.
    donor, dataset, label
        Texts per cell; a donor is named with its data set, so that equal names of two studies stay apart.
    adata
        The object in memory.
    """

    name: str
    path: Path | None
    n_cells: int
    donor: Column
    dataset: Column
    label: Column
    adata: AnnData | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Cells to train on; made by `open`.

    A gene without a column in a file is not measured there, which is not the same as a count of zero: the set of
    measured genes of each file goes along with its cells, and nothing is learnt from what was not measured.

    Parameters
    ----------
    files
        In order.
    gene_key, gene_matching
        As in `scfm.genes.match`.
    layer, use_raw
        Where the counts are (default: found in each file).
    context
        Facts about the cells that the tokenizer takes: a value, or the name of an ``obs`` column.
    orthologues
        Whether files of another species than the vocabulary's are read through one-to-one orthologues.
    """

    files: tuple[CorpusFile, ...]
    gene_key: str | None = None
    gene_matching: Literal["resolve", "published"] = "resolve"
    layer: str | None = None
    use_raw: bool | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    orthologues: bool = True
    _opened: dict[tuple[int, int], tuple[AnnData, CountSource]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        sources: Source | Sequence[Source],
        *,
        donor_key: str | None = None,
        dataset_key: str | None = None,
        label_key: str | None = None,
        **options: Any,
    ) -> Corpus:
        """Open files.

        Parameters
        ----------
        sources
            Files (h5ad, zarr, whatever `scfm.counts.read` takes), folders of them, patterns such as ``data/*.h5ad``,
            AnnData objects, or zarr collections of annbatch, each part of which is a file.
        donor_key, dataset_key
            Columns of ``obs``; default: the first usual one (``donor``, ``donor_id``, ..., ``dataset``, ...), else the
            file's name, or that of the collection, whose parts are mixtures of the same donors.
        label_key
            Column of ``obs`` for weights; default: none.
        **options
            The other fields of a corpus.

        Raises
        ------
        ConfigError
            If nothing is found, two files are the same, or a column is in none of the files.
        CountsError
            If a file cannot be read.
        """
        many = [sources] if isinstance(sources, str | Path | AnnData) else list(sources)
        found = [item for source in many for item in _expand(source)]
        if not found:
            raise ConfigError("the corpus is empty: no files were given")
        paths = [item.resolve() for item in found if isinstance(item, Path)]
        if len(set(paths)) != len(paths):
            twice = next(p for p in paths if paths.count(p) > 1)
            raise ConfigError(f"{twice} is in the corpus twice; name each file once")
        wanted = {"donor": donor_key, "dataset": dataset_key, "label": label_key}
        files, seen = [], dict.fromkeys(wanted, 0)
        for name, item in zip(_names(found), found, strict=True):
            files.append(_look(name, item, wanted, seen))
        for kind, column in wanted.items():
            if column is not None and not seen[kind]:
                raise ConfigError(f"no file of the corpus has a column {column!r} in obs, which {kind}_key names")
        corpus = cls(tuple(files), **options)
        if corpus.n_cells == 0:
            raise ConfigError(f"the corpus is empty: its {len(files)} files hold no cells")
        return corpus

    @property
    def n_cells(self) -> int:
        """Cells of all files."""
        return sum(file.n_cells for file in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        donors = len({d for file in self.files for d in file.donor.names})
        return f"Corpus({len(self.files)} files, {self.n_cells:,} cells, {donors:,} donors)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def source(self, number: int) -> CountSource:
        """The counts of a file, opened once per process.

        Raises
        ------
        CountsError
            If it holds no usable counts; the message names the file.
        """
        return self._open(number)[1]

    def _open(self, number: int) -> tuple[AnnData, CountSource]:
        # a file that was opened before a fork is opened again: handles are not shared between processes
        key = (os.getpid(), number)
        if key not in self._opened:
            while len(self._opened) >= _OPEN_AT_ONCE:
                self._opened.pop(next(iter(self._opened)))
            file = self.files[number]
            try:
                adata = file.adata if file.path is None else counts.read(file.path)
                if adata is None:
                    raise CountsError("the object in memory is gone")
                self._opened[key] = (adata, counts.find(adata, layer=self.layer, use_raw=self.use_raw))
            except CountsError as error:
                raise CountsError(f"{file.name} of the corpus: {error}") from error
        return self._opened[key]

    def match(self, number: int, vocabulary: GeneVocabulary) -> GeneMatch:
        """The token of each column of a file.

        Raises
        ------
        GeneMatchError
            If no gene is known; the message names the file.
        """
        options: dict[str, Any] = {"gene_key": self.gene_key, "policy": self.gene_matching}
        try:
            return genes.match(self.source(number).var, vocabulary, **options)
        except GeneMatchError as error:
            if self.orthologues:
                try:
                    return genes.match(self.source(number).var, vocabulary, orthologues=True, **options)
                except GeneMatchError:
                    pass
            raise GeneMatchError(f"{self.files[number].name} of the corpus: {error}") from error

    def facts(self, number: int, tokenizer: Any) -> dict[str, Any]:
        """Context of the cells of a file: a value, or (n,) values, by name."""
        from scfm.tokenizers import from_obs

        return from_obs(tokenizer.context_options, dict(self.context), self._open(number)[0].obs)


def _expand(source: Source) -> Iterator[Path | AnnData]:
    if isinstance(source, AnnData):
        yield source
        return
    text = str(source)
    path = Path(text).expanduser()
    if path.is_dir() and path.suffix != ".zarr" and not (path / "matrix.mtx").exists():
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if not inside:
            raise ConfigError(f"the folder {path} holds no file of cells ({', '.join(SUFFIXES)})")
        yield from (part for p in inside for part in _parts(p) or [p])
    elif path.exists():
        yield from _parts(path) or [path]
    elif glob.has_magic(text):
        matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matching:
            raise ConfigError(f"no file matches the pattern {text!r}")
        yield from (part for p in map(Path, matching) for part in _parts(p) or [p])
    else:
        raise ConfigError(
            f"there is no file or folder {path}; the corpus takes files, folders and patterns like '*.h5ad'"
        )


def _parts(path: Path) -> list[Path]:
    """The stores of a collection of annbatch, in its order; none where it is no such collection.

    Raises
    ------
    ConfigError
        If the collection is empty.
    """
    if not _is_collection(path):
        return []
    found = {int(m[1]): p for p in path.iterdir() if (m := re.fullmatch(r"dataset_(\d+)", p.name))}
    if not found:
        raise ConfigError(
            f"{path} is a collection of annbatch that holds no dataset_0, dataset_1, ...; is it complete?"
        )
    return [found[i] for i in sorted(found)]


def _is_collection(path: Path) -> bool:
    about = path / "zarr.json"
    if not about.is_file():
        return False
    try:
        attributes = json.loads(about.read_text(encoding="utf-8")).get("attributes", {})
    except ValueError:  # damaged: whoever opens the store says so
        return False
    return bool(attributes.get("encoding-type") == COLLECTION)


def _names(found: Sequence[Path | AnnData]) -> list[str]:
    """File names without suffix, with what is needed of the path or a number to tell them apart."""
    names = [item.stem if isinstance(item, Path) else f"object_{i}" for i, item in enumerate(found)]
    return [
        name if names.count(name) == 1 else f"{item.parent.name if isinstance(item, Path) else i}_{name}"
        for i, (name, item) in enumerate(zip(names, found, strict=True))
    ]


def _look(name: str, item: Path | AnnData, wanted: Mapping[str, str | None], seen: dict[str, int]) -> CorpusFile:
    """Cells, donors and labels of a file; its counts are not touched."""
    try:
        adata = item if isinstance(item, AnnData) else counts.read(item)
    except CountsError as error:
        raise CountsError(f"{name} of the corpus: {error}") from error
    n = adata.n_obs
    usual = {"donor": DONOR_COLUMNS, "dataset": DATASET_COLUMNS, "label": ()}
    # parts of a collection hold cells of the same donors
    own = item.parent.stem if isinstance(item, Path) and _is_collection(item.parent) else name
    columns: dict[str, Column] = {}
    for kind, asked in wanted.items():
        candidates = usual[kind] if asked is None else (asked,)
        column = next((c for c in candidates if c in adata.obs.columns), None)
        if column is None:
            columns[kind] = Column(np.zeros(n, np.int32), (own if kind != "label" else UNKNOWN,))
        else:
            seen[kind] += 1
            codes, names = pd.factorize(adata.obs[column], use_na_sentinel=True)
            texts = [*map(str, names), UNKNOWN]
            columns[kind] = Column.join([Column(np.where(codes < 0, len(names), codes).astype(np.int32), tuple(texts))])
    donors = _paired(columns["dataset"], columns["donor"])
    path = item if isinstance(item, Path) else None
    held = item if isinstance(item, AnnData) else None
    return CorpusFile(name, path, n, donors, columns["dataset"], columns["label"], held)


def _paired(first: Column, second: Column) -> Column:
    """Names of both, where they occur together."""
    both = first.codes.astype(np.int64) * len(second.names) + second.codes
    used, codes = np.unique(both, return_inverse=True)
    names = [f"{first.names[i // len(second.names)]}/{second.names[i % len(second.names)]}" for i in used]
    return Column(codes.astype(np.int32).ravel(), tuple(names))
