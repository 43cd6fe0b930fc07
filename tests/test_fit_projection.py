"""A corpus becomes a model without layers: what is fitted, what is written, and what is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import ConfigError
from scfm.models._bag_model import with_layers
from scfm.training import PretrainConfig, pretrain
from scfm.training._fit_projection import ProjectionConfig, fit_projection


@pytest.fixture
def corpus(tmp_path):
    """Three files of made-up cells, one of them with fewer genes."""
    coding = scfm.genes.protein_coding("human").iloc[:300]
    programs = np.random.default_rng(9).gamma(0.2, 1, (6, len(coding)))
    for number in range(3):
        draw = np.random.default_rng(number)
        counts = draw.poisson(5 * draw.dirichlet(np.ones(6) / 2, 80) @ programs).astype(np.float32)
        kept = slice(None) if number else slice(0, 200)
        names = coding["ensembl_id"] if number != 1 else coding["symbol"]
        adata = anndata.AnnData(sp.csr_matrix(counts[:, kept]), var=pd.DataFrame(index=[*names][kept]))
        adata.uns["source"] = {"licence": f"licence {number}", "publication": "made up"}
        (tmp_path / "files").mkdir(exist_ok=True)
        adata.write_h5ad(tmp_path / "files" / f"set{number}.h5ad")
    return tmp_path / "files"


def settings(corpus, folder, **projection):
    return {
        "corpus": {"files": [str(corpus)]},
        "projection": {"n_axes": 8, "excess_axes": 4, "min_genes": 1, **projection},
        "output": {"folder": str(folder), "progress": False},
    }


def test_a_fitted_projection_embeds_like_any_model(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    adata = anndata.read_h5ad(corpus / "set1.h5ad")
    scfm.tl.embed(adata, model, key_added="x", progress=False)
    assert adata.obsm["X_x"].shape == (80, 12)
    assert np.isfinite(adata.obsm["X_x"]).all()
    again = adata.copy()
    scfm.tl.embed(again, tmp_path / "run" / "model", key_added="x", progress=False)
    np.testing.assert_array_equal(again.obsm["X_x"], adata.obsm["X_x"])


def test_the_card_takes_over_what_the_files_state(corpus, tmp_path):
    details = fit_projection(settings(corpus, tmp_path / "run")).card.details
    assert details["corpus"]["set2"] == {"n_cells": 80, "licence": "licence 2", "publication": "made up"}
    assert details["recipe"]["n_axes"] == 8


def test_the_same_files_and_seed_give_the_same_weights(corpus, tmp_path):
    a, b = (
        fit_projection(settings(corpus, tmp_path / name)).embed_genes(kind="input").vectors for name in ("one", "two")
    )
    np.testing.assert_array_equal(a, b)


def test_cells_of_one_program_lie_together(corpus, tmp_path):
    """The fit ends above its start: cells are nearer to the cells of their main program than random axes put them."""
    from sklearn.neighbors import NearestNeighbors

    model = fit_projection(settings(corpus, tmp_path / "run"))
    draw = np.random.default_rng(0)
    programs = np.random.default_rng(9).gamma(0.2, 1, (6, 300))
    kind = draw.integers(0, 6, 200)
    counts = draw.poisson(1.0 * programs[kind]).astype(np.float32)
    coding = scfm.genes.protein_coding("human").iloc[:300]
    adata = anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=[*coding["ensembl_id"]]))
    vectors = model.embed_cells(model.tokenize(adata))
    chance = np.log1p(counts) @ draw.standard_normal((300, 8))

    def agreement(x) -> float:
        near = NearestNeighbors(n_neighbors=6, metric="cosine").fit(x).kneighbors(return_distance=False)
        return float((kind[near] == kind[:, None]).mean())

    assert agreement(vectors) > agreement(chance) + 0.1


def test_a_fitted_projection_can_be_adapted(corpus, tmp_path):
    fit_projection(settings(corpus, tmp_path / "run"))
    model = scfm.tl.adapt(anndata.read_h5ad(corpus / "set0.h5ad"), tmp_path / "run" / "model", n_axes=4)
    assert model.card.name == "run-adapted"


def test_the_command_says_what_it_fitted(corpus, tmp_path):
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(corpus, tmp_path / "run")))
    result = CliRunner().invoke(app, ["pretrain", str(tmp_path / "config.yaml"), "--set", "projection.n_axes=5"])
    assert result.exit_code == 0, result.output
    assert "240 human cells of 3 files" in result.output
    assert scfm.models.load(tmp_path / "run" / "model").transformer.width == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"corpus": {"files": []}}, "corpus.files is empty"),
        ({"corpus": {"files": ["nowhere"]}}, "no file or folder"),
        ({"projection": {"n_axis": 3}}, "did you mean n_axes"),
        ({"projection": {"n_axes": 1000, "min_genes": 1}}, "more than the 1000 axes"),
        ({"projection": {"min_genes": 250}}, "smallest file has 0 cells"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(corpus, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        fit_projection({**settings(corpus, tmp_path / "run"), **change})
    assert not (tmp_path / "run" / "model").exists()


def test_the_shipped_recipe_is_the_one_in_the_configuration():
    from pathlib import Path

    file = Path(__file__).parents[1] / "configs" / "scfm-mini.yaml"
    recipe = ProjectionConfig.read(file).projection
    card = scfm.models.cards()["scfm-mini"]
    assert {**card.details["recipe"]} == {**recipe.__dict__}
    assert [Path(f).stem for f in ProjectionConfig.read(file).corpus.files] == [*card.details["corpus"]]


def test_cells_of_the_corpus_are_known_again(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    seen = anndata.read_h5ad(corpus / "set1.h5ad")[:, ::-1].copy()
    other = seen.copy()
    other.X = sp.csr_matrix(other.X.toarray()[:, ::-1])
    both = anndata.concat([seen, other], index_unique="-")
    scfm.tl.embed(both, model, key_added="x", progress=False)
    told = both.uns["scfm"]["x"]["leakage"]
    assert told == {"status": "80 of the cells are known from its corpus", "seen_cells": 80}
    assert "80 of the cells are known" in str(scfm.get.report(both, "x"))


def test_of_a_model_without_fingerprints_nothing_is_claimed(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    model.seen = None
    adata = anndata.read_h5ad(corpus / "set1.h5ad")
    scfm.tl.embed(adata, model, key_added="x", progress=False)
    assert "not known" in adata.uns["scfm"]["x"]["leakage"]["status"]


# layers on top


def on_top(folder, start, **objective):
    return {
        "model": {"start": str(start), "on_top": True, "n_layers": 1, "n_heads": 2, "ff": 16, "max_length": 20},
        "objective": {"name": "contrastive", "lowest": 0.3, "highest": 1.0, "rates": 0.5, "panels": 0.3, **objective},
        "sampling": {"within": "file", "batch_tokens": 600, "block_rows": 16},
        "run": {"steps": 8, "learning_rate": 0.01, "warmup_steps": 1, "device": "cpu"},
        "validation": {"by": "file", "share": 0.3},
        "output": {"folder": str(folder), "progress": False, "tensorboard": False},
    }


def cosines(x, y):
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def test_layers_on_top_begin_as_no_change(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    higher = with_layers(model, "higher", n_layers=2, n_heads=3, max_length=20)
    adata = anndata.read_h5ad(corpus / "set1.h5ad")
    tokens = higher.tokenize(adata)
    assert tokens.lengths.max() == 20
    for pooling in ("unit", "plain"):
        plain = model.embed_cells(model.tokenize(adata), pooling=pooling)
        np.testing.assert_array_equal(higher.embed_cells(tokens, pooling=pooling), plain)


def test_trained_layers_move_the_cells_and_leave_the_sums_alone(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    adata = anndata.read_h5ad(corpus / "set1.h5ad")
    before = model.embed_cells(model.tokenize(adata))
    moved = {}
    for leash in (0.0, 1000.0):
        run = pretrain([corpus], on_top(tmp_path / f"leash {leash}", tmp_path / "run" / "model", leash=leash))
        tokens = run.model.tokenize(adata)
        np.testing.assert_allclose(run.model.embed_cells(tokens, hidden_layer=0), before, atol=1e-6)
        moved[leash] = 1 - cosines(run.model.embed_cells(tokens), before).mean()
        again = scfm.models.load(tmp_path / f"leash {leash}" / "model")
        np.testing.assert_array_equal(again.embed_cells(tokens), run.model.embed_cells(tokens))
    assert moved[0.0] > 0.01
    assert moved[1000.0] < moved[0.0] / 4


def test_a_trained_model_learns_to_find_the_other_view(corpus, tmp_path):
    fit_projection(settings(corpus, tmp_path / "run"))
    config = on_top(tmp_path / "on top", tmp_path / "run" / "model")
    run = pretrain([corpus], {**config, "run": {**config["run"], "steps": 60}})
    losses = run.history["eval_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert losses.iloc[-1] < run.history["eval_reference"].dropna().iloc[-1]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"n_heads": 5}, "the width 12 of run is no multiple of model.n_heads 5"),
        ({"fresh": True}, "choose one"),
        ({"start": None}, "name it with model.start"),
        ({"n_layers": 0}, "model.n_layers is 0"),
    ],
)
def test_impossible_layers_are_refused(corpus, tmp_path, entries, words):
    fit_projection(settings(corpus, tmp_path / "run"))
    config = on_top(tmp_path / "on top", tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match=words):
        pretrain([corpus], {**config, "model": {**config["model"], **entries}})


def test_layers_go_on_top_of_models_without_layers_only(corpus, tmp_path):
    model = fit_projection(settings(corpus, tmp_path / "run"))
    higher = with_layers(model, "higher", n_layers=1, n_heads=3, max_length=20)
    with pytest.raises(ConfigError, match="no sum over genes without layers"):
        with_layers(higher, "higher still", n_layers=1, n_heads=3, max_length=20)


def test_the_shipped_configuration_of_layers_can_be_read():
    from pathlib import Path

    configs = Path(__file__).parents[1] / "configs"
    config = PretrainConfig.read(configs / "scfm-mini-trunk.yaml")
    assert config.corpus.files == ProjectionConfig.read(configs / "scfm-mini.yaml").corpus.files
    assert config.model.on_top
    assert config.build_objective().leash > 0
