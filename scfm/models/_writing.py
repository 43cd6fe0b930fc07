"""What would such a cell look like? Cells that a model writes from words: an organ, a type, an age, genes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError, GeneMatchError
from scfm.models._head import gene_ids
from scfm.models._model import FoundationModel
from scfm.models._run import to_batch
from scfm.tokenizers import Tokens
from scfm.transformer import WordRule, Writer, WritingSpec, Written, write

Words = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Sampling:
    """How words are drawn.

    Parameters
    ----------
    top_k
        Only among the likeliest words, so many; None: among all genes that the cell does not hold yet, and its end.
    end_weight
        Factor of the probability that the cell ends.
    longest
        Words of the longest cell, those given included; None: as in the model's training.
    batch_size
        Cells that are written together.
    seed
        With the number of the cell, the key of its draws.
    """

    top_k: int | None = None
    end_weight: float = 0.1
    longest: int | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "longest", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; it must be at least 1")
        if not self.end_weight >= 0:
            raise ConfigError(f"end_weight={self.end_weight}; a probability cannot be multiplied by it")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; it must not be negative")


def kinds_of_words(model: FoundationModel) -> dict[str, tuple[str, ...]]:
    """The words that a model knows, by kind.

    Raises
    ------
    ConfigError
        If the model does not write cells.
    """
    names = model.vocabulary.names
    return {kind: tuple(names[i] for i in ids) for kind, ids in _spec(model).kinds}


def write_cells(
    model: FoundationModel,
    n_cells: int,
    words: Words | None = None,
    genes: Mapping[str, int] | None = None,
    sampling: Sampling = Sampling(),
    progress: Callable[[int], object] | None = None,
) -> Tokens:
    """Cells that a model writes.

    A cell depends on the words, the seed and its number alone: the first of 100 cells are those of a call for fewer.
    Cells are written in batches of a fixed size, because sums are rounded differently for another number of rows.

    Parameters
    ----------
    model
        Has a `WritingSpec`.
    n_cells
        How many.
    words
        What they are to be, by kind (`kinds_of_words`): a word, or one per cell.
    genes
        Genes that every cell has, with their levels; they come before all others.
    sampling
        How words are drawn.
    progress
        Called with the number of cells after each batch.

    Returns
    -------
    Tokens
        Words, genes and levels of each cell; ``per_cell["n_given"]`` of them were given, ``per_cell["ended"]`` says
        whether the model ended the cell itself.

    Raises
    ------
    ConfigError
        If the model does not write cells, a word is not known, or there is no room.
    GeneMatchError
        If a gene is not known.
    """
    spec = _spec(model)
    if n_cells < 1:
        raise ConfigError(f"n_cells={n_cells}; at least one cell must be asked for")
    ids, levels = _prompts(model, spec, n_cells, words or {}, genes or {})
    room = (sampling.longest or spec.longest) - ids.shape[1]
    if room < 1:
        raise ConfigError(
            f"{ids.shape[1]} words are given, and a cell has {sampling.longest or spec.longest} at most: nothing is left "
            "to be written"
        )
    may_come = model.vocabulary.is_gene[: model.tokenizer.n_ids].copy()
    may_come[spec.end] = True
    rule = WordRule(torch.as_tensor(may_come).to(model.device), top_k=sampling.top_k, end_weight=sampling.end_weight)
    pieces: list[tuple[NDArray[np.int32], NDArray[np.float32], bool]] = []
    for start in range(0, n_cells, sampling.batch_size):
        numbers = np.arange(start, start + sampling.batch_size)
        rows = np.minimum(numbers, n_cells - 1)
        written = _write(model, ids[rows], levels[rows], rule, room, numbers, numbers < n_cells, sampling.seed)
        found = _pieces(written)[: n_cells - start]
        pieces += found
        if progress is not None:
            progress(len(found))
    return _tokens(model, ids, levels, pieces)


def expression(model: FoundationModel, cells: Tokens) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """Relative levels, 0 to 1, of written cells.

    Returns
    -------
    (n, g) matrix, and the (g,) ids of its genes: all that the model knows.
    """
    genes = np.flatnonzero(model.vocabulary.is_gene[: model.tokenizer.n_ids])
    column = np.full(model.tokenizer.n_ids, -1)
    column[genes] = np.arange(len(genes))
    rows = np.repeat(np.arange(len(cells)), cells.lengths)
    values = np.zeros(cells.n_tokens, np.float32) if cells.values is None else cells.values / _spec(model).highest
    kept = (column[cells.ids] >= 0) & (values > 0)
    shape = (len(cells), len(genes))
    matrix = sp.csr_matrix((values[kept].astype(np.float32), (rows[kept], column[cells.ids[kept]])), shape=shape)
    return matrix, genes


def word_id(model: FoundationModel, kind: str, word: str) -> int:
    """The id of a word of some kind.

    Raises
    ------
    ConfigError
        If there is no such kind or word; the message names those that may be meant.
    """
    kinds = kinds_of_words(model)
    if kind not in kinds:
        raise ConfigError(
            f"{model.card.name} knows no kind of words {kind!r}{_meant(kind, list(kinds))}; it knows {', '.join(kinds)}"
        )
    if word in kinds[kind]:
        return model.vocabulary.index[word]
    others = [other for other, known in kinds.items() if word in known]
    if others:
        raise ConfigError(f"{kind}={word!r}: {model.card.name} knows the word as {' and '.join(others)}, not as {kind}")
    shown = ", ".join(map(repr, kinds[kind][:40])) + (", ..." if len(kinds[kind]) > 40 else "")
    raise ConfigError(f"{kind}={word!r} is unknown to {model.card.name}{_meant(word, kinds[kind])}; valid: {shown}")


def _meant(word: str, known: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(str(word).lower(), list(by_lower), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(by_lower[name]) for name in close)}?)" if close else ""


def _spec(model: FoundationModel) -> WritingSpec:
    if model.config.writing is None:
        raise ConfigError(f"{model.card.name} does not write cells: it was not trained to say what comes next")
    return model.config.writing_spec


def _prompts(
    model: FoundationModel, spec: WritingSpec, n_cells: int, words: Words, genes: Mapping[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids and levels (n, p) of what is given: words in the order of their kinds, the start, genes."""
    given = {kind: _each(model, kind, word, n_cells) for kind, word in words.items()}
    columns = [given[kind] for kind, _ids in spec.kinds if kind in given]
    columns.append(np.full(n_cells, spec.start))
    columns += [np.full(n_cells, i) for i in gene_ids(model.vocabulary, [*genes])]
    ids = np.stack(columns, axis=1).astype(np.int32)
    is_gene = model.vocabulary.is_gene[: model.tokenizer.n_ids]
    unknown = [g for g, i in zip(genes, ids[0, len(given) + 1 :], strict=True) if i >= len(is_gene) or not is_gene[i]]
    if unknown:
        raise GeneMatchError(f"{', '.join(unknown[:3])}: {model.card.name} does not write such genes; leave them out")
    wrong = [f"{gene}={level}" for gene, level in genes.items() if level not in range(spec.highest + 1)]
    if wrong:
        raise ConfigError(f"{', '.join(wrong[:3])}: the level of a gene is a whole number from 0 to {spec.highest}")
    levels = np.zeros(ids.shape, dtype=np.float32)
    levels[:, len(given) + 1 :] = [*genes.values()]
    return ids, levels


def _each(model: FoundationModel, kind: str, word: str | Sequence[str], n_cells: int) -> NDArray[np.int64]:
    """(n,) the id of the word of each cell."""
    if isinstance(word, str):
        return np.full(n_cells, word_id(model, kind, word))
    if len(word) != n_cells:
        raise ConfigError(f"{kind} holds {len(word)} words for {n_cells} cells; give one for all, or one per cell")
    known = {name: word_id(model, kind, name) for name in dict.fromkeys(map(str, word))}
    return np.array([known[str(name)] for name in word])


def _write(
    model: FoundationModel,
    ids: NDArray[np.int32],
    levels: NDArray[np.float32],
    rule: WordRule,
    room: int,
    numbers: NDArray[np.int64],
    wanted: NDArray[np.bool_],
    seed: int,
) -> Written:
    offsets = np.arange(len(ids) + 1, dtype=np.int64) * ids.shape[1]
    batch = to_batch(Tokens(ids.ravel(), offsets, levels.ravel()), model.device)
    draws = [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, i]))) for i in numbers.tolist()]

    def noise(_step: int) -> Tensor:
        rows = [draw.standard_exponential(model.tokenizer.n_ids, dtype=np.float32) for draw in draws]
        return torch.as_tensor(np.stack(rows)).to(model.device).clamp_min(torch.finfo(torch.float32).tiny)

    with torch.inference_mode():
        writer = Writer(model.transformer, batch, room)
        return write(writer, rule, room, noise, torch.as_tensor(wanted).to(model.device))


def _pieces(written: Written) -> list[tuple[NDArray[np.int32], NDArray[np.float32], bool]]:
    """Words and levels of each cell without the one that ends it, and whether there is one."""
    words, levels = written.words.cpu().numpy().astype(np.int32), written.levels.cpu().numpy().astype(np.float32)
    n_words = written.n_words.cpu().numpy() - written.ended.cpu().numpy()
    return [(w[:n], v[:n], bool(e)) for w, v, n, e in zip(words, levels, n_words, written.ended.cpu(), strict=True)]


def _tokens(
    model: FoundationModel,
    ids: NDArray[np.int32],
    levels: NDArray[np.float32],
    pieces: Sequence[tuple[NDArray[np.int32], NDArray[np.float32], bool]],
) -> Tokens:
    lengths = np.array([ids.shape[1] + len(words) for words, _levels, _ended in pieces])
    return Tokens(
        ids=np.concatenate([x for row, (words, _, _) in zip(ids, pieces, strict=True) for x in (row, words)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        values=np.concatenate([x for row, (_, new, _) in zip(levels, pieces, strict=True) for x in (row, new)]),
        per_cell={
            "n_given": np.full(len(pieces), ids.shape[1], dtype=np.int32),
            "ended": np.array([ended for _, _, ended in pieces]),
        },
        vocabulary=model.vocabulary,
    )
