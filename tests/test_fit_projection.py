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
