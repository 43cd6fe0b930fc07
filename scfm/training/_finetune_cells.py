"""Which labelled cells are learnt from, and which are held out? Tokens in memory, and a split by whole groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.tokenizers import Tokens, concatenate
from scfm.training._cells import encode_rows
from scfm.training._corpus import Corpus
from scfm.training._encode import Encoder, Keep
from scfm.training._finetune_targets import Target
from scfm.training._index import CellIndex, Column, Split, check_leak

READ_ROWS = 1024
_TRIES = 100
_SPLIT = 7


@dataclass(eq=False)
class HeldCells:
    """Cells whose tokens stay in memory, for many passes over them.

    Parameters
    ----------
    index
        One row per cell.
    encoder
        That made the tokens.
    tokens
        Of all cells.
    """

    index: CellIndex
    encoder: Encoder
    tokens: Tokens

    def read(self, cells: NDArray[np.int64]) -> Tokens:
        """The tokens of some cells, in the order asked."""
        return self.tokens[cells]

    def ready(self, cells: NDArray[np.int64]) -> Tokens:
        """The same for a model that is called by itself: with the genes that were measured."""
        return replace(self.tokens[cells], measured=self.index.measured[0])


def open_cells(adata: AnnData, reading: Mapping[str, Any]) -> Corpus:
    """One AnnData as a corpus; ``reading`` holds fields of `Corpus`."""
    return Corpus.open(adata, **reading)


def hold(
    corpus: Corpus, model: FoundationModel, groups: NDArray[np.str_] | None, progress: bool, keep: Keep = "tokens"
) -> HeldCells:
    """Tokenize the cells of an AnnData.

    Parameters
    ----------
    corpus
        Of one AnnData.
    model
        Whose tokenizer is used.
    groups
        (n,) group of each cell.
    progress
        Whether to show a bar.
    keep
        Of each cell.
    """
    encoder = Encoder(model.tokenizer, keep)
    match, facts = corpus.match(0, encoder.vocabulary), corpus.facts(0, model.tokenizer)
    n = corpus.n_cells
    parts = []
    with tqdm(total=n, desc="tokens", unit="cell", disable=not progress) as bar:
        for start in range(0, n, READ_ROWS):
            stop = min(start + READ_ROWS, n)
            parts.append(encode_rows(corpus, 0, start, stop, encoder, match, facts))
            bar.update(stop - start)
    tokens = concatenate(parts)
    one = np.full(n, "all")
    index = CellIndex(
        file=np.zeros(n, dtype=np.int32),
        row=np.arange(n),
        length=tokens.lengths.astype(np.int32),
        n_genes=np.asarray(tokens.per_cell["n_detected"], dtype=np.int32),
        fingerprint=tokens.per_cell["fingerprint"],
        columns={
            "donor": Column.of(one if groups is None else groups),
            "dataset": Column.of(one),
            "label": Column.of(one),
        },
        measured=match.measured[None],
        files=("adata",),
    )
    return HeldCells(index, encoder, tokens)


def stream(corpus: Corpus, model: FoundationModel, progress: bool, desc: str) -> Iterator[tuple[slice, Tokens]]:
    """Tokens of blocks of rows, for one pass."""
    match, facts = corpus.match(0, model.vocabulary), corpus.facts(0, model.tokenizer)
    with tqdm(total=corpus.n_cells, desc=desc, unit="cell", disable=not progress) as bar:
        for block in corpus.source(0).blocks(READ_ROWS):
            rows = slice(block.start, block.start + block.n_cells)
            here = {name: v[rows] if np.ndim(v) else v for name, v in facts.items()}
            yield rows, model.tokenizer.tokenize_block(block, match, context=here)
            bar.update(block.n_cells)


def hold_out(
    cells: HeldCells,
    targets: Sequence[Target],
    usable: NDArray[np.bool_],
    share: float,
    groups: Sequence[str] | None,
    group_key: str | None,
    seed: int,
) -> Split:
    """Cells to train on and to validate on.

    Whole groups are held out, such that every class keeps cells to learn from and, if there is a way, has some that are
    held out. Without groups, a share of each class's cells is held out, copies of a cell together.

    Parameters
    ----------
    cells
        All of them; ``donor`` is the group.
    targets
        What is learnt.
    usable
        (n,) cells with genes and something to learn.
    share
        Of the cells, to be held out; 0: none.
    groups
        Hold out these instead.
    group_key
        Where groups are from; None: there are none.
    seed
        Of the drawing.

    Raises
    ------
    ConfigError
        If no split leaves cells of every class to learn from, or the same cell stands on both sides.
    """
    there = np.flatnonzero(usable)
    if not 0 <= share < 1:
        raise ConfigError(f"validation_share={share}; it is a share from 0 to below 1")
    if share == 0 and groups is None:
        return Split(there, np.empty(0, np.int64), ())
    if group_key is None:
        if groups is not None:
            raise ConfigError("validation_groups= needs group_key=, the column of obs that the groups are of")
        held = _cells_of_each_class(cells, targets, there, share, seed)
        return Split(there[~held], there[held], ())
    column = cells.index.column("donor")
    codes = column.codes[there]
    of_class = _in_groups(targets, there, codes, len(column.names))
    if groups is not None:
        unknown = [g for g in groups if g not in column.names]
        if unknown:
            raise ConfigError(
                f"obs[{group_key!r}] has no {unknown[0]!r} to hold out; it has {', '.join(column.names[:8])}"
            )
        chosen = np.isin(column.names, list(groups))
    else:
        chosen = _groups(np.bincount(codes, minlength=len(column.names)), of_class, share, seed, group_key)
    lost = ~of_class[~chosen].any(axis=0)
    if lost.any():
        names = [f"{t.source}={c}" for t in targets for c in t.classes]
        raise ConfigError(
            f"no cell of {names[int(np.flatnonzero(lost)[0])]!r} is left to learn from when the held-out groups of "
            f"{group_key!r} are taken away; hold out others with validation_groups=, or another group_key="
        )
    held = chosen[codes]
    if held.all() or not held.any():
        raise ConfigError(
            f"no cells are left to {'train' if held.all() else 'validate'} on; choose other validation_groups="
        )
    split = Split(there[~held], there[held], tuple(np.array(column.names)[chosen].tolist()))
    check_leak(cells.index, split, group_key)
    return split


def _in_groups(
    targets: Sequence[Target], there: NDArray[np.int64], codes: NDArray[np.int32], n_groups: int
) -> NDArray[np.bool_]:
    """(groups, classes of all targets): whether a group has cells of a class."""
    columns = []
    for target in (t for t in targets if t.kind == "classes"):
        table = np.zeros((n_groups, len(target.classes)), dtype=bool)
        values = target.values[there]
        table[codes[values >= 0], values[values >= 0]] = True
        columns.append(table)
    return np.concatenate(columns, axis=1) if columns else np.ones((n_groups, 1), dtype=bool)


def _groups(
    sizes: NDArray[np.int64], of_class: NDArray[np.bool_], share: float, seed: int, group_key: str
) -> NDArray[np.bool_]:
    """Groups to hold out: near the share, with most classes on both sides."""
    there = np.flatnonzero(sizes)
    if len(there) < 2:
        raise ConfigError(
            f"obs[{group_key!r}] has one group only, so none can be held out; name a column with donors or batches as "
            "group_key=, or leave it out to hold out single cells"
        )
    rng = np.random.default_rng([seed, _SPLIT])
    wanted = share * sizes.sum()
    needed = of_class[there].any(axis=0)
    best: tuple[tuple[float, float], NDArray[np.bool_]] | None = None
    for _ in range(_TRIES):
        held = np.zeros(len(sizes), dtype=bool)
        for group in rng.permutation(there):
            trial = held.copy()
            trial[group] = True
            left = np.setdiff1d(there, np.flatnonzero(trial))
            nearer = abs(sizes[trial].sum() - wanted) < abs(sizes[held].sum() - wanted) or not held.any()
            if len(left) and nearer and (of_class[left].any(axis=0) == needed).all():
                held = trial
        if held.any():
            unseen = float((~of_class[held].any(axis=0) & needed).sum())
            rank = (unseen, abs(float(sizes[held].sum()) - wanted))
            if best is None or rank < best[0]:
                best = (rank, held)
    if best is None:
        raise ConfigError(
            f"every group of obs[{group_key!r}] has a class that no other group has, so none can be held out; name another "
            "group_key=, leave it out to hold out single cells, or drop such classes"
        )
    return best[1]


def _cells_of_each_class(
    cells: HeldCells, targets: Sequence[Target], there: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """(m,) cells held out: a share of each class of the first target with classes."""
    classes = next((t.values[there] for t in targets if t.kind == "classes"), np.zeros(len(there), dtype=np.int64))
    _, twin = np.unique(cells.index.fingerprint[there], return_inverse=True)
    twin = twin.ravel()
    rng = np.random.default_rng([seed, _SPLIT])
    held = np.zeros(twin.max() + 1, dtype=bool)
    # copies count with the class of the first of them
    first = np.full(len(held), -2, dtype=np.int64)
    first[twin[::-1]] = classes[::-1]
    for code in np.unique(first):
        units = np.flatnonzero(first == code)
        n = min(max(1, round(share * len(units))), len(units) - 1)
        held[rng.choice(units, n, replace=False)] = True
    if not held.any():
        raise ConfigError("all cells are copies of one another; nothing can be held out")
    return held[twin]


def genes_held_out(target: Target, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of genes to train on and to validate on: a share of each class, one at least."""
    rng = np.random.default_rng([seed, _SPLIT, 1])
    train, valid = [], []
    for code in range(len(target.classes)):
        ids = rng.permutation(np.flatnonzero(target.values == code))
        n = min(max(1, round(share * len(ids))), len(ids) - 1) if share else 0
        valid.append(ids[:n])
        train.append(ids[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))
