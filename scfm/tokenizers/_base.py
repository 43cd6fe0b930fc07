"""What is common to every tokenizer: the road from AnnData to tokens, and to disk and back."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfm import counts, genes
from scfm.counts import CountBlock
from scfm.errors import CheckpointError, TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._context import ContextOption, from_obs
from scfm.tokenizers._edits import remove
from scfm.tokenizers._tokens import Tokens, concatenate

log = logging.getLogger("scfm")

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2


class Tokenizer(ABC):
    """Turns the counts of a cell into the tokens of a model.

    A subclass is a frozen dataclass whose fields are the constants of a family; two tokenizers with equal
    constants are equal. Results are per cell: they do not depend on the other cells, on the order of rows
    or columns, or on absent genes.
    """

    kinds: ClassVar[dict[str, type[Tokenizer]]] = {}
    parts: ClassVar[dict[str, type]] = {}
    vocabulary: GeneVocabulary

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Tokenizer.kinds[cls.__name__] = cls

    @property
    def context_options(self) -> Mapping[str, ContextOption]:
        """The per-cell facts that this tokenizer takes, by name."""
        return {}

    @property
    def n_ids(self) -> int:
        """All ids of tokens are below this number."""
        return len(self.vocabulary)

    @abstractmethod
    def tokenize_block(
        self,
        block: CountBlock,
        match: GeneMatch,
        *,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        draws: Mapping[str, NDArray[Any]] | None = None,
    ) -> Tokens:
        """Tokens of the cells of one block.

        Parameters
        ----------
        block
            Counts of n cells.
        match
            Vocabulary id of each column of the block.
        context
            Per-cell facts by name (`context_options`): one value, or one per cell of the block.
        seed
            Key of everything random, together with each cell's own counts.
        draws
            Recorded draws to use instead, by name, one row per cell.

        Raises
        ------
        TokenizerError
            If the block does not fit the match, holds negative or non-finite values, or the context is wrong.
        """

    def __call__(
        self,
        adata: Any,
        *,
        gene_key: str | None = None,
        gene_matching: Literal["resolve", "published"] = "resolve",
        orthologues: Literal[True] | str | Path | pd.DataFrame | None = None,
        layer: str | None = None,
        use_raw: bool | None = None,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        block_size: int = 1024,
    ) -> Tokens:
        """Tokens of all cells of an AnnData object or file, which is only read.

        Parameters
        ----------
        adata
            An AnnData object or the path of one.
        gene_key, gene_matching
            Column of ``var`` that names the genes (default: found), and the matching policy.
        orthologues
            Translates genes of another species than the vocabulary's: True for the shipped one-to-one orthologues of
            human and mouse, or a table (see `scfm.genes.match`). What was translated and matched is logged.
        layer, use_raw
            Where the counts are (default: found).
        context
            Per-cell facts by name: a value for all cells, the name of an ``obs`` column, or one value per cell.
        seed
            Key of everything random.
        block_size
            Rows read at a time; the result does not depend on it.

        Raises
        ------
        CountsError, GeneMatchError, TokenizerError
            If there are no usable counts, no gene matches, or the context is wrong.
        """
        if isinstance(adata, (str, Path)):
            adata = counts.read(adata)
        source = counts.find(adata, layer=layer, use_raw=use_raw)
        match = genes.match(
            source.var, self.vocabulary, gene_key=gene_key, policy=gene_matching, orthologues=orthologues
        )
        facts = from_obs(self.context_options, context, adata.obs)

        def tokenize(block: CountBlock) -> Tokens:
            rows = slice(block.start, block.start + block.n_cells)
            here = {name: v[rows] if np.ndim(v) else v for name, v in facts.items()}
            return self.tokenize_block(block, match, context=here, seed=seed)

        present: list[float] = []

        def counted(blocks: Iterable[CountBlock]) -> Iterator[CountBlock]:
            for block in blocks:
                present.append(float(block.data.sum(dtype=np.float64)))
                yield block

        tokens = concatenate(list(in_background(tokenize, counted(source.blocks(block_size)))))
        if orthologues is not None:
            matched = float(np.sum(tokens.per_cell.get("total_matched", 0.0)))
            log.info("%s", match.report.with_counts(matched, sum(present)))
        return tokens

    def delete(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """Tokens of the same cells as if these genes (ids) were absent; a cell that was cut is not refilled."""
        return remove(tokens, genes)

    def overexpress(self, tokens: Tokens, genes: NDArray[np.integer[Any]]) -> Tokens:
        """Tokens of the same cells as if these genes (ids) were the strongest, cells that lack them included.

        Raises
        ------
        TokenizerError
            If the scheme gives no gene a strength of its own.
        """
        raise TokenizerError(
            f"a {type(self).__name__} samples genes or knows no order of strength, so that overexpression has no meaning "
            "in its tokens; genes can be deleted from them"
        )

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``vocabulary.json`` and, where there are arrays, ``tokenizer.npz``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain, arrays = _split(self)
        text = json.dumps({"tokenizer": type(self).__name__, **plain}, indent=2)
        (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
        self.vocabulary.save(folder / "vocabulary.json")
        if arrays:
            np.savez_compressed(folder / "tokenizer.npz", **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, whatever the kind of tokenizer.

        Raises
        ------
        CheckpointError
            If files are missing, or the tokenizer is of another kind than the class that is asked.
        """
        folder = Path(folder)
        missing = [n for n in ("tokenizer.json", "vocabulary.json") if not (folder / n).is_file()]
        if missing:
            raise CheckpointError(f"no tokenizer in {folder}: {' and '.join(missing)} missing; write one with save()")
        plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        name = plain.pop("tokenizer", None)
        kind = Tokenizer.kinds.get(name)
        if kind is None or not issubclass(kind, cls):
            expected = ", ".join(sorted(n for n, k in Tokenizer.kinds.items() if issubclass(k, cls)))
            raise CheckpointError(f"{folder} holds a tokenizer of kind {name!r}, expected {expected}")
        arrays = {}
        if (folder / "tokenizer.npz").is_file():
            with np.load(folder / "tokenizer.npz", allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        unknown = sorted((set(plain) | set(arrays)) - known)
        if unknown:
            raise CheckpointError(
                f"{name} in {folder} has unknown constants {', '.join(unknown)}; update scfm to read it"
            )
        vocabulary = GeneVocabulary.load(folder / "vocabulary.json")
        constants = {k: _restored(v) for k, v in plain.items()} | arrays
        make: Callable[..., Self] = kind  # type: ignore[assignment]
        return make(vocabulary=vocabulary, **constants)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, my_arrays = _split(self)
        theirs, their_arrays = _split(other)
        return (
            mine == theirs
            and my_arrays.keys() == their_arrays.keys()
            and all(np.array_equal(v, their_arrays[k], equal_nan=v.dtype.kind == "f") for k, v in my_arrays.items())
            and self.vocabulary.to_dict() == other.vocabulary.to_dict()  # type: ignore[attr-defined]
        )

    def __hash__(self) -> int:
        return hash((type(self).__name__, len(self.vocabulary), json.dumps(_split(self)[0], sort_keys=True)))


def register_part(cls: type) -> type:
    """Let a dataclass be a constant of a tokenizer that survives saving."""
    Tokenizer.parts[cls.__name__] = cls
    return cls


def _split(tokenizer: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The constants as plain JSON values, and the arrays, both by field name, without the vocabulary."""
    plain, arrays = {}, {}
    for f in fields(tokenizer):
        value = getattr(tokenizer, f.name)
        if isinstance(value, np.ndarray):
            arrays[f.name] = value
        elif f.name != "vocabulary":
            plain[f.name] = _plain(value)
    return plain, arrays


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        inner = {k: _restored(v) for k, v in value.items()}
        kind = inner.get("kind")
        if isinstance(kind, str) and kind in Tokenizer.parts:
            return Tokenizer.parts[kind](**{k: v for k, v in inner.items() if k != "kind"})
        return inner
    if isinstance(value, list):
        return tuple(_restored(v) for v in value)
    return value


register_part(ContextOption)


def in_background(work: Callable[[Item], Result], items: Iterable[Item], ahead: int = _AHEAD) -> Iterator[Result]:
    """Results in order; an item is worked on while the next ones are read, and so many results wait for their use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scfm-ahead") as pool:
        waiting: list[Future[Result]] = []
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)
