"""`scfm.tl.denoise`: what is predicted, where it is written, and what happens when something is wrong."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from golden_cases import arrays, assert_close, case

import scfm
from scfm.errors import ConfigError, CountsError, GeneMatchError, TokenizerError
from scfm.models._reconstruction import reconstruct_blocks
from scfm.models._stream import Job
from scfm.tl import _denoise


@pytest.fixture(scope="module")
def model():
    return scfm.models.load(case("scfoundation") / "checkpoint", checkpoint="gene")


@pytest.fixture
def adata():
    return anndata.read_h5ad(case("scfoundation") / "cells.h5ad")


def denoised(adata, model, **options) -> np.ndarray:
    copy = adata if adata.isbacked else adata.copy()
    scfm.tl.denoise(copy, model, progress=False, **options)
    return copy.layers[options.get("key_added", "denoised")]


def columns_of(adata, model) -> np.ndarray:
    return np.array([model.vocabulary.index.get(name, -1) for name in adata.var["gene_name"]])


# what is written


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"target_depth": 1e4}, "gene_expression_t4_F"),
        ({}, "gene_expression_t4_F"),
        ({"context": {"target_fold": 1}}, "gene_expression_f1_F"),
    ],
)
def test_layer_holds_what_the_authors_code_predicts_and_nan_for_unknown_genes(adata, model, options, recorded):
    golden = arrays("scfoundation")[recorded]
    layer = denoised(adata, model, gene_matching="published", **options)
    columns = columns_of(adata, model)
    assert layer.dtype == np.float32
    assert_close(layer[:, columns >= 0], golden[:, columns[columns >= 0]])
    assert (columns < 0).any()
    assert np.isnan(layer[:, columns < 0]).all()


def test_deeper_targets_are_a_number_a_column_or_a_number_per_cell(adata, model):
    adata.obs["aim"] = np.linspace(1e3, 1e5, adata.n_obs)
    by_column = denoised(adata, model, target_depth="aim")
    np.testing.assert_array_equal(by_column, denoised(adata, model, target_depth=adata.obs["aim"].to_numpy()))
    alone = denoised(adata[[3]].copy(), model, target_depth=float(adata.obs["aim"].iloc[3]))
    np.testing.assert_allclose(by_column[[3]], alone, atol=1e-5)
    assert np.nanmax(np.abs(by_column - denoised(adata, model))) > 1e-3


def test_nothing_but_the_layer_and_its_report_is_written(adata, model):
    before = adata.copy()
    scfm.tl.denoise(adata, model, progress=False)
    assert set(adata.layers) - set(before.layers) == {"denoised"}
    assert set(adata.uns) - set(before.uns) == {"scfm"}
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert not adata.obsm
    assert not adata.varm


def test_copy_leaves_the_original_alone(adata, model):
    copy = scfm.tl.denoise(adata, model, copy=True, progress=False)
    assert "denoised" not in adata.layers
    assert "scfm" not in adata.uns
    np.testing.assert_array_equal(copy.layers["denoised"], denoised(adata, model))


def test_report_names_model_depth_and_unknown_genes_and_survives_a_file(adata, model, tmp_path):
    scfm.tl.denoise(adata, model, target_depth=2e4, key_added="deep/er", progress=False)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.layers["deep_er"], adata.layers["deep_er"])
    report = scfm.get.report(again, "deep/er")
    assert report["model"] == model.card.name
    assert report["parameters"]["context"]["target_depth"] == 2e4
    assert report["denoised"]["unknown_genes"] == (columns_of(adata, model) < 0).sum()
    assert report["denoised"]["genes"] + report["denoised"]["unknown_genes"] == adata.n_vars


def test_the_accessor_is_the_verb(adata, model):
    adata.scfm.denoise(model, target_depth=2e4, progress=False)
    np.testing.assert_array_equal(adata.layers["denoised"], denoised(adata, model, target_depth=2e4))


def test_the_only_embedding_is_found_beside_the_layer(adata, model):
    scfm.tl.embed(adata, model, key_added="cells", gene_embeddings=None, progress=False)
    scfm.tl.denoise(adata, model, progress=False)
    np.testing.assert_array_equal(scfm.get.embedding(adata), adata.obsm["X_cells"])


# single genes


def test_asked_genes_need_not_be_in_the_data(adata, model):
    names = set(adata.var["gene_name"])
    absent = [str(name) for name in model.vocabulary.names[:-2] if name not in names][:2]
    present = [str(name) for name in model.vocabulary.names[:-2] if name in names][:3]
    scfm.tl.denoise(adata, model, genes=[*absent, *present], progress=False)
    table = adata.obsm["denoised"]
    assert list(table.columns) == [*absent, *present]
    assert (table.index == adata.obs_names).all()
    assert "denoised" not in adata.layers
    golden = arrays("scfoundation")["gene_expression_t4_F"]
    assert_close(table.to_numpy(), golden[:, [model.vocabulary.index[name] for name in table.columns]])


def test_second_run_under_a_key_replaces_the_first(adata, model):
    scfm.tl.denoise(adata, model, progress=False)
    scfm.tl.denoise(adata, model, genes=["CD3E"], progress=False)
    assert "denoised" not in adata.layers
    scfm.tl.denoise(adata, model, progress=False)
    assert "denoised" not in adata.obsm


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        (["CD3E", "no such gene"], GeneMatchError, "1 genes are not in the vocabulary: no such gene"),
        (["CD3E", "CD3E"], GeneMatchError, "CD3E more than once"),
        ("CD3E", ConfigError, "pass a list"),
        ([], ConfigError, "pass a list"),
    ],
)
def test_genes_that_cannot_be_asked_for(adata, model, genes, error, message):
    with pytest.raises(error, match=message):
        scfm.tl.denoise(adata, model, genes=genes, progress=False)
    assert not adata.uns


# a cell's values depend on that cell alone


@pytest.mark.parametrize("batch_tokens", [1, 400, 100_000])
def test_values_do_not_depend_on_batch_mates(adata, model, batch_tokens):
    np.testing.assert_allclose(
        denoised(adata, model, batch_tokens=batch_tokens), denoised(adata, model), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_values_do_not_depend_on_the_blocks_read(adata, model, rows, monkeypatch):
    whole = denoised(adata, model)
    monkeypatch.setattr(_denoise, "BLOCK_ROWS", rows)
    np.testing.assert_allclose(denoised(adata, model), whole, rtol=0, atol=2e-5)


def test_rows_and_columns_keep_their_order(adata, model):
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    shuffled = adata[rows][:, columns].copy()
    whole = denoised(adata, model)
    np.testing.assert_allclose(denoised(shuffled, model), whole[rows][:, columns], rtol=0, atol=2e-5)


def test_backed_and_dask_data_give_the_same(adata, model, tmp_path):
    whole = denoised(adata, model)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(denoised(backed, model), whole)
    da = pytest.importorskip("dask.array")
    lazy = anndata.AnnData(da.from_array(adata.X.toarray(), chunks=(4, adata.n_vars)), adata.obs, adata.var)
    np.testing.assert_array_equal(denoised(lazy, model), whole)


def test_counts_behind_normalised_values_and_in_raw_are_found(adata, model):
    whole = denoised(adata, model)
    logged = adata.copy()
    totals = np.asarray(adata.X.sum(axis=1))
    logged.X = sp.csr_matrix(np.log1p(adata.X.toarray() / totals * 1e4))
    # of a cell whose counts are all multiples of 2, half of them are found
    alone = [np.gcd.reduce(row[row > 0].astype(int)) == 1 for row in adata.X.toarray()]
    assert sum(alone) > adata.n_obs / 2
    np.testing.assert_allclose(denoised(logged, model)[alone], whole[alone], rtol=0, atol=1e-4)
    with_raw = adata.copy()
    with_raw.raw = adata
    fewer = with_raw[:, ::2].copy()
    fewer.X = np.full(fewer.shape, -0.5)
    np.testing.assert_allclose(denoised(fewer, model), whole[:, ::2], rtol=0, atol=2e-5)


def test_memory_does_not_grow_with_the_cells(adata, model):
    column = np.array([model.vocabulary.index["CD3E"]])

    def peak(times: int) -> int:
        source = scfm.counts.find(anndata.AnnData(sp.vstack([adata.X] * times).tocsr(), var=adata.var))
        job = Job(scfm.genes.match(source.var, model.vocabulary), {}, batch_tokens=2000)
        tracemalloc.start()
        reconstruct_blocks(model, source.blocks(16), job, "expression", column, source.shape[0])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    few, many = peak(4), peak(24)
    # the answer and a few numbers per cell stay; tokens or all predicted genes of a cell would be twice as much
    assert many - few < 20 * adata.n_obs * 400


# what cannot be predicted


def test_cells_without_a_gene_of_the_model_are_nan_and_warned_about(adata, model, caplog):
    counts = adata.X.toarray()
    counts[2] = 0
    adata.X = sp.csr_matrix(counts)
    whole = denoised(adata, model)
    assert np.isnan(whole[2]).all()
    assert not np.isnan(whole[3]).all()
    assert any("1 cells hold no gene of the model" in record.getMessage() for record in caplog.records)


def test_cells_deeper_than_the_target_are_counted_and_warned_about(adata, model, caplog):
    scfm.tl.denoise(adata, model, target_depth=500, progress=False)
    tokens = model.tokenize(adata)
    own = tokens.values[tokens.ids == len(model.vocabulary) - 1]
    deeper = int((own > np.log10(500)).sum())
    assert 0 < deeper < adata.n_obs
    assert adata.uns["scfm"]["denoised"]["denoised"]["cells_deeper_than_target"] == deeper
    assert any(f"{deeper} of {adata.n_obs} cells hold more counts" in record.getMessage() for record in caplog.records)


def test_models_without_a_decoder_name_those_that_have_one(adata):
    with pytest.raises(ConfigError, match=r"scfm-mini predicts no expression.*scfoundation-rde, scfoundation-gene"):
        scfm.tl.denoise(adata, "scfm-mini", progress=False)


def test_weights_that_are_not_here_are_said_where_to_get(adata, monkeypatch, tmp_path):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    with pytest.raises(scfm.errors.CheckpointError, match=r"models\.ckpt.*non-commercial.*scfoundation$"):
        scfm.tl.denoise(adata, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_depth": 0}, "'target_depth' must be above 0"),
        ({"target_depth": 1e4, "context": {"target_fold": 2}}, "contradict each other"),
        ({"context": {"depth": 3}}, "depth"),
        ({"target_depth": "no such column"}, "no such column"),
    ],
)
def test_impossible_targets_are_refused_and_nothing_is_written(adata, model, options, message):
    with pytest.raises(TokenizerError, match=message):
        scfm.tl.denoise(adata, model, progress=False, **options)
    assert not adata.uns
    assert not adata.layers


def test_what_is_no_count_or_no_object_is_refused(adata, model):
    with pytest.raises(ConfigError, match="denoise works on an AnnData object, not on a str"):
        scfm.tl.denoise("cells.h5ad", model)
    adata.X = -adata.X.toarray()
    with pytest.raises(CountsError):
        scfm.tl.denoise(adata, model, progress=False)
