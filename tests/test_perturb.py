"""Genes deleted and overexpressed in silico: what is edited, what is measured, and beside what it stands."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from model_cases import geneformer_folder, scgpt_folder
from scipy.sparse import csr_matrix

import scfm
from scfm.errors import ConfigError, GeneMatchError, TokenizerError
from scfm.evaluation._perturbation import LinearEffect, empirical_p, matched_genes
from scfm.models._perturbation import Perturber
from scfm.tokenizers import BagTokenizer, Tokens
from scfm.tokenizers._edits import cut, put_in_front, remove, set_values


def cells_of(model, n_cells: int = 12, n_genes: int = 30, seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    genes = np.flatnonzero(model.vocabulary.is_gene)[:n_genes]
    counts = rng.poisson(rng.gamma(0.6, 3, len(genes)), (n_cells, len(genes))).astype(np.float32)
    counts[:, 0] = 3
    names = [model.vocabulary.names[i] for i in genes]
    obs = pd.DataFrame({"state": ["a", "b"] * (n_cells // 2)}, index=[f"cell{i}" for i in range(n_cells)])
    return anndata.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture(scope="module", params=["geneformer", "scgpt"])
def model(request, tmp_path_factory):
    folder = {"geneformer": geneformer_folder, "scgpt": scgpt_folder}[request.param]
    return scfm.models.load(folder(tmp_path_factory.mktemp("models") / request.param))


def ragged(*lists, values=None) -> Tokens:
    return Tokens(
        ids=np.concatenate(lists).astype(np.int32),
        offsets=np.cumsum([0, *map(len, lists)]).astype(np.int64),
        values=None if values is None else np.concatenate(values).astype(np.float32),
    )


def lists_of(tokens: Tokens) -> list[list[int]]:
    return [cell.ids.tolist() for cell in tokens]


IS_GENE = np.arange(20) >= 2  # 0 and 1 are special


def test_a_removed_gene_leaves_no_gap():
    assert lists_of(remove(ragged([0, 5, 6, 1], [0, 6, 1]), np.array([6]))) == [[0, 5, 1], [0, 1]]


def test_genes_go_in_front_in_the_order_asked_and_inside_the_special_tokens():
    tokens = put_in_front(ragged([0, 5, 6, 7, 1], [0, 8, 1]), np.array([9, 6]), IS_GENE)
    assert lists_of(tokens) == [[0, 9, 6, 5, 7, 1], [0, 9, 6, 8, 1]]


def test_genes_in_front_take_the_highest_value_of_their_cell():
    tokens = put_in_front(ragged([0, 5, 6], [0, 7], values=[[99, 2, 4], [99, 3]]), np.array([5]), IS_GENE)
    assert lists_of(tokens) == [[0, 5, 6], [0, 5, 7]]
    np.testing.assert_array_equal(tokens.values, [99, 4, 4, 99, 3, 3])


def test_a_full_cell_loses_its_last_genes_and_keeps_its_end():
    assert lists_of(cut(ragged([0, 5, 6, 7, 1], [0, 5, 1]), 4, IS_GENE)) == [[0, 5, 6, 1], [0, 5, 1]]


def test_values_are_set_only_for_the_genes_named():
    tokens = set_values(ragged([5, 6], [6, 7], values=[[1, 2], [3, 4]]), np.array([6]), np.array([8, 9]))
    np.testing.assert_array_equal(tokens.values, [1, 8, 9, 4])


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_the_effect_is_the_cosine_of_cells_embedded_with_and_without(model, kind):
    """By hand for read-outs of one token; the mean of a list is compared gene by gene (golden tests)."""
    adata = cells_of(model)
    gene = adata.var_names[0]
    result = scfm.tl.perturb(adata, gene, kind, model, null=0, progress=False)
    tokens = model.tokenize(adata)
    edit = model.tokenizer.delete if kind == "delete" else model.tokenizer.overexpress
    after = edit(tokens, np.array([model.vocabulary.index[gene]]))
    if Perturber(model, tokens[:1]).by_gene:
        old, new = (
            next(iter(model.hidden_states(t, [model.config.hidden_layer % (model.transformer.n_layers + 1)]).values()))
            for t in (tokens, after)
        )
        expected = []
        for i in range(len(tokens)):
            a, b = slice(*tokens.offsets[i : i + 2]), slice(*after.offsets[i : i + 2])
            before_states = dict(zip(tokens.ids[a], old[a], strict=True))
            after_states = dict(zip(after.ids[b], new[b], strict=True))
            shared = [g for g in before_states if g in after_states and g != model.vocabulary.index[gene]]
            expected.append(np.mean([cosine(before_states[g], after_states[g]) for g in shared]))
    else:
        expected = [*map(cosine, model.embed_cells(tokens), model.embed_cells(after))]
    np.testing.assert_allclose(result.cells["cosine"], expected, atol=1e-5)
    assert (result.cells["cosine"] < 1).any()


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_deletion_takes_place_in_the_cells_that_have_the_gene(model):
    adata = cells_of(model)
    gene = next(g for g in adata.var_names if 0 < (adata[:, g].X.toarray() > 0).sum() < adata.n_obs)
    result = scfm.tl.perturb(adata, gene, "delete", model, null=0, progress=False)
    assert [*result.cells["cell"]] == [*adata.obs_names[adata[:, gene].X.toarray().ravel() > 0]]


def test_a_cells_effect_depends_on_that_cell_alone(model):
    adata = cells_of(model)
    genes = [*adata.var_names[:2]]
    whole = scfm.tl.perturb(adata, genes, "delete", model, null=0, progress=False).cells
    part = scfm.tl.perturb(adata[3:7].copy(), genes, "delete", model, null=0, progress=False).cells
    joined = part.merge(whole, on=["gene", "cell"], suffixes=("", "_whole"))
    assert len(joined) == len(part)
    np.testing.assert_allclose(joined["cosine"], joined["cosine_whole"], atol=1e-6)


def test_every_gene_stands_beside_genes_of_like_expression(model):
    adata = cells_of(model)
    result = scfm.tl.perturb(adata, [*adata.var_names[:3]], "delete", model, null=8, progress=False)
    table = result.genes
    assert (table["n_null"] == 8).all()
    assert ((table["p_value"] >= 1 / 9) & (table["p_value"] <= 1)).all()
    assert (table["p_adjusted"] >= table["p_value"]).all()
    assert str(len(table)) in result.verdict and "principal components" in result.verdict
    again = scfm.tl.perturb(adata, [*adata.var_names[:3]], "delete", model, null=8, progress=False)
    pd.testing.assert_frame_equal(table, again.genes)


def test_genes_named_together_are_edited_together(model):
    adata = cells_of(model)
    pair = tuple(adata.var_names[:2])
    together = scfm.tl.perturb(adata, [pair, pair[0]], "overexpress", model, null=0, progress=False).genes
    assert [*together.index] == ["+".join(pair), pair[0]]
    assert together["cosine"].iloc[0] != together["cosine"].iloc[1]


def test_states_are_the_mean_vectors_of_their_cells(model):
    adata = cells_of(model)
    result = scfm.tl.perturb(adata, adata.var_names[0], "delete", model, null=0, towards="state", progress=False)
    vectors = model.embed_cells(model.tokenize(adata))
    goals = {s: vectors[(adata.obs["state"] == s).to_numpy()].mean(axis=0) for s in ("a", "b")}
    same = scfm.tl.perturb(adata, adata.var_names[0], "delete", model, null=0, towards=goals, progress=False)
    for state in goals:
        np.testing.assert_allclose(result.cells[f"towards_{state}"], same.cells[f"towards_{state}"], atol=1e-6)
        assert result.cells[f"towards_{state}"].abs().max() > 0


def test_the_cells_are_only_read(model):
    adata = cells_of(model)
    before = adata.copy()
    scfm.tl.perturb(adata, adata.var_names[0], "delete", model, null=2, progress=False)
    assert (adata.X != before.X).nnz == 0
    assert [*adata.obs.columns] == [*before.obs.columns] and not adata.obsm and not adata.uns


def test_the_built_in_model_edits_its_bag():
    model = scfm.models.load("scfm-mini")
    assert isinstance(model.tokenizer, BagTokenizer)
    adata = cells_of(model, n_genes=200)
    result = scfm.tl.perturb(adata, adata.var_names[0], "delete", null=0, progress=False)
    tokens = model.tokenizer.delete(model.tokenize(adata), np.array([model.vocabulary.index[adata.var_names[0]]]))
    expected = [*map(cosine, model.embed_cells(model.tokenize(adata)), model.embed_cells(tokens))]
    np.testing.assert_allclose(result.cells["cosine"], expected, atol=1e-6)
    assert (tokens.parts["bag"].lengths == model.tokenize(adata).parts["bag"].lengths - 1).all()


def test_what_is_far_above_its_usual_value_follows_the_edits_of_the_bag():
    model = scfm.models.load("scfm-mini")
    gene = int(np.flatnonzero(model.vocabulary.is_gene)[7])
    counts = np.zeros((2, len(model.vocabulary)), np.float32)
    counts[:, gene + 1 : gene + 200] = 1
    counts[0, gene] = counts[1, gene + 3] = 400
    names = np.array(model.vocabulary.names)
    kept = model.vocabulary.is_gene
    tokens = model.tokenize(anndata.AnnData(counts[:, kept], var=pd.DataFrame(index=names[kept])))
    assert tokens.parts["excess"].ids.tolist() == [gene, gene + 3]
    assert remove(tokens, np.array([gene])).parts["excess"].ids.tolist() == [gene + 3]
    raised = model.tokenizer.overexpress(tokens, np.array([gene])).parts["excess"]
    assert raised.ids.tolist() == [gene, gene, gene + 3]
    assert (raised.values > 0).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"genes": "NOT_A_GENE"}, GeneMatchError, "NOT_A_GENE: neither a matched column"),
        ({"genes": []}, ConfigError, "name at least one gene"),
        ({"kind": "remove"}, ConfigError, "'delete' or 'overexpress'"),
        ({"null": -1}, ConfigError, "number of genes"),
        ({"towards": "stat"}, ConfigError, "not a column of obs"),
        ({"towards": {"a": np.zeros(3)}}, ConfigError, "vectors of shape"),
    ],
)
def test_bad_input_is_refused_before_the_work(model, options, error, words):
    adata = cells_of(model)
    given = {"genes": adata.var_names[0], "model": model, **options}
    with pytest.raises(error, match=words):
        scfm.tl.perturb(adata, progress=False, **given)


def test_a_gene_that_no_cell_has_cannot_be_deleted(model):
    adata = cells_of(model)
    adata.X = csr_matrix(adata.X.multiply(np.arange(adata.n_vars) != 3))
    with pytest.raises(GeneMatchError, match="no cell has"):
        scfm.tl.perturb(adata, adata.var_names[3], "delete", model, progress=False)


def test_a_sampled_sentence_has_no_strongest_gene(tmp_path):
    from model_cases import uce_folder

    uce = scfm.models.load(uce_folder(tmp_path / "model_files"))
    tokens = ragged([1, 2])
    with pytest.raises(TokenizerError, match="overexpression has no meaning"):
        uce.tokenizer.overexpress(tokens, np.array([2]))


def test_the_linear_rival_moves_a_cell_along_its_gene():
    rng = np.random.default_rng(0)
    expression = csr_matrix(rng.poisson(1.0, (40, 10)).astype(float))
    rival = LinearEffect.fit(expression, n_components=9)
    edited = expression.toarray().copy()
    edited[:, 2] = 0
    centre = expression.toarray().mean(axis=0)
    before, after = ((x - centre) @ rival.loadings for x in (expression.toarray(), edited))
    expected = [*map(cosine, before, after)]
    np.testing.assert_allclose(rival.cosine(np.arange(40), np.array([2]), "delete"), expected, atol=1e-6)


def test_null_genes_are_expressed_like_the_gene():
    mean = np.concatenate([np.linspace(0, 10, 101)])
    drawn = matched_genes(mean, 50, 5, np.array([51]), np.random.default_rng(0))
    assert len(drawn) == 5 and not np.isin([50, 51], drawn).any()
    assert np.abs(mean[drawn] - mean[50]).max() < 1


def test_the_empirical_p_value_counts_the_value_itself():
    assert empirical_p(0.1, np.array([0.5, 0.6, 0.7])) == 1 / 4
    assert empirical_p(0.55, np.array([0.5, 0.6, 0.7])) == 2 / 4
    assert np.isnan(empirical_p(0.5, np.array([])))
