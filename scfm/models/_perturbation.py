"""What does a cell become when a gene is taken away, or made its strongest? Effects of edited tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm.models._model import FoundationModel
from scfm.models._run import Budget
from scfm.tokenizers import Tokens
from scfm.tokenizers._edits import cut, remove

Kind = Literal["delete", "overexpress"]
Genes = tuple[int, ...]


@dataclass(frozen=True)
class Effect:
    """What one edit does to the cells that take part.

    Parameters
    ----------
    cells
        (m,) numbers of these cells.
    cosine
        (m,) cosine between the cell before and after; 1 = no effect.
    shifts
        (m,) per named state: how much closer the cell came to it, as a difference of cosines.
    """

    cells: NDArray[np.int64]
    cosine: NDArray[np.float64]
    shifts: Mapping[str, NDArray[np.float64]]


class Perturber:
    """Some cells of a model, ready to be edited.

    Parameters
    ----------
    model
        On its device.
    tokens
        Of n cells, few enough that the states of their tokens fit into memory.
    pooling, hidden_layer
        See `FoundationModel.embed_cells`.
    towards
        (d,) vectors of states by name.

    Notes
    -----
    Where a cell's vector is the mean of its tokens, its cosine is the mean over the remaining genes of the cosine
    between the gene's state before and after (Geneformer's in-silico perturbation; Theodoris et al. 2023): the mean
    vectors would also tell that one gene more or less is averaged. Other read-outs compare the cell vectors themselves.
    """

    def __init__(
        self,
        model: FoundationModel,
        tokens: Tokens,
        pooling: str | None = None,
        hidden_layer: int | None = None,
        towards: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    ) -> None:
        self.model, self.tokens, self.pooling, self.hidden_layer = model, tokens, pooling, hidden_layer
        self.towards = dict(towards or {})
        spec = model.transformer.readout(pooling)
        self.by_gene = len(spec.parts) == 1 and spec.parts[0].kind == "mean" and not spec.layers
        self.budget = Budget("auto", model.device)
        self.states = self._states(tokens)
        self.vectors = self._vectors(tokens)

    def apply(self, genes: Genes, kind: Kind) -> Effect:
        """Edit all cells that can be: for ``"delete"`` those that have every one of the genes, else all with a gene."""
        cells = taking_part(self.tokens, genes, kind)
        given, ids = self.tokens[cells], np.array(genes)
        if not len(cells):
            return Effect(cells, np.zeros(0), {name: np.zeros(0) for name in self.towards})
        tokenizer = self.model.tokenizer
        after = tokenizer.delete(given, ids) if kind == "delete" else tokenizer.overexpress(given, ids)
        # genes that had to make room are left out on both sides
        lost = remove(given, ids).lengths - remove(after, ids).lengths
        before, shorter = cut(given, given.lengths - lost, self.model.vocabulary.is_gene), lost > 0
        old_states, old_vectors = self.states[cells], None if self.vectors is None else self.vectors[cells]
        if shorter.any():
            again = before[shorter]
            old_states[shorter] = self._states(again)
            if old_vectors is not None:
                old_vectors[shorter] = self._vectors(again)
        new_states, new_vectors = self._states(after), self._vectors(after)
        if self.by_gene:
            cosine = np.array(
                [
                    self._mean_cosine(b, x, a, y, ids)
                    for b, x, a, y in zip(before, old_states, after, new_states, strict=True)
                ]
            )
        else:
            cosine = cosines(old_vectors, new_vectors)
        shifts = {name: cosines(new_vectors, goal) - cosines(old_vectors, goal) for name, goal in self.towards.items()}
        return Effect(cells, cosine, shifts)

    def _states(self, tokens: Tokens) -> NDArray[np.object_]:
        """(n,) states (tokens, d) of each cell; empty where they are not compared."""
        out = np.empty(len(tokens), dtype=object)
        if not self.by_gene:
            return out
        layer = self.model.transformer.layer_number(self.hidden_layer)
        (states,) = self.model.hidden_states(tokens, [-1 if layer is None else layer]).values()
        for i, (a, b) in enumerate(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)):
            out[i] = states[a:b]
        return out

    def _vectors(self, tokens: Tokens) -> NDArray[np.float32] | None:
        """(n, d) vectors of the cells, where they are compared."""
        if self.by_gene and not self.towards:
            return None
        return self.model.embed_block(tokens, self.budget, self.pooling, self.hidden_layer)

    def _mean_cosine(
        self,
        before: Tokens,
        old: NDArray[np.float32],
        after: Tokens,
        new: NDArray[np.float32],
        edited: NDArray[np.int64],
    ) -> float:
        _, i, j = np.intersect1d(before.ids, after.ids, return_indices=True)
        kept = self.model.vocabulary.is_gene[before.ids[i]] & ~np.isin(before.ids[i], edited)
        return float(np.mean(cosines(old[i[kept]], new[j[kept]]))) if kept.any() else np.nan


def taking_part(tokens: Tokens, genes: Genes, kind: Kind) -> NDArray[np.int64]:
    """Numbers of the cells that an edit is made in: those with every gene, or, to overexpress, with any gene at all."""
    if kind == "overexpress":
        return np.flatnonzero(np.asarray(tokens.per_cell["n_detected"]) > 0)
    there = np.zeros((len(tokens), len(genes)), dtype=bool)
    for part in (tokens, *tokens.parts.values()):
        for column, gene in enumerate(genes):
            places = np.flatnonzero(part.ids == gene)
            there[np.searchsorted(part.offsets, places, side="right") - 1, column] = True
    return np.flatnonzero(there.all(axis=1))


def cosines(a: Any, b: Any) -> NDArray[np.float64]:
    """Cosines between rows (n, d) and rows (n, d) or one vector (d,)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))
