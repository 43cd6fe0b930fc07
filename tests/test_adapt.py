"""The built-in model taken up again with further cells: what it keeps, what it learns, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from golden_cases import case

import scfm
from scfm.errors import CheckpointError, ConfigError
from scfm.models._bag_model import gene_vectors
from scfm.models._registry import locate
from scfm.training import _projection as projection
from scfm.training._projection import CellSet, ProjectionRecipe

RECIPE = ProjectionRecipe(n_axes=6, min_genes=1)


def made_up(seed: int = 0, n: int = 60, n_genes: int = 40, n_programs: int = 5) -> CellSet:
    """Cells that are mixtures of a few programs."""
    draw = np.random.default_rng(seed)
    programs = np.random.default_rng(99).gamma(0.3, 1, (n_programs, n_genes))
    counts = draw.poisson(20 * draw.dirichlet(np.ones(n_programs) / 3, n) @ programs)
    return CellSet(sp.csr_matrix(np.log1p(counts.astype(float))), np.ones(n_genes, dtype=bool))


def cells(n: int = 300, seed: int = 0) -> anndata.AnnData:
    """Two kinds of cells on real gene names, in two batches."""
    draw = np.random.default_rng(seed)
    table = scfm.genes.table("human")
    names = table.loc[(table["status"] == "current") & (table["biotype"] == "protein_coding"), "symbol"].iloc[:2000]
    level = np.exp(draw.normal(-1.5, 1, (2, len(names))))
    kind = draw.integers(0, 2, n)
    counts = draw.poisson(level[kind])
    obs = pd.DataFrame(
        {"kind": kind.astype(str), "batch": np.where(np.arange(n) % 2, "a", "b")}, index=[f"c{i}" for i in range(n)]
    )
    return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[*names]))


def subspace_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest sine between the spaces that two sets of orthonormal columns span."""
    return float(np.sqrt(max(0.0, 1 - np.linalg.svd(a.T @ b, compute_uv=False).min() ** 2)))


def test_the_fit_finds_the_axes_of_the_centred_scaled_cells():
    sets = [made_up(0), made_up(1)]
    fitted = projection.fit(sets, RECIPE)
    dense = [s.values.toarray() for s in sets]
    within = sum(((x - x.mean(0)) ** 2).sum(0) for x in dense) / sum(map(len, dense))
    scale = np.where(within > 0, within, 1) ** (-RECIPE.scaling / 2) * (within > 0)
    stack = np.concatenate([((x - x.mean(0)) * scale).clip(-10, 10) for x in dense])
    _, singular, axes = np.linalg.svd(stack, full_matrices=False)
    np.testing.assert_allclose(fitted.singular, singular[:6], rtol=1e-3)
    assert subspace_error(fitted.axes[:, :5], axes[:5].T) < 0.02


def test_extending_a_fit_is_fitting_all_sets_together():
    sets = [made_up(i) for i in range(4)]
    recipe = ProjectionRecipe(n_axes=40, min_genes=1)
    step_by_step = projection.extend(projection.fit(sets[:2], recipe), sets[2:], recipe)
    at_once = projection.fit(sets, recipe)
    for name in ("sets", "cells", "means", "squares"):
        np.testing.assert_allclose(getattr(step_by_step.moments, name), getattr(at_once.moments, name))
    # the earlier axes were scaled with the deviations known then, and clipped with them
    np.testing.assert_allclose(step_by_step.singular[:5], at_once.singular[:5], rtol=0.02)
    assert subspace_error(step_by_step.axes[:, :5], at_once.axes[:, :5]) < 0.15


def test_a_gene_that_was_not_measured_is_not_a_gene_without_counts():
    measured = np.ones(40, dtype=bool)
    measured[7] = False
    whole = made_up(1)
    hole = CellSet((whole.values @ sp.diags(measured.astype(float))).tocsr(), measured)
    moments = projection.Moments.of([made_up(0), hole])
    alone = projection.Moments.of([made_up(0)])
    for name in ("sets", "cells", "center", "squares", "usual"):
        assert getattr(moments, name)[7] == getattr(alone, name)[7]


def test_statistics_that_ship_give_the_axes_back():
    folder, _ = locate("scfm-mini")
    model = scfm.models.load("scfm-mini")
    table = gene_vectors(model).astype(float)
    recipe = ProjectionRecipe(**model.card.details["recipe"])
    fitted = projection.load_statistics(folder, table, recipe)
    np.testing.assert_allclose(fitted.axes.T @ fitted.axes, np.eye(recipe.n_axes), atol=1e-3)
    assert (np.diff(fitted.singular) <= 0).all()
    again = projection.without(fitted.vectors(recipe), fitted.moments.center)
    again = again @ projection.evened(fitted, again, recipe)
    cosine = (again * table).sum() / np.linalg.norm(again) / np.linalg.norm(table)
    assert cosine > 0.9999


def test_statistics_survive_saving(tmp_path):
    sets = [made_up(i) for i in range(3)]
    fitted = projection.fit(sets, RECIPE)
    table = projection.finished(fitted, RECIPE, sets)
    projection.save_statistics(tmp_path, fitted, RECIPE, table)
    again = projection.load_statistics(tmp_path, table, RECIPE)
    # the means, from which genes are weighted, are stored in half precision
    np.testing.assert_allclose(again.axes, fitted.axes, atol=1e-3)
    np.testing.assert_allclose(again.singular, fitted.singular)


def test_a_gene_whose_level_differs_between_sets_counts_less():
    sets = [made_up(i) for i in range(3)]
    shift = np.zeros(40)
    shift[3] = 2.0
    measured = np.arange(40) != 9
    sets = [CellSet(sp.csr_matrix((s.values.toarray() + i * shift) * measured), measured) for i, s in enumerate(sets)]
    sets.append(made_up(3))
    moments = projection.Moments.of(sets)
    weight = moments.steadiness(20.0)
    means = [s.values.toarray()[:, 3].mean() for s in sets]
    within = np.concatenate([s.values.toarray()[:, 3] - m for s, m in zip(sets, means, strict=True)]).var()
    np.testing.assert_allclose(weight[3], (1 + 20 * np.var(means) / within) ** -0.5)
    # one set alone measured gene 9: nothing is known of how sets differ in it
    assert weight[3] < 0.5 * np.delete(weight, 3).min()
    assert weight[9] == 1
    np.testing.assert_array_equal(moments.steadiness(0.0), 1)


def test_directions_in_which_sets_differ_are_shrunk_and_the_others_stay():
    shift = np.zeros(40)
    shift[:20] = 0.7
    sets = [made_up(i) for i in range(3)]
    moved = [CellSet(sp.csr_matrix(s.values.toarray() + i * shift), s.measured) for i, s in enumerate(sets)]
    fitted = projection.fit(moved, RECIPE)
    alike = replace(RECIPE, steadying=0.0)
    plain = projection.without(fitted.vectors(alike), fitted.moments.center)

    def scatter(evening: float) -> tuple[float, float]:
        """Of the sets' means, and within the sets."""
        even = projection.evened(fitted, plain, replace(alike, evening=evening))
        x = [s.values @ plain @ even for s in moved]
        return np.array([y.mean(0) for y in x]).var(0).sum(), float(np.mean([y.var(0).sum() for y in x]))

    (far, wide), *evened = (scatter(evening) for evening in (0.0, 10.0, 100.0))
    shares = [between / within for between, within in [(far, wide), *evened]]
    assert shares[0] > 1.05 * shares[1] > 1.2 * shares[2]
    assert evened[0][1] > 0.8 * wide
    unchanged = projection.evened(fitted, plain, replace(alike, evening=0.0))
    np.testing.assert_allclose(plain @ unchanged, plain, atol=1e-8)


def test_an_adapted_model_embeds_saves_and_loads_like_any_other(tmp_path):
    adata = cells()
    model = scfm.tl.adapt(adata, batch_key="batch", n_axes=24)
    scfm.tl.embed(adata, model, progress=False)
    vectors = adata.obsm["X_scfm_mini_adapted"]
    assert vectors.shape == (adata.n_obs, 24 + model.card.details["recipe"]["excess_axes"])
    assert "not zero-shot" in model.card.verified
    assert model.card.details["adapted_to"]["n_sets"] == 2
    model.save_pretrained(tmp_path / "mine")
    again = adata.copy()
    scfm.tl.embed(again, scfm.models.load(tmp_path / "mine"), key_added="again", progress=False)
    np.testing.assert_allclose(again.obsm["X_again"], vectors, atol=1e-6)


def test_adapting_learns_what_the_corpus_did_not_vary():
    """Two made-up kinds of cells lie apart more clearly than with the model as it ships."""
    from sklearn.metrics import silhouette_score

    adata = cells()
    scfm.tl.embed(adata, progress=False)
    scfm.tl.embed(adata, scfm.tl.adapt(adata, n_axes=24), progress=False)
    before, after = (
        silhouette_score(adata.obsm[f"X_{key}"], adata.obs["kind"]) for key in ("scfm_mini", "scfm_mini_adapted")
    )
    assert after > before + 0.05


def test_the_same_cells_and_seed_give_the_same_model():
    adata = cells(120)
    a, b = (scfm.tl.adapt(adata, n_axes=8).embed_genes(kind="input").vectors for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_cells_are_only_read():
    adata = cells(80)
    before = adata.copy()
    scfm.tl.adapt(adata, n_axes=8)
    assert (adata.X != before.X).nnz == 0
    assert not adata.obsm
    assert not adata.uns


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_key": "plate"}, "not a column of obs"),
        ({"n_axes": 0}, "at least one"),
        ({"n_axes": 5000}, "axes only"),
        ({"model": scfm}, "name or folder"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        scfm.tl.adapt(cells(60), **options)


def test_a_batch_of_empty_cells_is_refused():
    adata = cells(60)
    adata.X = sp.csr_matrix(adata.X.multiply((adata.obs["batch"] == "a").to_numpy()[:, None]))
    with pytest.raises(ConfigError, match="leave shallow or tiny"):
        scfm.tl.adapt(adata, batch_key="batch")


def test_only_models_fitted_as_a_projection_can_be_adapted(tmp_path):
    with pytest.raises(ConfigError, match="not fitted as a projection"):
        scfm.tl.adapt(cells(20), case("scgpt") / "checkpoint" / "pretrained")
    scfm.tl.adapt(cells(60), n_axes=8).save_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"statistics\.npz"):
        scfm.tl.adapt(cells(60), tmp_path / "mine")
