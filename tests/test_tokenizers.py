"""What every tokenizer promises about a cell, whatever else is in the data."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm import genes
from scfm.counts import CountBlock
from scfm.errors import CheckpointError, TokenizerError
from scfm.genes import GeneVocabulary
from scfm.tokenizers import (
    BinnedTokenizer,
    ContextOption,
    LogValues,
    ProteinTokenizer,
    QuantileBins,
    RankValueTokenizer,
    ReadDepthTokenizer,
    Tokenizer,
    Tokens,
    concatenate,
    families,
    quantile_bins,
)
from scfm.tokenizers._bins import _quantile_bins
from scfm.tokenizers._kernels import N_COUNTERS, row_sum, sort_descending

SYMBOLS = tuple(f"GENE{i}" for i in range(24))


def rank() -> RankValueTokenizer:
    names = ["<pad>", "<mask>", "<cls>", "<eos>", *SYMBOLS]
    medians = {g: 1.0 + (i % 5) / 2 for i, g in enumerate(SYMBOLS)}
    return replace(families.geneformer(names, medians, {}, 14), vocabulary=symbols(names))


def symbols(names: list[str]) -> GeneVocabulary:
    special = {n.strip("<>"): i for i, n in enumerate(names) if n.startswith("<")}
    return GeneVocabulary(tuple(names), "symbol", special)


def niche() -> RankValueTokenizer:
    means = {n: np.arange(24) % 4 - (n == "merfish") for n in ("dissociated", "merfish", "cosmx", "xenium")}
    made = families.nicheformer(list(SYMBOLS), means, 15)
    return replace(made, vocabulary=replace(made.vocabulary, namespace="symbol"))


def scgpt(**changes: Any) -> BinnedTokenizer:
    made = families.scgpt({n: i for i, n in enumerate(SYMBOLS)}, changes.pop("max_length", 9), n_bins=11)
    vocabulary = replace(made.vocabulary, rule=genes.PublishedRule())
    return replace(made, vocabulary=vocabulary, **changes)


def uce() -> ProteinTokenizer:
    made = families.uce(
        genes={g: 100 + i for i, g in enumerate(SYMBOLS)},
        chromosomes={"1": 500, "2": 501, "X": 502},
        chromosome_of={g: ("1", "2", "X")[i % 3] for i, g in enumerate(SYMBOLS)},
        start_of={g: 1000 - 7 * i for i, g in enumerate(SYMBOLS)},
        n_draws=16,
    )
    return replace(made, vocabulary=replace(made.vocabulary, rule=genes.PublishedRule()))


@cache
def tokenizers() -> dict[str, Tokenizer]:
    return {
        "geneformer": rank(),
        "nicheformer": niche(),
        "nicheformer quicksort": replace(niche(), ties="quicksort"),
        "scgpt": scgpt(),
        "scgpt random ties": scgpt(bins=QuantileBins(11, "random")),
        "scgpt top": scgpt(selection="top"),
        "scgpt with zeros": scgpt(zeros="measured", max_length=None),
        "scbert": families.scbert(SYMBOLS),
        "scmulan": families.scmulan(["<E>", *SYMBOLS[:16], "<PCT>"], SYMBOLS[:16], SYMBOLS, {}),
        "logs": scgpt(bins=LogValues(), max_length=None),
        "scfoundation": families.scfoundation(SYMBOLS),
        "uce": uce(),
    }


CONTEXT: Mapping[str, Mapping[str, Any]] = {
    "nicheformer": {"species": "human", "assay": "MERFISH", "modality": "spatial"},
    "nicheformer quicksort": {"species": "mouse", "assay": "10x 3' v3", "modality": "dissociated"},
    "scfoundation": {"target_fold": 2.5},
}
NAMES = (*SYMBOLS[::-1], "OTHER1", "OTHER2")
every_tokenizer = pytest.mark.parametrize("kind", list(tokenizers()))


def block(matrix: Any, dtype: Any = np.float32) -> CountBlock:
    csr = sp.csr_matrix(matrix)
    return CountBlock(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data.astype(dtype), csr.shape[1])


def run(kind: str, counts: Any, names: Any = NAMES, seed: int = 0, **context: Any) -> Tokens:
    tokenizer = tokenizers()[kind]
    found = genes.match(list(names), tokenizer.vocabulary, policy="published")
    data = counts if isinstance(counts, CountBlock) else block(counts)
    return tokenizer.tokenize_block(data, found, context=CONTEXT.get(kind, {}) | context, seed=seed)


def assert_equal(a: Tokens, b: Tokens) -> None:
    np.testing.assert_array_equal(a.offsets, b.offsets)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.values is None) == (b.values is None)
    if a.values is not None:
        np.testing.assert_array_equal(a.values, b.values)
    assert a.per_cell.keys() == b.per_cell.keys()
    for name, array in a.per_cell.items():
        np.testing.assert_array_equal(array, b.per_cell[name])


@st.composite
def count_matrices(draw: Any) -> np.ndarray:
    """Few cells of whole, or of fractional counts, with many ties, often empty."""
    n = draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = generator.geometric(draw(st.sampled_from([0.2, 0.6, 0.9])), (n, len(NAMES))).astype(np.float64)
    counts[generator.random(counts.shape) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0
    if draw(st.booleans()):
        counts *= np.float32(draw(st.sampled_from([0.1, 1 / 3, 0.75])))
    return np.float32(counts)


few = settings(max_examples=25, deadline=None)


# The per-cell contract


@every_tokenizer
@few
@given(counts=count_matrices(), data=st.data())
def test_tokens_do_not_depend_on_chunks_or_row_order(kind: str, counts: np.ndarray, data: Any) -> None:
    whole = run(kind, counts)
    assert_equal(concatenate([run(kind, counts[i : i + 1]) for i in range(len(counts))]), whole)
    order = np.array(data.draw(st.permutations(range(len(counts)))))
    assert_equal(run(kind, counts[order]), whole[order])


@every_tokenizer
@few
@given(counts=count_matrices(), data=st.data())
def test_tokens_do_not_depend_on_column_order(kind: str, counts: np.ndarray, data: Any) -> None:
    order = data.draw(st.permutations(range(len(NAMES))))
    assert_equal(run(kind, counts[:, order], np.array(NAMES)[order]), run(kind, counts))


@every_tokenizer
@few
@given(counts=count_matrices())
def test_tokens_do_not_depend_on_absent_genes(kind: str, counts: np.ndarray) -> None:
    expressed = counts.any(axis=0) | np.isin(NAMES, ["OTHER1", SYMBOLS[0]])
    if kind == "scgpt with zeros":
        expressed |= np.isin(NAMES, SYMBOLS)
    assert_equal(run(kind, counts[:, expressed], np.array(NAMES)[expressed]), run(kind, counts))
    wider = np.hstack([np.zeros((len(counts), 3), np.float32), counts])
    assert_equal(run(kind, wider, ["A", "B", "C", *NAMES]), run(kind, counts))


@every_tokenizer
@few
@given(counts=count_matrices(), seed=st.integers(0, 2**32 - 1))
def test_tokens_do_not_depend_on_how_the_matrix_is_stored(kind: str, counts: np.ndarray, seed: int) -> None:
    n, columns = counts.shape
    generator = np.random.default_rng(seed)
    rows, indices, data = [], [], []
    for i in range(n):
        order = generator.permutation(columns)
        half = np.float32(np.floor(counts[i] / 2)) * (counts[i] == np.floor(counts[i]))
        rows.append(2 * columns)
        indices.append(np.concatenate([order, order[::-1]]))
        data.append(np.concatenate([(counts[i] - half)[order], half[order[::-1]]]))
    stored = CountBlock(np.cumsum([0, *rows]), np.concatenate(indices).astype(np.int32), np.concatenate(data), columns)
    assert_equal(run(kind, stored), run(kind, counts))
    assert_equal(run(kind, block(counts, np.float64)), run(kind, counts))


@every_tokenizer
@few
@given(counts=count_matrices())
def test_columns_of_one_gene_are_summed(kind: str, counts: np.ndarray) -> None:
    tokenizer = tokenizers()[kind]
    whole = np.ceil(counts)
    first = np.floor(whole / 3)
    twice = np.hstack([first, whole - first])
    found = genes.match(list(NAMES), tokenizer.vocabulary, policy="published")
    doubled = replace(found, columns=np.tile(found.columns, 2), duplicates="sum")
    ours = tokenizer.tokenize_block(block(twice), doubled, context=CONTEXT.get(kind, {}))
    assert_equal(ours, tokenizer.tokenize_block(block(whole), found, context=CONTEXT.get(kind, {})))


@every_tokenizer
def test_a_cell_without_genes_has_no_gene_token_and_says_so(kind: str) -> None:
    counts = np.zeros((3, len(NAMES)), np.float32)
    counts[1, -1] = 7
    tokens = run(kind, counts)
    np.testing.assert_array_equal(tokens.per_cell["n_detected"], 0)
    np.testing.assert_array_equal(tokens.per_cell["total"], [0, 7, 0])
    np.testing.assert_array_equal(tokens.per_cell["total_matched"], 0)
    vocabulary = tokenizers()[kind].vocabulary
    if getattr(tokenizers()[kind], "zeros", "never") == "never":
        assert not vocabulary.is_gene[tokens.ids].any()
    if tokens.values is not None:
        assert np.isfinite(tokens.values).all()


@every_tokenizer
@few
@given(counts=count_matrices())
def test_statistics_count_genes_and_cuts(kind: str, counts: np.ndarray) -> None:
    tokens = run(kind, counts)
    tokenizer = tokenizers()[kind]
    names = np.array(NAMES)
    is_word = np.isin(names, SYMBOLS[:16] if kind == "scmulan" else SYMBOLS)
    np.testing.assert_array_equal(tokens.per_cell["n_detected"], (counts[:, is_word] > 0).sum(axis=1))
    np.testing.assert_allclose(tokens.per_cell["total"], counts.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(
        tokens.per_cell["total_matched"], counts[:, np.isin(names, SYMBOLS)].sum(axis=1), rtol=1e-6
    )
    if not isinstance(tokenizer, ProteinTokenizer) and getattr(tokenizer, "zeros", "never") == "never":
        n_genes = np.array([tokenizer.vocabulary.is_gene[t.ids].sum() for t in tokens])
        np.testing.assert_array_equal(n_genes + tokens.per_cell["n_dropped"], tokens.per_cell["n_detected"])


@every_tokenizer
def test_threads_give_the_same_tokens(kind: str) -> None:
    generator = np.random.default_rng(0)
    matrices = [generator.poisson(1.0, (40, len(NAMES))).astype(np.float32) for _ in range(12)]
    alone = [run(kind, m) for m in matrices]
    with ThreadPoolExecutor(4) as pool:
        for ours, expected in zip(pool.map(lambda m: run(kind, m), matrices), alone, strict=True):
            assert_equal(ours, expected)


# Randomness


@pytest.mark.parametrize("kind", ["scgpt", "scgpt random ties", "uce"])
def test_draws_depend_on_seed_and_counts_only(kind: str) -> None:
    counts = np.tile(np.random.default_rng(1).poisson(2.0, (1, len(NAMES))), (2, 1)).astype(np.float32)
    tokens = run(kind, counts, seed=3)
    np.testing.assert_array_equal(tokens[0].ids, tokens[1].ids)
    others = [run(kind, counts, seed=s) for s in range(4, 10)]
    assert any(not np.array_equal(tokens.ids, o.ids) or not np.array_equal(tokens.values, o.values) for o in others)
    changed = counts[:1].copy()
    changed[0, 0] += 1
    assert any(not np.array_equal(run(kind, changed, seed=s).ids, run(kind, counts[:1], seed=s).ids) for s in range(9))


def test_a_sampled_cut_keeps_every_gene_equally_often() -> None:
    counts = np.arange(1, len(NAMES) + 1, dtype=np.float32)[None] * np.isin(NAMES, SYMBOLS)
    kept = np.concatenate([run("scgpt", counts, seed=s).ids for s in range(2000)])
    times = np.bincount(kept, minlength=len(SYMBOLS))[: len(SYMBOLS)]
    share = 8 / len(SYMBOLS)
    assert np.abs(times / 2000 - share).max() < 5 * np.sqrt(share * (1 - share) / 2000)


def test_a_top_cut_keeps_the_highest_counts() -> None:
    counts = np.zeros((1, len(NAMES)), np.float32)
    counts[0, :20] = np.arange(20, 0, -1)
    kept = run("scgpt top", counts)
    assert set(kept.vocabulary.display(kept.ids[1:])) == set(NAMES[:8])


def test_random_ties_fill_every_bin_of_a_tied_cell() -> None:
    counts = np.ones((1, len(NAMES)), np.float32)
    bins = np.concatenate([run("scgpt random ties", counts, seed=s).values[1:] for s in range(200)])
    assert set(bins) == set(range(1, 11))
    assert set(run("scgpt", counts).values[1:]) == {10}


def test_genes_are_drawn_by_their_weight() -> None:
    counts = np.zeros((1, len(NAMES)), np.float32)
    counts[0, :3] = [1, 3, 7]
    weight = np.log1p([1, 3, 7]) / np.log1p([1, 3, 7]).sum()
    tokens = concatenate([run("uce", counts, seed=s) for s in range(500)])
    ids = [tokens.vocabulary.index[n] for n in NAMES[:3]]
    times = np.array([(tokens.ids == i).sum() for i in ids])
    assert times.sum() == 500 * 16
    assert np.abs(times / times.sum() - weight).max() < 5 * np.sqrt(0.25 / times.sum())


def test_sentences_run_along_the_chromosomes() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (20, len(NAMES))).astype(np.float32)
    tokenizer = uce()
    cls, end = (tokenizer.vocabulary.specials[r] for r in ("cls", "chromosome_end"))
    orders = set()
    for cell in run("uce", counts):
        assert cell.ids[0] == cls
        ends = np.flatnonzero(cell.ids == end)
        blocks = np.split(cell.ids[1:], ends)[:-1]
        orders.add(tuple(b[0] for b in blocks))
        for b in blocks:
            here = b[1:-1]
            assert len(here)
            assert (tokenizer.chromosome[here] == b[0]).all()
            assert (np.diff(tokenizer.start[here]) >= 0).all()
        assert cell.n_tokens == 1 + 16 + 2 * len(blocks)
    assert len(orders) > 3


# The maths


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 47, 48, 49, 50, 300, 3000]),
    seed=st.integers(0, 2**32 - 1),
    make=st.sampled_from(["ties", "normal", "wide", "equal", "close", "signs"]),
)
def test_sort_equals_a_stable_argsort(n: int, seed: int, make: str) -> None:
    g = np.random.default_rng(seed)
    values = {
        "ties": lambda: g.integers(1, 6, n) / 3,
        "normal": lambda: g.normal(size=n),
        "wide": lambda: np.exp(g.normal(size=n) * 100),
        "equal": lambda: np.full(n, 0.3),
        "close": lambda: 1 + g.integers(0, 9, n) * 2.0**-52,
        "signs": lambda: g.integers(1, 4, n) * g.choice([-1.0, 1.0], n),
    }[make]()
    scratch = [np.empty(n, np.int32), np.empty(n, np.uint32), np.empty(n, np.uint32)]
    sort_descending(values, n, *scratch, np.empty(N_COUNTERS, np.int32), np.empty(N_COUNTERS, np.int32))
    np.testing.assert_array_equal(scratch[0], np.argsort(-values, kind="stable"))


@few
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 0.1, 1 / 3, 1e5]))
def test_totals_of_fractional_counts_do_not_depend_on_order(seed: int, scale: float) -> None:
    g = np.random.default_rng(seed)
    values = g.gamma(0.3, size=501) * scale
    total = row_sum(values, 0, len(values))
    assert row_sum(g.permutation(values), 0, len(values)) == total
    np.testing.assert_allclose(total, values.sum(), rtol=1e-12, atol=len(values) * 2.0**-53)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
    n_bins=st.sampled_from([3, 11, 51]),
    top=st.sampled_from([1, 2, 8, 900, 20_000]),
    fraction=st.sampled_from([1.0, 0.1, 1 / 3]),
)
def test_bins_follow_numpy_quantiles_by_histogram_and_by_sort(
    n: int, seed: int, n_bins: int, top: int, fraction: float
) -> None:
    g = np.random.default_rng(seed)
    values = (g.integers(1, top + 1, n) * fraction).astype(np.float32)
    draws = g.random(n)
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
    ours, our_edges = quantile_bins(values, n_bins)
    np.testing.assert_array_equal(our_edges, edges)
    np.testing.assert_array_equal(ours, left)
    random, _ = quantile_bins(values, n_bins, draws)
    np.testing.assert_array_equal(random, np.ceil(draws * (right - left) + left))
    for limit in (0, 1 << 14):
        again, _ = _quantile_bins(
            np.array([0, n]),
            values.astype(np.float64),
            np.empty(0, np.int32),
            np.linspace(0, 1, n_bins - 1),
            np.empty(0, np.uint64),
            np.empty((1, 0)),
            limit,
        )
        np.testing.assert_array_equal(again, left)


def test_levels_are_exact_where_counts_per_10_000_are() -> None:
    levels = {1: 1, 3: 2, 7: 3, 15: 4, 31: 5}
    wanted = [(c, c * 10_000 // k, level) for k, level in levels.items() for c in range(1, 400) if c * 10_000 % k == 0]
    counts = np.zeros((len(wanted), len(NAMES)), np.float32)
    for row, (count, total, _) in zip(counts, wanted, strict=True):
        row[0], row[1] = count, total - count
    found = run("scbert", counts).values.reshape(len(wanted), -1)[:, SYMBOLS.index(NAMES[0])]
    np.testing.assert_array_equal(found, [level for _, _, level in wanted])


def test_a_subset_of_genes_with_the_true_total_ranks_as_the_whole_cell_does() -> None:
    counts = np.random.default_rng(2).poisson(2.0, (30, len(NAMES))).astype(np.float32)
    tokenizer = replace(rank(), max_length=100)
    found = genes.match(list(NAMES), tokenizer.vocabulary, policy="published")
    some = np.arange(len(NAMES)) % 2 == 0
    whole = tokenizer.ranking(block(counts), found)
    part = replace(block(counts[:, some]), totals=counts.sum(axis=1).astype(np.float64))
    ours = tokenizer.ranking(part, replace(found, columns=found.columns[some]))
    for a, b in zip(ours, whole, strict=True):
        here = np.isin(b.ids, found.columns[some])
        np.testing.assert_array_equal(a.ids, b.ids[here])
        np.testing.assert_array_equal(a.channels["score"], b.channels["score"][here])
    np.testing.assert_array_equal(ours.per_cell["total"], counts.sum(axis=1))


def test_log_values_with_the_true_total_are_those_of_the_whole_cell() -> None:
    counts = np.random.default_rng(2).poisson(2.0, (5, len(NAMES))).astype(np.float32)
    part = replace(block(counts[:, :4]), totals=np.full(5, 500.0))
    for kind in ("logs", "scfoundation"):
        tokens = run(kind, part, NAMES[:4])
        genes_only = tokens.values[tokens.vocabulary.is_gene[tokens.ids]]
        expected = np.log1p(counts[:, 3::-1] * 20)
        np.testing.assert_allclose(genes_only, expected[expected > 0], rtol=1e-6)


@every_tokenizer
def test_totals_that_the_matrix_already_sums_up_to_change_nothing(kind: str) -> None:
    counts = np.random.default_rng(4).poisson(2.0, (6, len(NAMES))).astype(np.float32)
    told = replace(block(counts), totals=counts.sum(axis=1).astype(np.float64))
    plain, ours = run(kind, counts), run(kind, told)
    np.testing.assert_array_equal(ours.ids, plain.ids)
    np.testing.assert_array_equal(ours.offsets, plain.offsets)
    if plain.values is not None:
        np.testing.assert_array_equal(ours.values, plain.values)


# Context


def test_context_selects_tokens_and_scale() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (4, len(NAMES))).astype(np.float32)
    assays = ["MERFISH", "10x 3' v3", "MERFISH", "Xenium"]
    tokens = run("nicheformer", counts, assay=assays)
    front = np.array([t.ids[:3] for t in tokens])
    np.testing.assert_array_equal(front, [[5, families.NICHEFORMER_ASSAYS[a], 4] for a in assays])
    np.testing.assert_array_equal(tokens[0].ids, run("nicheformer", counts[:1], assay="MERFISH").ids)


@pytest.mark.parametrize(
    ("kind", "context", "words"),
    [
        ("nicheformer", {"assay": "Visium"}, ["'Visium'", "'MERFISH'"]),
        ("nicheformer", {"assay": ["MERFISH"]}, ["expected one value or one per cell (2)"]),
        ("nicheformer", {"assays": "MERFISH"}, ["'assays'", "species, assay, modality"]),
        ("scgpt", {"assay": "MERFISH"}, ["it takes none"]),
        ("scfoundation", {"target_depth": 1e4}, ["target_depth", "target_fold", "contradict"]),
        ("scfoundation", {"target_fold": "deep"}, ["'target_fold'", "number", "deep"]),
        ("scfoundation", {"target_fold": 0}, ["above 0"]),
    ],
)
def test_wrong_context_is_answered_with_what_is_valid(kind: str, context: Any, words: list[str]) -> None:
    with pytest.raises(TokenizerError) as error:
        run(kind, np.ones((2, len(NAMES))), **context)
    assert all(w in str(error.value) for w in words)


def test_missing_context_is_asked_for_by_name() -> None:
    tokenizer = tokenizers()["nicheformer"]
    found = genes.match(list(NAMES), tokenizer.vocabulary, policy="published")
    with pytest.raises(TokenizerError, match=r"needs context 'assay'.*'MERFISH'"):
        tokenizer.tokenize_block(block(np.ones((1, 26))), found, context={"species": "human"})


def test_depth_can_be_aimed_at_in_three_ways() -> None:
    counts = np.zeros((1, len(NAMES)), np.float32)
    counts[0, :2] = [900, 100]
    tokenizer = tokenizers()["scfoundation"]
    found = genes.match(list(NAMES), tokenizer.vocabulary, policy="published")
    for context, aim in (({}, 4), ({"target_depth": 100}, 2), ({"target_fold": 10}, 4), ({"target_log_add": 0.5}, 3.5)):
        tokens = tokenizer.tokenize_block(block(counts), found, context=context)
        np.testing.assert_allclose(tokens.values[-2:], [aim, 3], rtol=1e-6)


# Mistakes


@every_tokenizer
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_counts_are_refused(kind: str, value: float) -> None:
    counts = np.ones((1, len(NAMES)))
    counts[0, 0] = value
    with pytest.raises(TokenizerError, match="finite and not negative"):
        run(kind, counts)


@every_tokenizer
def test_a_match_for_other_columns_is_refused(kind: str) -> None:
    with pytest.raises(TokenizerError, match="25 columns"):
        run(kind, np.ones((1, 25)))


def test_all_genes_cannot_be_listed_where_duplicates_are_kept_apart() -> None:
    tokenizer = tokenizers()["scbert"]
    found = replace(genes.match(list(NAMES), tokenizer.vocabulary, policy="published"), duplicates="keep")
    with pytest.raises(TokenizerError, match="one place per gene"):
        tokenizer.tokenize_block(block(np.ones((1, len(NAMES)))), found)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RankValueTokenizer(symbols(["<pad>", "A"]), np.ones(3), 5),
        lambda: RankValueTokenizer(symbols(["<pad>", "A"]), np.array([1.0, 0.0]), 5),
        lambda: RankValueTokenizer(symbols(["<pad>", "A"]), np.array([1.0, np.nan]), 5),
        lambda: RankValueTokenizer(symbols(["<pad>", "A"]), np.ones(2), 5, first=("cls",)),
        lambda: RankValueTokenizer(symbols(["<cls>", "A"]), np.ones(2), 1, first=("cls",)),
        lambda: RankValueTokenizer(symbols(["<pad>", "A"]), np.ones((2, 2)), 5),
        lambda: BinnedTokenizer(symbols(["<cls>", "A"]), max_length=1, first={"cls": 0.0}),
        lambda: BinnedTokenizer(symbols(["<cls>", "A"]), last={"eos": 0.0}),
        lambda: QuantileBins(2),
        lambda: QuantileBins(ties="lowest"),  # type: ignore[arg-type]
        lambda: ReadDepthTokenizer(symbols(["A"])),
        lambda: replace(families.scfoundation(["A"]), target_depth=0),
        lambda: replace(uce(), n_draws=0),
        lambda: replace(uce(), start=np.zeros(3)),
        lambda: families.geneformer(["<pad>", "A"], {}, {}, 5),
        lambda: families.by_id({"A": 0, "B": 2}),
        lambda: RankValueTokenizer.published("geneformer-v3"),  # type: ignore[arg-type]
    ],
)
def test_impossible_constants_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(TokenizerError):
        make()


@pytest.mark.parametrize(
    ("kind", "draws"),
    [
        ("scgpt random ties", {"ties": np.zeros(5)}),
        ("scgpt random ties", {"ties": np.zeros((1, 5))}),
        ("scgpt", {"order": np.zeros((1, 3), int)}),
        ("scgpt", {"order": np.full((1, 24), 99)}),
        ("uce", {"uniform": np.zeros((1, 3))}),
        ("uce", {"genes": np.zeros((1, 16), int)}),
    ],
)
def test_recorded_draws_that_do_not_fit_are_refused(kind: str, draws: Any) -> None:
    tokenizer = tokenizers()[kind]
    found = genes.match(list(NAMES), tokenizer.vocabulary, policy="published")
    with pytest.raises(TokenizerError, match="draws"):
        tokenizer.tokenize_block(block(np.ones((1, len(NAMES)))), found, draws=draws)


# On disk, in print, on AnnData


@every_tokenizer
def test_a_saved_tokenizer_comes_back_equal(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers()[kind]
    tokenizer.save(tmp_path)
    for again in (Tokenizer.load(tmp_path), type(tokenizer).load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert type(again) is type(tokenizer)
        assert again == tokenizer
        assert hash(again) == hash(tokenizer)
    counts = np.random.default_rng(0).poisson(2.0, (5, len(NAMES))).astype(np.float32)
    found = genes.match(list(NAMES), again.vocabulary, policy="published")
    assert_equal(again.tokenize_block(block(counts), found, context=CONTEXT.get(kind, {})), run(kind, counts))


def test_tokenizers_with_other_constants_are_not_equal() -> None:
    assert rank() == rank()
    assert rank() != replace(rank(), max_length=15)
    assert rank() != replace(rank(), scale=rank().scale * 2)
    assert scgpt() != scgpt(bins=QuantileBins(11, "random"))
    assert scgpt() != rank()


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json and vocabulary\.json missing"):
        Tokenizer.load(tmp_path)
    rank().save(tmp_path)
    with pytest.raises(CheckpointError, match="'RankValueTokenizer', expected BinnedTokenizer"):
        BinnedTokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"max_length"', '"longest"'))
    with pytest.raises(CheckpointError, match="unknown constants longest"):
        Tokenizer.load(tmp_path)


@every_tokenizer
def test_a_tokenizer_prints_in_one_short_line(kind: str) -> None:
    text = repr(tokenizers()[kind])
    assert type(tokenizers()[kind]).__name__ in text
    assert len(text) < 120
    assert "\n" not in text


def test_an_anndata_is_tokenized_by_name_and_left_alone(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (50, len(NAMES))).astype(np.float32)
    obs = pd.DataFrame({"tech": ["MERFISH", "Xenium"] * 25}, index=[f"c{i}" for i in range(50)])
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(NAMES)))
    before = adata.copy()
    again = adata.copy()
    tokenizer = tokenizers()["nicheformer"]
    context = {"species": "human", "modality": "spatial"}
    tokens = tokenizer(adata, gene_matching="published", context=context | {"assay": "tech"}, block_size=7)
    assert_equal(tokens, run("nicheformer", counts, assay=obs["tech"]))
    again.write_h5ad(tmp_path / "cells.h5ad")
    from_file = tokenizer(tmp_path / "cells.h5ad", gene_matching="published", context=context | {"assay": "tech"})
    assert_equal(from_file, tokens)
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    with pytest.raises(TokenizerError, match=r"'assay' = 'Visium' is neither a column of obs \('tech'\) nor"):
        tokenizer(adata, context=context | {"assay": "Visium"})


@pytest.mark.parametrize(
    ("name", "length", "limit", "spots"),
    [
        (
            "geneformer-v1",
            25426,
            2048,
            {"ENSG00000167286": (11987, 7.862317516212239), "ENSGR0000265658": (25425, None)},
        ),
        (
            "geneformer-v2",
            20275,
            4096,
            {"ENSG00000167286": (11858, 7.805365336099854), "ENSG00000293553": (20274, None)},
        ),
    ],
)
def test_the_real_geneformer_tokenizers_ship_with_the_package(
    name: Any, length: int, limit: int, spots: dict[str, tuple[int, float | None]]
) -> None:
    tokenizer = RankValueTokenizer.published(name)
    assert len(tokenizer.vocabulary) == length
    assert tokenizer.max_length == limit
    for gene, (token, median) in spots.items():
        assert tokenizer.vocabulary.index[gene] == token
        assert median is None or tokenizer.scale[0, token] == median
    cells = ad.AnnData(np.array([[5.0, 2.0, 1.0]], np.float32), var=pd.DataFrame(index=["CD3D", "LYZ", "MS4A1"]))
    shown = tokenizer(cells)
    assert shown.per_cell["n_detected"][0] == 3
    first = next(i for i in shown.ids if shown.vocabulary.is_gene[i])
    assert shown.vocabulary.names[first] == "ENSG00000167286"


def test_a_context_option_is_a_list_of_values_or_a_number() -> None:
    assert ContextOption({}).is_number
    assert list(ContextOption({"a": 1}).tokens(np.array(["a", "a"]))) == [1, 1]
