"""Which proteins would be found if genes were drawn by expression? Sentences along the chromosomes.

UCE (Rosen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.errors import TokenizerError
from scfm.genes import GeneMatch, GeneVocabulary
from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._cells import Cells, Slots, gather, keys, recorded
from scfm.tokenizers._context import ContextOption, resolve_context
from scfm.tokenizers._kernels import N_COUNTERS, mix, sort_descending, uniform
from scfm.tokenizers._layout import statistics
from scfm.tokenizers._tokens import Tokens


@dataclass(frozen=True, eq=False, repr=False)
class ProteinTokenizer(Tokenizer):
    """A cell as genes drawn with replacement by log expression, written chromosome by chromosome.

    A sentence is the ``"cls"`` token, then for every chromosome that was drawn from, in random order: its
    token, its drawn genes by start with all repetitions, and the ``"chromosome_end"`` token.

    Parameters
    ----------
    vocabulary
        Token names of one species: special tokens (``"cls"``, ``"chromosome_end"`` and one per
        chromosome) and genes.
    chromosome
        (V,) int32 id of the token of each gene's chromosome; -1 where there is none (special tokens).
    start
        (V,) int64 start of each gene.
    rows
        (V,) int64 row of each token in the model's own token table, for whoever fills an embedding.
    n_draws
        Genes drawn per cell.
    """

    vocabulary: GeneVocabulary
    chromosome: NDArray[np.int32]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]
    n_draws: int = 1024

    def __post_init__(self) -> None:
        for name, dtype in (("chromosome", np.int32), ("start", np.int64), ("rows", np.int64)):
            array = np.asarray(getattr(self, name), dtype=dtype)
            if array.shape != (len(self.vocabulary),):
                raise TokenizerError(
                    f"{name} has shape {array.shape}, expected one entry per name ({len(self.vocabulary)})"
                )
            array = array.copy()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        missing = [role for role in ("cls", "chromosome_end") if role not in self.vocabulary.specials]
        if missing:
            raise TokenizerError(f"the vocabulary has no special token {' and '.join(map(repr, missing))}")
        homeless = self.vocabulary.is_gene & (self.chromosome < 0)
        if homeless.any():
            at = int(np.flatnonzero(homeless)[0])
            raise TokenizerError(f"{int(homeless.sum())} genes have no chromosome, e.g. {self.vocabulary.names[at]}")
        if self.n_draws < 1:
            raise TokenizerError(f"n_draws is {self.n_draws}, at least 1 is needed")

    @property
    def context_options(self) -> Mapping[str, ContextOption]:
        """The species, which is that of the vocabulary: a word to be checked, not a token."""
        own = self.vocabulary.species
        return {"species": ContextOption({own: self.vocabulary.specials["cls"]}, default=own)}

    def __repr__(self) -> str:
        n_genes = int(self.vocabulary.is_gene.sum())
        return f"ProteinTokenizer({n_genes:,} {self.vocabulary.species} genes, {self.n_draws:,} draws)"

    def weights(self, block: CountBlock, match: GeneMatch) -> Tokens:
        """The probability of each expressed gene to be drawn, as values of one token per gene."""
        slots = Slots.of(match, self.vocabulary)
        cells = gather(block, slots)
        cumulated = _cumulated(cells.offsets, np.log1p(cells.counts))
        first = np.zeros(len(cumulated), dtype=bool)
        first[cells.offsets[:-1][cells.lengths > 0]] = True
        step = np.diff(cumulated, prepend=0.0)
        return Tokens(
            ids=slots.genes[cells.slots],
            offsets=cells.offsets,
            values=np.where(first, cumulated, step).astype(np.float32),
            per_cell=statistics(cells, cells.lengths, np.zeros(block.n_cells)),
            vocabulary=self.vocabulary,
        )

    def tokenize_block(
        self,
        block: CountBlock,
        match: GeneMatch,
        *,
        context: Mapping[str, Any] | None = None,
        seed: int = 0,
        draws: Mapping[str, NDArray[Any]] | None = None,
    ) -> Tokens:
        """Sentences of the cells of one block (see `Tokenizer.tokenize_block`).

        Recorded draws: ``"uniform"`` (n, n_draws) in [0, 1), looked up in the cumulated weights in
        vocabulary order (column order where duplicates are kept apart), or ``"genes"`` (n, n_draws)
        vocabulary ids; ``"chromosomes"`` (n, longest) chromosome tokens in the order of the sentence, -1
        after the last.
        A cell without genes is the ``"cls"`` token alone.
        """
        resolve_context(self.context_options, context or {}, block.n_cells)
        slots = Slots.of(match, self.vocabulary)
        cells = gather(block, slots)
        places = self._places()
        given_genes = self._recorded_genes(recorded(draws, "genes", block.n_cells), cells)
        uniforms = recorded(draws, "uniform", block.n_cells)
        order = recorded(draws, "chromosomes", block.n_cells)
        if uniforms is not None and uniforms.shape[1] != self.n_draws:
            raise TokenizerError(f"draws['uniform'] holds {uniforms.shape[1]} draws per cell, expected {self.n_draws}")
        n_detected = cells.lengths
        ids, offsets = _sentences(
            cells.offsets,
            places.of_gene[slots.genes[cells.slots]],
            _cumulated(cells.offsets, np.log1p(cells.counts)),
            keys(cells, slots.genes[cells.slots], seed),
            self.n_draws,
            np.empty((block.n_cells, 0)) if uniforms is None else uniforms.astype(np.float64),
            np.empty((block.n_cells, 0), np.int32) if given_genes is None else places.of_gene[given_genes],
            np.empty((block.n_cells, 0), np.int32) if order is None else order.astype(np.int32),
            places.gene,
            places.border,
            places.token,
            self.vocabulary.specials["cls"],
            self.vocabulary.specials["chromosome_end"],
        )
        return Tokens(
            ids=ids,
            offsets=offsets,
            per_cell=statistics(cells, n_detected, np.zeros(block.n_cells)),
            vocabulary=self.vocabulary,
        )

    def _recorded_genes(self, genes: NDArray[Any] | None, cells: Cells) -> NDArray[Any] | None:
        if genes is None:
            return None
        if genes.shape[1] != self.n_draws:
            raise TokenizerError(f"draws['genes'] holds {genes.shape[1]} genes per cell, expected {self.n_draws}")
        drawn = genes[cells.lengths > 0]
        if drawn.size and not self.vocabulary.is_gene[drawn].all():
            raise TokenizerError("draws['genes'] holds ids that are no genes of the vocabulary")
        return np.where((cells.lengths > 0)[:, None], genes, np.flatnonzero(self.vocabulary.is_gene)[0])

    def _places(self) -> _Places:
        genes = np.flatnonzero(self.vocabulary.is_gene)
        sorted_genes = genes[np.lexsort((self.rows[genes], self.start[genes], self.chromosome[genes]))]
        of_gene = np.full(len(self.vocabulary), -1, dtype=np.int32)
        of_gene[sorted_genes] = np.arange(len(genes), dtype=np.int32)
        token, first = np.unique(self.chromosome[sorted_genes], return_index=True)
        border = np.append(first, len(genes)).astype(np.int64)
        return _Places(of_gene, sorted_genes.astype(np.int32), border, token.astype(np.int32))


@dataclass(frozen=True)
class _Places:
    """The genes in sentence order: by chromosome token, start, then token row.

    Parameters
    ----------
    of_gene
        (V,) int32 place of each vocabulary id, -1 for special tokens.
    gene
        (G,) int32 vocabulary id of each place.
    border
        (C + 1,) int64 first place of each chromosome.
    token
        (C,) int32 ascending ids of the chromosome tokens.
    """

    of_gene: NDArray[np.int32]
    gene: NDArray[np.int32]
    border: NDArray[np.int64]
    token: NDArray[np.int32]


@njit(nogil=True, cache=True)
def _cumulated(offsets, weights):  # type: ignore[no-untyped-def]
    """Per cell the running sum of the weights over their total; the last entry is 1."""
    out = np.empty(len(weights), np.float64)
    for i in range(len(offsets) - 1):
        running = 0.0
        for j in range(offsets[i], offsets[i + 1]):
            running += weights[j]
            out[j] = running
        for j in range(offsets[i], offsets[i + 1]):
            out[j] /= running
    return out


@njit(nogil=True, cache=True)
def _sentences(  # type: ignore[no-untyped-def]
    offsets,
    places,
    cumulated,
    stream,
    n_draws,
    uniforms,
    drawn_places,
    chromosome_orders,
    gene_at,
    border,
    chromosome_token,
    cls,
    end,
):
    n_cells = len(offsets) - 1
    n_chromosomes = len(chromosome_token)
    longest = 0
    for i in range(n_cells):
        longest = max(longest, offsets[i + 1] - offsets[i])
    size = max(n_chromosomes, 1)
    times = np.zeros(len(gene_at), np.int32)
    per_chromosome = np.zeros(n_chromosomes, np.int32)
    order = np.empty(n_chromosomes, np.int32)
    random_key = np.empty(size, np.float64)
    spare = np.empty(size, np.uint32)
    sort_keys = np.empty(size, np.uint32)
    low = np.empty(N_COUNTERS, np.int32)
    high = np.empty(N_COUNTERS, np.int32)
    guide = np.empty(longest + 1, np.int64)
    present = np.empty(size, np.int32)
    chromosome_at = np.empty(len(gene_at), np.int32)
    for c in range(n_chromosomes):
        chromosome_at[border[c] : border[c + 1]] = c
    ids = np.empty(n_cells * (1 + n_draws + 2 * min(n_draws, n_chromosomes)), np.int32)
    out_offsets = np.zeros(n_cells + 1, np.int64)
    at = 0
    for i in range(n_cells):
        start = offsets[i]
        n = offsets[i + 1] - start
        ids[at] = cls
        at += 1
        if n > 0:
            if drawn_places.shape[1] == 0:
                _guide(cumulated, start, n, guide)
            for d in range(n_draws):
                if drawn_places.shape[1] > 0:
                    place = drawn_places[i, d]
                else:
                    u = uniforms[i, d] if uniforms.shape[1] > 0 else uniform(stream[i], d)
                    place = places[start + _look_up(cumulated, start, n, guide, u)]
                times[place] += 1
                per_chromosome[chromosome_at[place]] += 1
            m = 0
            if chromosome_orders.shape[1] > 0:
                for k in range(chromosome_orders.shape[1]):
                    for c in range(n_chromosomes):
                        if chromosome_token[c] == chromosome_orders[i, k] and per_chromosome[c] > 0:
                            order[m] = c
                            m += 1
            else:
                for c in range(n_chromosomes):
                    if per_chromosome[c] > 0:
                        present[m] = c
                        random_key[m] = uniform(mix(stream[i]), chromosome_token[c])
                        m += 1
                sort_descending(random_key, m, order, spare, sort_keys, low, high)
                for k in range(m):
                    order[k] = present[order[k]]
            for k in range(m):
                c = order[k]
                ids[at] = chromosome_token[c]
                at += 1
                at = _write_chromosome(times, border[c], border[c + 1], gene_at, ids, at)
                ids[at] = end
                at += 1
                per_chromosome[c] = 0
        out_offsets[i + 1] = at
    return ids[:at], out_offsets


@njit(nogil=True, cache=True)
def _guide(cumulated, start, n, guide):  # type: ignore[no-untyped-def]
    """First entry whose cumulated weight exceeds k / n, for k = 0 ... n - 1 (Chen and Asau 1974)."""
    j = 0
    for k in range(n):
        while j < n - 1 and cumulated[start + j] * n <= k:
            j += 1
        guide[k] = j


@njit(nogil=True, cache=True)
def _look_up(cumulated, start, n, guide, u):  # type: ignore[no-untyped-def]
    """Number of cumulated weights not above u."""
    j = guide[min(np.int64(u * n), n - 1)]
    while j > 0 and cumulated[start + j - 1] > u:
        j -= 1
    while j < n - 1 and cumulated[start + j] <= u:
        j += 1
    return j


@njit(nogil=True, cache=True)
def _write_chromosome(times, first, last, gene_at, ids, at):  # type: ignore[no-untyped-def]
    """The drawn genes of one chromosome by start, with repetitions; clears their counts."""
    for place in range(first, last):
        for _ in range(times[place]):
            ids[at] = gene_at[place]
            at += 1
        times[place] = 0
    return at
