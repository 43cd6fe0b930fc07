"""Tokens on disk, made once and read by every run: parts that are written whole, and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm.errors import ConfigError
from scfm.tokenizers import Tokenizer, Tokens
from scfm.training._cells import encode_rows
from scfm.training._corpus import Corpus
from scfm.training._encode import Encoder, Keep, tokenizer_hash, vocabulary_hash
from scfm.training._files import alone_in, new_folder, save_array, telling, write_json
from scfm.training._index import CellIndex, Column
from scfm.training._ragged import in_memory, map_tokens, reordered, write_tokens

log = logging.getLogger("scfm")

MANIFEST = "manifest.json"
PARTS = "parts"
ABOUT = "part.json"
VERSION = 1
PART_CELLS = 32_768
TEXTS = ("donor", "dataset", "label")


@dataclass(frozen=True)
class _Job:
    """One part: rows of a file."""

    number: int
    file: int
    start: int
    stop: int
    source: dict[str, Any]


class TokenStore:
    """Tokens of a corpus, mapped into memory.

    Parameters
    ----------
    folder
        That `build` wrote.

    Raises
    ------
    ConfigError
        If there is no finished store.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            begun = (self.folder / PARTS).is_dir()
            raise ConfigError(
                f"{self.folder} holds no finished token store"
                + ("; run `scfm tokenize` again, it goes on where it stopped" if begun else "; make one: scfm tokenize")
            )
        self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        if self.manifest.get("version") != VERSION:
            raise ConfigError(
                f"{self.folder} is a token store of version {self.manifest.get('version')}, this scfm reads {VERSION}; make it anew"
            )
        self.encoder = Encoder(Tokenizer.load(self.folder), self.manifest["keep"])
        self._open = [map_tokens(self.folder / PARTS / name) for name in self.manifest["parts"]]
        self._starts = np.cumsum([0, *(len(tokens) for tokens, _ in self._open)])

    def __repr__(self) -> str:
        return f"TokenStore({self.n_cells:,} cells, {self.n_tokens:,} {self.encoder.keep}, {len(self.manifest['files'])} files)"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    @property
    def n_cells(self) -> int:
        """Cells of all parts."""
        return int(self._starts[-1])

    @property
    def n_tokens(self) -> int:
        """Entries of all cells."""
        return sum(tokens.n_tokens for tokens, _ in self._open)

    @cached_property
    def index(self) -> CellIndex:
        """One row per cell."""
        parts = [
            json.loads((self.folder / PARTS / n / ABOUT).read_text(encoding="utf-8")) for n in self.manifest["parts"]
        ]
        rows = [(p["file"], p["start"], p["stop"]) for p in parts]
        tokens = [t for t, _ in self._open]
        columns = {}
        for text in TEXTS:
            each = [
                Column(np.load(self.folder / PARTS / name / f"{text}.npy"), tuple(part["texts"][text]))
                for name, part in zip(self.manifest["parts"], parts, strict=True)
            ]
            columns[text] = Column.join(each)
        size = len(self.encoder.vocabulary)
        packed = np.load(self.folder / "measured.npy")
        return CellIndex(
            file=np.concatenate([np.full(b - a, f, np.int32) for f, a, b in rows]),
            row=np.concatenate([np.arange(a, b, dtype=np.int64) for _, a, b in rows]),
            length=np.concatenate([t.lengths for t in tokens]).astype(np.int32),
            n_genes=np.concatenate([t.per_cell["n_detected"] for t in tokens]).astype(np.int32),
            fingerprint=np.concatenate([t.per_cell["fingerprint"] for t in tokens]).astype(np.uint64),
            columns=columns,
            measured=np.unpackbits(packed, axis=1, count=size).astype(bool),
            files=tuple(f["name"] for f in self.manifest["files"]),
        )

    def read(self, cells: NDArray[np.int64]) -> Tokens:
        """What is kept of some cells, in the order asked."""
        parts = []
        of_part = np.searchsorted(self._starts, cells, side="right") - 1
        for number in np.unique(of_part):
            places = np.flatnonzero(of_part == number)
            tokens, types = self._open[number]
            parts.append((places, in_memory(tokens[cells[places] - self._starts[number]], types)))
        return reordered(parts, len(cells))

    def check_fits(self, tokenizer: Tokenizer, keep: Keep) -> None:
        """Raise if the store was not made for a tokenizer.

        Raises
        ------
        ConfigError
            If the vocabulary, the tokenizer or what is kept differs.
        """
        again = "make a store for this model: scfm tokenize"
        if self.manifest["vocabulary"] != vocabulary_hash(tokenizer.vocabulary):
            raise ConfigError(
                f"the token store {self.folder} is of another vocabulary ({len(self.encoder.vocabulary):,} tokens; the model has "
                f"{len(tokenizer.vocabulary):,}); {again}"
            )
        if self.encoder.keep != keep and self.encoder.keep != "counts":
            raise ConfigError(
                f"the token store {self.folder} keeps {self.encoder.keep}, but this objective needs {keep}, because it changes "
                f"cells before they are tokenized; {again} with --keep {keep}"
            )
        if self.encoder.keep == "tokens" and self.manifest["tokenizer"] != tokenizer_hash(tokenizer):
            raise ConfigError(
                f"the token store {self.folder} was made by another tokenizer ({self.encoder.tokenizer!r}); {again}"
            )

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        tokenizer: Tokenizer,
        folder: str | Path,
        *,
        keep: Keep = "tokens",
        n_workers: int = 1,
        part_cells: int = PART_CELLS,
        progress: bool = True,
    ) -> TokenStore:
        """Tokenize a corpus into a folder.

        Parts that an interrupted run has finished are kept; the manifest is written last, so a store is whole or is none.

        Parameters
        ----------
        corpus, tokenizer, keep
            What is kept of which cells; see `Encoder`.
        folder
            To write; a finished store of other cells or another tokenizer there is refused.
        n_workers
            Processes.
        part_cells
            Most cells of a part.
        progress
            Whether to show a bar.

        Raises
        ------
        ConfigError
            If the folder holds something else, or another process writes there.
        CountsError, GeneMatchError
            If a file cannot be used; the message names it.
        OutputError
            If the disk is full.
        """
        folder = Path(folder)
        encoder = Encoder(tokenizer, keep)
        with alone_in(folder, "a token store"):
            sources = _sources(corpus)
            plan = {
                "version": VERSION,
                "keep": keep,
                "vocabulary": vocabulary_hash(tokenizer.vocabulary),
                "tokenizer": tokenizer_hash(tokenizer),
                "part_cells": part_cells,
                "sources": sources,
            }
            _check_plan(folder, plan)
            matches = [corpus.match(i, tokenizer.vocabulary) for i in range(len(corpus))]
            jobs = _jobs(corpus, part_cells, sources)
            todo = [job for job in jobs if not _finished(folder, job)]
            if len(todo) < len(jobs):
                log.info("%d of %d parts of %s are there already", len(jobs) - len(todo), len(jobs), folder)
            with tqdm(total=corpus.n_cells, desc="tokenize", unit="cell", disable=not progress) as bar:
                bar.update(sum(job.stop - job.start for job in jobs) - sum(job.stop - job.start for job in todo))
                for n_cells in _run(_Writer(corpus, encoder, folder, matches), todo, n_workers):
                    bar.update(n_cells)
            with telling(folder):
                tokenizer.save(folder)
                save_array(folder / "measured.npy", np.packbits(np.stack([m.measured for m in matches]), axis=1))
            write_json(folder / MANIFEST, {**plan, **_summary(corpus, folder, jobs, matches)})
        return cls(folder)


class _Writer:
    """Writes the part of a job; goes to the workers."""

    def __init__(self, corpus: Corpus, encoder: Encoder, folder: Path, matches: list[Any]) -> None:
        self.corpus, self.encoder, self.folder, self.matches = corpus, encoder, folder, matches

    def __call__(self, job: _Job) -> int:
        file = self.corpus.files[job.file]
        facts = self.corpus.facts(job.file, self.encoder.tokenizer)
        tokens = encode_rows(self.corpus, job.file, job.start, job.stop, self.encoder, self.matches[job.file], facts)
        texts = {name: getattr(file, name).part(slice(job.start, job.stop)) for name in TEXTS}
        with new_folder(self.folder / PARTS / _name(job)) as partial:
            write_tokens(partial, tokens)
            for name, column in texts.items():
                save_array(partial / f"{name}.npy", column.codes)
            total = float(np.sum(tokens.per_cell["total"]))
            about = {
                "file": job.file,
                "start": job.start,
                "stop": job.stop,
                "source": job.source,
                "texts": {name: list(column.names) for name, column in texts.items()},
                "tokens": tokens.n_tokens,
                "counts": total,
                "counts_of_genes": float(np.sum(tokens.per_cell.get("total_matched", tokens.per_cell.get("depth", 0)))),
                "empty": int((tokens.per_cell["n_detected"] == 0).sum()),
            }
            (partial / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return job.stop - job.start


_writer: _Writer | None = None


def _start_worker(writer: _Writer) -> None:
    global _writer
    _writer = writer


def _work(job: _Job) -> int:
    if _writer is None:
        raise ConfigError("a worker was started without its task")
    return _writer(job)


def _run(writer: _Writer, jobs: list[_Job], n_workers: int) -> Iterator[int]:
    if n_workers <= 1 or len(jobs) <= 1:
        yield from map(writer, jobs)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with ProcessPoolExecutor(n_workers, context, initializer=_start_worker, initargs=(writer,)) as pool:
        try:
            yield from pool.map(_work, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _sources(corpus: Corpus) -> list[dict[str, Any]]:
    """What tells that a file is the one that was tokenized."""
    out = []
    for file in corpus.files:
        about: dict[str, Any] = {"name": file.name, "n_cells": file.n_cells}
        if file.path is not None:
            about |= {"path": str(file.path.resolve()), "sha256": _sha256(file.path)}
        else:
            counts = corpus.source(corpus.files.index(file))
            about["sha256"] = _sha256_of_object(counts)
        out.append(about)
    return out


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for inner in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(inner.name.encode())
        with inner.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_object(source: Any) -> str:
    digest = hashlib.sha256("\n".join(map(str, source.var.index)).encode())
    for block in source.blocks(4096):
        for array in (block.indptr, block.indices, block.data):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """A folder is one store's: refuse another one's, and what is no store at all."""
    file = folder / "plan.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in plan if known.get(name) != plan[name]]
        if changed:
            raise ConfigError(
                f"{folder} holds a token store that differs in {', '.join(changed)}; nothing was changed there. Choose another "
                "folder, or delete this one"
            )
        return
    others = [p.name for p in folder.iterdir() if p.name != ".lock"]
    if others:
        raise ConfigError(
            f"{folder} is no token store and not empty ({', '.join(sorted(others)[:3])}); choose a new folder"
        )
    write_json(file, plan)


def _jobs(corpus: Corpus, part_cells: int, sources: list[dict[str, Any]]) -> list[_Job]:
    if part_cells < 1:
        raise ConfigError(f"part_cells is {part_cells}; at least 1 is needed")
    spans = [
        (number, start, min(start + part_cells, file.n_cells))
        for number, file in enumerate(corpus.files)
        for start in range(0, file.n_cells, part_cells)
    ]
    return [_Job(i, number, a, b, sources[number]) for i, (number, a, b) in enumerate(spans)]


def _name(job: _Job) -> str:
    return f"{job.number:06d}"


def _finished(folder: Path, job: _Job) -> bool:
    about = folder / PARTS / _name(job) / ABOUT
    return about.is_file() and json.loads(about.read_text(encoding="utf-8"))["source"] == job.source


def _summary(corpus: Corpus, folder: Path, jobs: list[_Job], matches: list[Any]) -> dict[str, Any]:
    parts = [json.loads((folder / PARTS / _name(job) / ABOUT).read_text(encoding="utf-8")) for job in jobs]
    files = []
    for number, (file, match) in enumerate(zip(corpus.files, matches, strict=True)):
        mine = [part for part in parts if part["file"] == number]
        counts = sum(p["counts"] for p in mine)
        files.append(
            {
                "name": file.name,
                "cells": file.n_cells,
                "empty_cells": sum(p["empty"] for p in mine),
                "tokens": sum(p["tokens"] for p in mine),
                "genes": int(match.measured.sum()),
                "columns": len(match.columns),
                "species": match.report.species,
                "coverage": sum(p["counts_of_genes"] for p in mine) / counts if counts else 0.0,
            }
        )
    return {
        "cells": corpus.n_cells,
        "tokens": sum(p["tokens"] for p in parts),
        "files": files,
        "parts": [_name(job) for job in jobs],
    }
