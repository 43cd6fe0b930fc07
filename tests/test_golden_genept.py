"""GenePT and Gene2vec: the published files, cells as weighted means, and cells as sentences."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from golden_cases import arrays, assert_close, case

import scfm
from scfm.models._gene_means import log_normalised
from scfm.models._reading import read_pickle
from scfm.tokenizers._sentences import sentences

PICKLES = ("GPT_3_5_gene_embeddings.pickle", "GenePT_gene_embedding_ada_text.pickle")


@pytest.fixture(scope="module")
def golden():
    return arrays("genept")


@pytest.fixture
def adata():
    return anndata.read_h5ad(case("genept") / "cells.h5ad")


def gene2vec(*, header: bool) -> Path:
    """The file of vectors that the authors name by width and iteration."""
    return next(p for p in case("genept").glob("gene2vec_dim_*.txt") if p.stem.endswith("w2v") is header)


@pytest.mark.parametrize("name", PICKLES)
def test_golden_genept_vectors_of_genes(golden, adata, name):
    scfm.tl.embed_genes(adata, case("genept") / name, key_added="genept", gene_matching="published")
    vectors = adata.varm["genept"]
    np.testing.assert_array_equal(~np.isnan(vectors).any(axis=1), golden["has_embedding"])
    assert_close(np.nan_to_num(vectors), golden["gene_matrix"], 1e-7)
    coverage = scfm.get.report(adata, "genept")["coverage"]
    assert coverage["n_matched"] == golden["has_embedding"].sum()
    zero = golden["has_embedding"] & ~golden["gene_matrix"].any(axis=1)
    assert coverage["n_zero_vectors"] == zero.sum() > 0


def test_golden_genept_log_normalised_counts(golden, adata):
    source = scfm.counts.find(adata)
    ours = np.concatenate([log_normalised(block).toarray() for block in source.blocks(3)])
    assert_close(ours, golden["lognorm"], 1e-6)


@pytest.mark.parametrize(
    ("scale", "array"),
    [
        ("n_genes", "genept_w_notebook"),
        ("unit", "genept_w_unit"),
        ("weights", "genept_w_weighted_mean"),
        ("matched_weights", "genept_w_weighted_mean_matched"),
    ],
)
@pytest.mark.parametrize("matching", ["published", "resolve"])
def test_golden_genept_w_cells(golden, adata, scale, array, matching):
    scfm.tl.average_genes(adata, case("genept") / PICKLES[0], scale=scale, gene_matching=matching, progress=False)
    assert_close(adata.obsm["X_GPT_3_5_gene_embeddings_cells"], golden[array])


def test_golden_genept_s_sentences(adata):
    recorded = json.loads((case("genept") / "genept_s_sentences.json").read_text())
    ours = scfm.tl.cell_sentences(adata, n_genes=recorded["trunc_index"], prefix=recorded["prefix"])
    assert ours.tolist() == recorded["stable_ties_by_column"]


def test_golden_genept_s_official_sentences_differ_in_ties_only(adata):
    recorded = json.loads((case("genept") / "genept_s_sentences.json").read_text())
    (block,) = scfm.counts.find(adata).blocks()
    counts = adata.to_df()
    n = recorded["trunc_index"]
    for cell, (ours, theirs) in enumerate(
        zip(sentences(block, adata.var_names, n, ""), recorded["official_argsort_reversed"], strict=True)
    ):
        values = [
            [counts[gene].iloc[cell] for gene in text.split()]
            for text in (ours, theirs.removeprefix(recorded["prefix"]))
        ]
        assert values[0] == values[1]


@pytest.mark.parametrize("header", [False, True])
def test_golden_gene2vec_both_text_layouts_hold_the_recorded_array(header):
    table = scfm.models.gene_table(gene2vec(header=header))
    recorded = np.load(next(case("genept").glob("gene2vec_*.npy")))
    np.testing.assert_array_equal(table.vectors, recorded)
    by_position = scfm.models.gene_table(next(case("genept").glob("gene2vec_*.npy")), names=table.names)
    np.testing.assert_array_equal(by_position.vectors, recorded)
    assert by_position.names == table.names


def test_golden_genept_zero_vectors_are_genes_without_a_text():
    table = scfm.models.gene_table(case("genept") / PICKLES[0])
    zero = [name for name, vector in zip(table.names, table.vectors, strict=True) if not vector.any()]
    assert len(zero) == table.n_zero
    held = read_pickle(case("genept") / PICKLES[1])
    assert all(not any(held[name]) for name in zero)
