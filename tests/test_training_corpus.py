"""Corpora, stores and batches: the same cells whichever way they come, and no cell on both sides of a split."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import cells, corpus_folder, room_for, symbols

from scfm.errors import ConfigError, CountsError, GeneMatchError, OutputError
from scfm.genes import GeneVocabulary
from scfm.tokenizers import BagTokenizer, BinnedTokenizer, RankValueTokenizer
from scfm.training import Corpus, TokenStore
from scfm.training._cells import LiveCells
from scfm.training._draws import CellDraws, ranks_within
from scfm.training._encode import Encoder
from scfm.training._index import CellIndex, Column, check_leak, split
from scfm.training._sampler import BatchPlan, Sampling, cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus_folder(tmp_path_factory.mktemp("corpus"), n_files=3, n_cells=50)


def tokenizer(kind: str = "rank"):
    names = (*symbols(), "<cls>")
    vocabulary = GeneVocabulary(names, "symbol", {"cls": len(names) - 1})
    return {
        "rank": lambda: RankValueTokenizer(vocabulary, np.ones(len(names)), 40, first=("cls",)),
        "binned": lambda: BinnedTokenizer(vocabulary, max_length=20, first={"cls": 0.0}),
        "bag": lambda: BagTokenizer(vocabulary),
    }[kind]()


def assert_same(a, b):
    assert np.array_equal(a.offsets, b.offsets) and np.array_equal(a.ids, b.ids)
    assert (a.values is None) == (b.values is None)
    assert a.values is None or np.array_equal(a.values, b.values, equal_nan=True)
    assert a.ids.dtype == b.ids.dtype and a.per_cell.keys() == b.per_cell.keys()
    for name in a.per_cell:
        np.testing.assert_array_equal(a.per_cell[name], b.per_cell[name])
    assert a.parts.keys() == b.parts.keys()
    for name in a.parts:
        assert_same(a.parts[name], b.parts[name])


# corpora


def test_files_folders_patterns_and_objects_are_a_corpus(folder):
    whole = Corpus.open(folder)
    assert (len(whole), whole.n_cells) == (3, 150)
    assert [f.name for f in Corpus.open(str(folder / "*1.h5ad")).files] == ["study1"]
    assert Corpus.open([folder / "study0.h5ad", cells(5)]).n_cells == 55
    assert Corpus.open(cells(5)).files[0].path is None


def test_a_donor_is_named_with_its_data_set(folder):
    donors = {d for file in Corpus.open(folder).files for d in file.donor.names}
    assert donors == {f"study{i}/d{j}" for i in range(3) for j in range(2)}


def test_each_file_knows_the_genes_it_measured(folder):
    live = LiveCells(Corpus.open(folder), Encoder(tokenizer()))
    for i, file in enumerate(live.corpus.files):
        names = ad.read_h5ad(file.path).var_names
        assert set(np.array(tokenizer().vocabulary.names)[live.index.measured[i]]) == set(names)


def test_a_corpus_is_never_written_to(folder):
    adata = cells(30)
    before = adata.copy()
    LiveCells(Corpus.open(adata), Encoder(tokenizer())).read(np.arange(30))
    assert (adata.X != before.X).nnz == 0 and adata.obs.equals(before.obs) and not adata.uns


@pytest.mark.parametrize(
    ("sources", "options", "kind", "message"),
    [
        (lambda f: [], {}, ConfigError, "the corpus is empty"),
        (lambda f: str(f / "*.zarr"), {}, ConfigError, "no file matches"),
        (lambda f: f / "nowhere.h5ad", {}, ConfigError, "there is no file or folder"),
        (lambda f: [f / "study0.h5ad", f], {}, ConfigError, "in the corpus twice"),
        (lambda f: f, {"label_key": "celltype"}, ConfigError, "no file of the corpus has a column 'celltype'"),
        (lambda f: cells(0), {}, ConfigError, "hold no cells"),
    ],
)
def test_what_is_no_corpus_is_told(folder, sources, options, kind, message):
    with pytest.raises(kind, match=message):
        Corpus.open(sources(folder), **options)


def test_a_file_without_counts_or_genes_is_named(folder, tmp_path):
    bad = cells(20)
    bad.X = bad.X.toarray() * -1.5
    bad.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(CountsError, match="scaled of the corpus"):
        LiveCells(Corpus.open([folder, tmp_path / "scaled.h5ad"]), Encoder(tokenizer()))
    with pytest.raises(GeneMatchError, match="object_3 of the corpus"):
        LiveCells(Corpus.open([folder, cells(20, names=[f"x{i}" for i in range(60)])]), Encoder(tokenizer()))


# collections of annbatch


def collection(folder, parts):
    """The layout that annbatch writes: AnnData stores in one zarr group of format 3 that says what it is."""
    zarr = pytest.importorskip("zarr", minversion="3")
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    for i, part in enumerate(parts):
        ad.io.write_elem(group, f"dataset_{i}", part)
    group.update_attributes({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    return folder


def mixed(n: int = 60) -> list[ad.AnnData]:
    adata = cells(n)
    order = np.random.default_rng(0).permutation(n)
    return [adata[np.sort(rows)].copy() for rows in np.array_split(order, 12)]


def assert_reads_like(corpus: Corpus, parts: list[ad.AnnData]) -> None:
    ours, theirs = (LiveCells(c, Encoder(tokenizer())) for c in (corpus, Corpus.open(parts)))
    assert_same(ours.read(np.arange(corpus.n_cells)), theirs.read(np.arange(corpus.n_cells)))
    np.testing.assert_array_equal(ours.index.measured, theirs.index.measured)


def test_a_collection_of_annbatch_is_read_part_by_part(tmp_path):
    parts = mixed()
    corpus = Corpus.open(collection(tmp_path / "all.zarr", parts))
    assert [f.path.name for f in corpus.files] == [f"dataset_{i}" for i in range(12)]
    assert_reads_like(corpus, parts)


def test_parts_of_a_collection_share_their_donors(tmp_path):
    corpus = Corpus.open([collection(tmp_path / "all.zarr", mixed()), cells(20, seed=3)])
    donors = {d for file in corpus.files for d in file.donor.names}
    assert donors == {"all/d0", "all/d1", "object_12/d0", "object_12/d1"}


def test_a_collection_without_parts_is_told(tmp_path):
    with pytest.raises(ConfigError, match="holds no dataset_0"):
        Corpus.open(collection(tmp_path / "all.zarr", []))


def test_a_collection_that_annbatch_wrote_is_read(tmp_path):
    annbatch = pytest.importorskip("annbatch", reason="annbatch, which needs Python 3.12, is not installed")
    adata = cells(90)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    made = annbatch.DatasetCollection(str(tmp_path / "all.zarr"))
    made.add_adatas([str(tmp_path / "cells.h5ad")], shuffle_chunk_size=10, dataset_size=30, n_obs_per_chunk=8)
    corpus = Corpus.open(tmp_path / "all.zarr")
    assert len(corpus) == 3
    parts = [ad.io.read_zarr(tmp_path / "all.zarr" / f"dataset_{i}") for i in range(3)]
    assert sorted(name for part in parts for name in part.obs_names) == sorted(adata.obs_names)
    assert_reads_like(corpus, parts)


# the store


@pytest.mark.parametrize("kind", ["rank", "binned", "bag"])
@pytest.mark.parametrize("keep", ["tokens", "counts"])
def test_a_store_holds_what_the_files_give(folder, tmp_path, kind, keep):
    corpus = Corpus.open(folder, label_key="kind")
    live = LiveCells(corpus, Encoder(tokenizer(kind), keep), block_rows=16)
    store = TokenStore.build(corpus, tokenizer(kind), tmp_path / "store", keep=keep, part_cells=17, progress=False)
    some = np.random.default_rng(0).permutation(150)[:40]
    assert_same(store.read(some), live.read(some))
    assert_same(store.read(np.arange(150)), live.read(np.arange(150)))
    for name in ("file", "row", "length", "n_genes", "fingerprint", "measured"):
        np.testing.assert_array_equal(getattr(store.index, name), getattr(live.index, name))
    for name in ("donor", "dataset", "label"):
        assert store.index.column(name).names == live.index.column(name).names
        np.testing.assert_array_equal(store.index.column(name).codes, live.index.column(name).codes)
    assert_same(pickle.loads(pickle.dumps(store)).read(some), live.read(some))


@pytest.mark.parametrize("kind", ["rank", "binned", "bag"])
def test_tokens_of_kept_counts_are_those_of_the_matrix(folder, kind):
    corpus = Corpus.open(folder)
    tokens, counts = (LiveCells(corpus, Encoder(tokenizer(kind), keep)) for keep in ("tokens", "counts"))
    for file in range(3):
        mine = np.flatnonzero(tokens.index.file == file)
        again = counts.encoder.tokenize(counts.read(mine), counts.index.measured[file])
        direct = tokens.read(mine)
        assert np.array_equal(again.ids, direct.ids) and np.array_equal(again.offsets, direct.offsets)
        assert direct.values is None or np.array_equal(again.values, direct.values)
        np.testing.assert_allclose(again.per_cell["total"], direct.per_cell["total"])


def test_processes_write_the_same_store(folder, tmp_path):
    stores = [
        TokenStore.build(
            Corpus.open(folder), tokenizer(), tmp_path / f"{n}", n_workers=n, part_cells=20, progress=False
        )
        for n in (1, 2)
    ]
    assert_same(stores[0].read(np.arange(150)), stores[1].read(np.arange(150)))
    assert stores[0].manifest == stores[1].manifest


def test_the_manifest_tells_files_hashes_cells_genes_and_coverage(folder, tmp_path):
    store = TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", progress=False)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert (manifest["cells"], manifest["keep"], len(manifest["vocabulary"])) == (150, "tokens", 64)
    assert manifest["tokens"] == store.n_tokens
    for file, source in zip(manifest["files"], manifest["sources"], strict=True):
        assert (file["cells"], file["genes"], file["empty_cells"]) == (50, 54, 0)
        assert file["coverage"] == pytest.approx(1.0) and len(source["sha256"]) == 64


def test_an_interrupted_store_goes_on(folder, tmp_path):
    options = {"part_cells": 20, "progress": False}
    store = TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", **options)
    # what an interruption leaves: no manifest, some parts, and one that was being written
    (store.folder / "manifest.json").unlink()
    parts = sorted((store.folder / "parts").iterdir())
    for part in parts[4:]:
        shutil.rmtree(part)
    shutil.copytree(parts[0], store.folder / "parts" / f"{parts[4].name}.tmp")
    before = {p: (p / "ids.npy").stat().st_mtime_ns for p in parts[:4]}
    with pytest.raises(ConfigError, match="goes on where it stopped"):
        TokenStore(store.folder)
    again = TokenStore.build(Corpus.open(folder), tokenizer(), store.folder, **options)
    assert {p: (p / "ids.npy").stat().st_mtime_ns for p in parts[:4]} == before
    assert sorted((store.folder / "parts").iterdir()) == parts
    assert_same(again.read(np.arange(150)), LiveCells(Corpus.open(folder), Encoder(tokenizer())).read(np.arange(150)))


def test_a_store_of_something_else_is_left_alone(folder, tmp_path):
    store = TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", progress=False)
    with pytest.raises(ConfigError, match="differs in tokenizer"):
        TokenStore.build(Corpus.open(folder), replace(tokenizer(), max_length=30), store.folder, progress=False)
    with pytest.raises(ConfigError, match="differs in sources"):
        TokenStore.build(Corpus.open(folder / "study0.h5ad"), tokenizer(), store.folder, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.csv").write_text("1")
    with pytest.raises(ConfigError, match="no token store and not empty"):
        TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "mine", progress=False)
    assert_same(TokenStore(store.folder).read(np.arange(5)), store.read(np.arange(5)))


def test_a_store_of_another_vocabulary_is_refused(folder, tmp_path):
    store = TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", progress=False)
    names = tuple(reversed(tokenizer().vocabulary.names))
    other = RankValueTokenizer(GeneVocabulary(names, "symbol", {"cls": 0}), np.ones(len(names)), 40, first=("cls",))
    with pytest.raises(ConfigError, match="is of another vocabulary"):
        store.check_fits(other, "tokens")
    with pytest.raises(ConfigError, match="was made by another tokenizer"):
        store.check_fits(replace(tokenizer(), max_length=30), "tokens")
    with pytest.raises(ConfigError, match="keeps tokens, but this objective needs counts"):
        store.check_fits(tokenizer(), "counts")
    store.check_fits(tokenizer(), "tokens")


def test_a_disk_that_fills_up_leaves_no_half_part(folder, tmp_path):
    with room_for(1500), pytest.raises(OutputError, match="the disk is full, or a quota is reached"):
        TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", progress=False)
    assert not (tmp_path / "store" / "manifest.json").exists()
    assert TokenStore.build(Corpus.open(folder), tokenizer(), tmp_path / "store", progress=False).n_cells == 150


# the split


def index_of(donor, fingerprint=None, n_genes=100) -> CellIndex:
    n = len(donor)
    prints = np.arange(n) if fingerprint is None else np.asarray(fingerprint)
    return CellIndex(
        file=np.zeros(n, np.int32),
        row=np.arange(n),
        length=np.full(n, 10, np.int32),
        n_genes=np.full(n, n_genes, np.int32),
        fingerprint=prints.astype(np.uint64),
        columns={"donor": Column.of(donor), "dataset": Column.of(["s"] * n), "label": Column.of(donor)},
        measured=np.ones((1, 5), bool),
        files=("file",),
    )


def test_whole_donors_are_held_out():
    donors = [f"d{i % 10}" for i in range(500)]
    parts = split(index_of(donors), share=0.2, seed=3)
    held = {donors[i] for i in parts.valid}
    assert held == set(parts.groups) and not held & {donors[i] for i in parts.train}
    assert len(parts.valid) == 100 and len(parts.train) == 400
    assert split(index_of(donors), groups=["d1"]).groups == ("d1",)
    assert len(split(index_of(donors), share=0).valid) == 0


def test_the_same_cell_on_both_sides_is_an_error():
    donors = ["a"] * 5 + ["b"] * 5
    twins = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2]
    with pytest.raises(ConfigError, match=r"1 of 5 validation cells .* row 9 of file and row 2 of file"):
        split(index_of(donors, twins), groups=["b"])
    same_side = [0, 1, 2, 2, 4, 5, 6, 7, 8, 9]
    assert len(split(index_of(donors, same_side), groups=["b"]).valid) == 5
    shallow = index_of(donors, twins, n_genes=3)
    check_leak(shallow, split(shallow, groups=["b"]), "donor")


def test_copies_of_cells_are_found_in_files(folder):
    copied = ad.read_h5ad(folder / "study0.h5ad")[:30].copy()
    copied.obs["donor"] = "somebody else"
    copied = copied[:, copied.var_names[::-1]].copy()
    live = LiveCells(Corpus.open([folder / "study0.h5ad", copied]), Encoder(tokenizer()))
    with pytest.raises(ConfigError, match="have the very same counts as a training cell"):
        split(live.index, by="file", groups=["object_1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "dataset"}, "the corpus has one only"),
        ({"groups": ["z"]}, "no donor 'z' to hold out; it has a, b"),
        ({"groups": ["a", "b"]}, "no cells are left to train"),
        ({"share": 1.5}, "validation.share is 1.5"),
        ({"by": "tissue"}, "not by 'tissue'"),
    ],
)
def test_a_split_that_cannot_be_is_told(options, message):
    with pytest.raises(ConfigError, match=message):
        split(index_of(["a"] * 5 + ["b"] * 5), **options)


# batches


def plan_of(n_cells: int, seed: int = 0, **options) -> BatchPlan:
    rng = np.random.default_rng(seed)
    index = index_of([f"d{i % 3}" for i in range(n_cells)])
    index = replace(index, file=np.sort(rng.integers(0, 2, n_cells)).astype(np.int32), files=("x", "y"))
    return BatchPlan(index, np.arange(n_cells), Sampling(seed=seed, **options), rng.integers(1, 50, n_cells))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 5), st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_an_epoch_has_every_cell_once_in_batches_of_so_many_tokens(n_cells, seed, budget, rows, blocks):
    plan = plan_of(n_cells, seed, batch_tokens=budget, block_rows=rows, pool_blocks=blocks)
    for epoch in range(2):
        first = sum(plan.n_batches(e) for e in range(epoch))
        made = [plan[first + i] for i in range(plan.n_batches(epoch))]
        assert {e for e, _ in made} == {epoch}
        np.testing.assert_array_equal(np.sort(np.concatenate([b for _, b in made])), np.arange(n_cells))
        assert all(plan.lengths[b].sum() <= budget or len(b) == 1 for _, b in made)


def test_any_batch_is_found_without_the_others():
    one, other = plan_of(200), plan_of(200)
    numbers = np.random.default_rng(0).permutation(3 * one.n_batches(0))
    found = {int(i): other[int(i)] for i in numbers}
    for i in range(len(numbers)):
        assert one[i][0] == found[i][0] and np.array_equal(one[i][1], found[i][1])


def test_epochs_and_seeds_differ():
    plan = plan_of(200)
    again = plan_of(200, seed=1)
    n = plan.n_batches(0)
    assert not np.array_equal(plan[0][1], plan[n][1])
    assert not np.array_equal(plan[0][1], again[0][1])


def test_processes_share_the_batches_of_an_epoch_evenly():
    plan = plan_of(300, batch_tokens=100)
    per_rank = [[plan[i * 3 + rank][1] for i in range(plan.n_batches(0) // 3)] for rank in range(3)]
    assert len({len(r) for r in per_rank}) == 1
    seen = np.concatenate([b for r in per_rank for b in r])
    assert len(np.unique(seen)) == len(seen)


def test_a_batch_keeps_to_one_group():
    plan = plan_of(300, batch_tokens=120, within="donor", block_rows=20, pool_blocks=2)
    codes = plan.index.column("donor").codes
    made = [plan[i][1] for i in range(plan.n_batches(0))]
    assert all(len(set(codes[b])) == 1 for b in made)
    np.testing.assert_array_equal(np.sort(np.concatenate(made)), np.arange(300))
    order = [codes[b[0]] for b in made]
    assert order != sorted(order)


def test_weights_change_how_often_cells_come():
    weights = {"d0": 1.0, "d1": 3.0, "d2": 0.0}
    plan = plan_of(300, batch_tokens=100, weights_by="donor", weights=weights)
    cells_seen = np.concatenate([plan[i][1] for i in range(plan.n_batches(0))])
    counts = np.bincount(plan.index.column("donor").codes[cells_seen], minlength=3)
    np.testing.assert_allclose(counts, [75, 225, 0], atol=15)
    assert counts[2] == 0
    balanced = plan_of(300, weights_by="file")
    seen = np.concatenate([balanced[i][1] for i in range(balanced.n_batches(0))])
    assert abs(np.bincount(balanced.index.file[seen])[0] - 150) <= 20
    with pytest.raises(ConfigError, match="names 'd9', which is no donor"):
        plan_of(30, weights_by="donor", weights={"d9": 1.0})


def test_neighbours_in_a_batch_are_of_like_length():
    plan = plan_of(2000, batch_tokens=200, pool_blocks=50)
    spread = np.mean([np.ptp(plan.lengths[plan[i][1]]) for i in range(plan.n_batches(0))])
    assert spread < 0.1 * np.ptp(plan.lengths)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 60))
def test_cuts_fill_the_budget(lengths, budget):
    borders = cut(np.array(lengths), budget)
    assert borders[0] == 0 and borders[-1] == len(lengths) and (np.diff(borders) > 0).all()
    for a, b, c in zip(borders[:-1], borders[1:], [*borders[2:], None], strict=True):
        assert sum(lengths[a:b]) <= budget or b - a == 1
        if c is not None:
            assert sum(lengths[a : b + 1]) > budget


# what is random


def test_draws_belong_to_the_cell():
    offsets = np.array([0, 4, 9])
    both = CellDraws(1, 2, np.array([7, 8])).uniform(3, offsets)
    alone = CellDraws(1, 2, np.array([8])).uniform(3, np.array([0, 5]))
    np.testing.assert_array_equal(both[4:], alone)
    others = [
        CellDraws(*key, np.array([8])).uniform(p, np.array([0, 5]))
        for key, p in (((0, 2), 3), ((1, 1), 3), ((1, 2), 4))
    ]
    assert all(not np.array_equal(alone, o) for o in others)


def test_draws_are_uniform_and_independent():
    draws = CellDraws(0, 0, np.arange(400))
    offsets = np.arange(401) * 50
    u, v = draws.uniform(1, offsets), draws.uniform(2, offsets)
    assert abs(u.mean() - 0.5) < 0.01 and abs(np.histogram(u, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03
    by_cell, by_place = u.reshape(400, 50).mean(axis=1), u.reshape(400, 50).mean(axis=0)
    assert by_cell.std() < 0.06 and by_place.std() < 0.03
    assert abs(draws.per_cell(5).mean() - 0.5) < 0.05
    assert draws.generator(1, 3).random() == draws.generator(1, 3).random() != draws.generator(1, 4).random()


def test_ranks_within_cells():
    scores = np.array([3.0, 1.0, 2.0, 5.0, 5.0])
    np.testing.assert_array_equal(ranks_within(scores, np.array([0, 3, 5])), [2, 0, 1, 0, 1])
