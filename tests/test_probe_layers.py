"""Probes see only cells of other groups; the best layer is named with what cannot be told apart from it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from golden_cases import case
from model_cases import FAMILY_CASES
from sklearn.metrics import f1_score, r2_score
from training_cases import cells

import scfm
from scfm.errors import ConfigError
from scfm.tl._probe_layers import _folds, r_squared

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def load(tmp_path):
    return lambda family, *options: scfm.models.load(FAMILY_CASES[family](tmp_path / family / "checkpoint", *options))


@pytest.fixture(autouse=True)
def close_pictures():
    yield
    plt.close("all")


def labelled(family: str) -> ad.AnnData:
    adata = ad.read_h5ad(case("geneformer_v1" if family == "geneformer" else family) / "cells.h5ad")
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 2 == 0, "x", "y")
    adata.obs["amount"] = np.arange(adata.n_obs) * 1.5
    return adata


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_every_layer_of_every_family_is_probed_in_one_pass(family, load):
    model, adata = load(family), labelled(family)
    context = {"species": "human", "assay": "10x 3' v3", "modality": "dissociated"} if family == "nicheformer" else {}
    found = scfm.tl.probe_layers(adata, ["label", "amount"], model=model, context=context, n_boot=50, progress=False)
    n = model.transformer.n_layers
    assert found.table["layer"].tolist() == [*range(n + 1)] * 2
    assert found.table["value"].notna().all()
    shares = found.table.groupby("target")["best_in"].sum()
    np.testing.assert_allclose(shares, 1)
    best = found.best("label")
    assert best["behind"] == 0 and best["low"] <= best["value"] <= best["high"] + 1e-9


def test_vectors_are_those_that_embed_writes(load):
    model, adata = load("geneformer"), labelled("geneformer")
    from scfm.tl._open import open_cells
    from scfm.tl._probe_vectors import vectors_of_cells

    opened = open_cells(adata, model)
    n = model.transformer.n_layers
    found = vectors_of_cells(opened, np.arange(3, adata.n_obs), ["mean"], [0, n], 0, False)
    for k in (0, n):
        scfm.tl.embed(adata, model, pooling="mean", hidden_layer=k, key_added="e", progress=False)
        np.testing.assert_allclose(found["mean", k], adata.obsm["X_e"][3:], atol=1e-5)


def test_whole_groups_are_held_out():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 3, 90), rng.integers(0, 7, 90)
    seen = []
    for train, valid in _folds(y, groups, 90, 5, 0):
        assert not set(groups[train]) & set(groups[valid])
        seen.extend(valid)
    assert sorted(seen) == [*range(90)]
    assert len([*_folds(None, groups % 2, 90, 5, 0)]) == 2


def test_labels_that_follow_the_genes_are_read_off_and_noise_is_not():
    adata = cells(100, donors=5)
    adata.obs["noise"] = np.random.default_rng(1).permutation(np.repeat(["x", "y"], 50))
    found = scfm.tl.probe_layers(adata, ["kind", "noise"], "donor", n_boot=200, progress=False)
    assert found.best("kind")["value"] > 0.95
    row = found.best("noise")
    assert row["value"] < 0.75 and row["low"] < 0.6
    assert found.facts["folds"] == 5


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    guess = y + rng.normal(size=50)
    assert r_squared(y, guess).value == pytest.approx(r2_score(y, guess))
    from scfm.evaluation._scores import macro_f1, table_score

    a, b = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    assert table_score(a, b, macro_f1, n_rows=4).value == pytest.approx(f1_score(a, b, average="macro"))


def test_the_result_comes_back_from_a_file_and_is_drawn(load, tmp_path):
    model, adata = load("scgpt"), labelled("scgpt")
    adata.obs["a/b"] = adata.obs["label"]
    found = scfm.tl.probe_layers(
        adata, ["a/b", "amount"], model=model, pooling=["cls", "mean"], n_boot=50, progress=False
    )
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = scfm.get.layer_probes(ad.read_h5ad(tmp_path / "cells.h5ad"))
    assert repr(again) == repr(found)
    assert "a/b: best is layer" in repr(found) and "of the replicates" in repr(found)
    figure = scfm.pl.probe_layers(again)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        f"{t} · {p} ({s})" for t, s in (("a/b", "macro_f1"), ("amount", "r2")) for p in ("cls", "mean")
    ]
    assert len(axes.get_xticks()) == model.transformer.n_layers + 1
    assert len(axes.texts) == len(found.table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_key": "no"}, "no column 'no' to learn"),
        ({"group_key": "no"}, "no column 'no' for group_key"),
        ({"group_key": "one"}, "one group only"),
        ({"label_key": "one"}, "one class only"),
        ({"n_folds": 1}, "n_folds=1; at least 2"),
        ({"pooling": "no"}, "no pooling 'no'"),
        ({"layers": [7]}, "hidden_layer=7 does not exist"),
    ],
)
def test_what_cannot_be_probed_is_said(options, message):
    adata = cells(30)
    adata.obs["one"] = "x"
    with pytest.raises(ConfigError, match=message):
        scfm.tl.probe_layers(adata, **{"label_key": "kind", "progress": False, **options})


def test_a_missing_result_is_said():
    with pytest.raises(ConfigError, match=r"run scfm\.tl\.probe_layers"):
        scfm.pl.probe_layers(cells(5))


# curves


def test_curves_are_drawn_of_a_run_its_folder_and_its_table(tmp_path):
    adata = cells(60)
    result = scfm.tl.finetune(adata, target="kind", epochs=1, batch_cells=8, folder=tmp_path / "run", progress=False)
    for run in (result, tmp_path / "run", tmp_path / "run" / "log.csv", result.history):
        figure = scfm.pl.training(run)
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        assert {"training", "held out", "held out, without looking"} <= set(lines)
        steps = lines["held out"].get_xdata()
        assert steps[0] == 0 and len(steps) >= 3


def test_a_folder_without_a_log_is_said(tmp_path):
    with pytest.raises(ConfigError, match="there is no log"):
        scfm.pl.training(tmp_path)
    with pytest.raises(ConfigError, match="int is no run"):
        scfm.pl.training(3)
    (tmp_path / "log.csv").write_text("step,loss\n")
    with pytest.raises(ConfigError, match="nothing is logged yet"):
        scfm.pl.training(tmp_path)
