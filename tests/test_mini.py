"""The built-in model: what it computes, that its weights stay, and that it knows real cells apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

import scfm
from scfm import models

PINNED = Path(__file__).parent / "data" / "scfm_mini.npz"
FOLDER = Path(models.__file__).parent / "data" / "scfm-mini"


@pytest.fixture(scope="module")
def model() -> models.FoundationModel:
    return models.load("scfm-mini")


@pytest.fixture(scope="module")
def pinned() -> Mapping[str, NDArray[Any]]:
    """Synthetic cells, 20 to 20,000 counts deep, and the vectors that the fit gave them."""
    with np.load(PINNED) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture
def cells(model: models.FoundationModel, pinned: Mapping[str, NDArray[Any]]) -> AnnData:
    genes = np.flatnonzero(model.vocabulary.is_gene)
    shape = (len(pinned["indptr"]) - 1, len(genes))
    counts = sp.csr_matrix((pinned["data"].astype(np.float32), pinned["indices"], pinned["indptr"]), shape=shape)
    return AnnData(counts, var=pd.DataFrame(index=[model.vocabulary.names[i] for i in genes]))


def embed(model: models.FoundationModel, adata: AnnData, **options: Any) -> NDArray[np.float32]:
    return model.embed_cells(model.tokenize(adata), **options)


def test_card_names_every_data_set_of_the_corpus(model: models.FoundationModel) -> None:
    corpus = model.card.details["corpus"]
    assert len(corpus) > 10
    assert all(facts["n_cells"] > 0 and facts["licence"] and facts["publication"] for facts in corpus.values())
    assert model.card.species == "human"
    assert model.card.licence == "BSD-3-Clause"


def test_files_are_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    assert (FOLDER / "vocabulary.json").stat().st_size <= 1.5e6


def test_embedding_is_two_weighted_sums_of_gene_vectors(model: models.FoundationModel, cells: AnnData) -> None:
    """Over all genes, and behind it over those far above their usual value."""
    counts = cells.X.toarray().astype(np.float64)
    depth = counts.sum(axis=1, keepdims=True)
    tokenizer, genes = model.tokenizer, model.vocabulary.is_gene
    values = np.log1p(tokenizer.target_sum * counts / depth)
    few = np.maximum(np.log1p(tokenizer.target_sum * tokenizer.few_counts / depth), tokenizer.least)
    excess = np.maximum(values - tokenizer.usual[genes] - few, 0)
    assert 0 < (excess > 0).sum() < (values > 0).sum() / 2
    vectors = model.embed_genes(kind="input").vectors[genes].astype(np.float64)
    axes = model.transformer.terms["excess"].table.detach().numpy()[genes].astype(np.float64)
    expected = np.concatenate([values @ vectors, excess @ axes], axis=1)
    np.testing.assert_allclose(embed(model, cells, pooling="plain"), expected, atol=1e-5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(model, cells), expected, atol=1e-5)


@pytest.mark.parametrize("usual", [True, False])
def test_tokens_of_genes_are_those_furthest_above_their_usual_value(
    model: models.FoundationModel, cells: AnnData, usual: bool
) -> None:
    tokenizer = replace(model.tokenizer, max_length=12, usual=model.tokenizer.usual if usual else None)
    tokens = replace(model, tokenizer=tokenizer).tokenize(cells)
    counts = cells.X.toarray().astype(np.float64)
    values = np.log1p(tokenizer.target_sum * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    genes = np.flatnonzero(model.vocabulary.is_gene)
    for i, value in enumerate(values):
        mine = slice(tokens.offsets[i], tokens.offsets[i + 1])
        above = value - (tokenizer.usual[genes] if usual else 0)
        first = np.argsort(-np.where(value > 0, above, -np.inf), kind="stable")[: min(11, (value > 0).sum())]
        assert tokens.ids[mine].tolist() == [model.vocabulary.specials["cls"], *genes[first]]
        np.testing.assert_allclose(tokens.values[mine], [np.nan, *value[first]], rtol=1e-6)
    plain = model.tokenize(cells)
    np.testing.assert_array_equal(tokens.parts["bag"].values, plain.parts["bag"].values)


def test_weights_give_the_vectors_they_were_shipped_with(
    model: models.FoundationModel, cells: AnnData, pinned: Mapping[str, NDArray[Any]]
) -> None:
    np.testing.assert_allclose(embed(model, cells), pinned["vectors"], atol=1e-4)


def test_every_protein_coding_gene_is_known_and_the_card_counts_those_with_a_vector(
    model: models.FoundationModel,
) -> None:
    table = scfm.genes.table("human")
    coding = table[(table["status"] == "current") & (table["biotype"] == "protein_coding")]
    assert set(coding["ensembl_id"]) == set(model.vocabulary.names) - {"<cls>"}
    vectors = model.embed_genes(kind="input").vectors
    assert int(np.abs(vectors).max(axis=1).astype(bool).sum()) == model.card.details["genes_with_a_vector"]


def test_embedding_depends_on_nothing_but_the_cell(model: models.FoundationModel, cells: AnnData) -> None:
    expected = embed(model, cells)
    draw = np.random.default_rng(1)
    rows, columns = draw.permutation(cells.n_obs), draw.permutation(cells.n_vars)
    expressed = np.asarray(cells.X.sum(axis=0)).ravel() > 0
    dense = AnnData(cells.X.toarray(), var=cells.var)
    for altered, wanted in (
        (cells[rows].copy(), expected[rows]),
        (cells[:, columns].copy(), expected),
        (cells[:, expressed].copy(), expected),
        (dense, expected),
        (cells[3].copy(), expected[3:4]),
    ):
        np.testing.assert_allclose(embed(model, altered), wanted, atol=1e-5)
    np.testing.assert_allclose(embed(model, cells, batch_tokens=1), expected, atol=1e-5)


def test_symbols_and_ids_give_the_same_vectors(model: models.FoundationModel, cells: AnnData) -> None:
    symbols = np.array(model.vocabulary.symbols)[model.vocabulary.is_gene]
    unique = ~pd.Series(symbols).duplicated(keep=False).to_numpy() & (symbols != "")
    by_id = cells[:, unique].copy()
    by_symbol = AnnData(by_id.X, var=pd.DataFrame(index=symbols[unique]))
    np.testing.assert_allclose(embed(model, by_symbol), embed(model, by_id), atol=1e-6)


def test_a_cell_without_a_known_gene_has_no_vector(model: models.FoundationModel, cells: AnnData) -> None:
    counts = cells.X.toarray()
    counts[2] = 0
    vectors = embed(model, AnnData(counts, var=cells.var))
    assert np.isnan(vectors[2]).all()
    assert np.isfinite(np.delete(vectors, 2, axis=0)).all()


@pytest.mark.filterwarnings("ignore::scfm.counts.CountsWarning", "ignore::scfm.genes.CoverageWarning")
def test_cell_types_of_real_cells_stay_together(model: models.FoundationModel) -> None:
    sc = pytest.importorskip("scanpy", reason="embeds the cells that scanpy ships")
    adata = sc.datasets.pbmc68k_reduced()
    vectors = embed(model, adata)
    labels = adata.obs["bulk_labels"].to_numpy()
    ours, chance = purity(vectors, labels), purity(vectors, np.random.default_rng(0).permutation(labels))
    assert ours > chance + 0.3
    assert ours >= 0.9 * purity(adata.obsm["X_pca"], labels)


def purity(vectors: NDArray[Any], labels: NDArray[Any], n_neighbors: int = 15) -> float:
    """Share of the nearest neighbours (cosine) that have the cell's label."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    near = np.argsort(-similarity, axis=1)[:, :n_neighbors]
    return float((labels[near] == labels[:, None]).mean())
