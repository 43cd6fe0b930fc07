"""`scfm.tl.annotate`: what it writes, what it leaves alone, what it refuses; the annotator that ships."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from annotation_cases import TYPES, cells
from golden_cases import case

import scfm
from scfm.annotation import Annotator, shipped
from scfm.errors import ConfigError

pytest.importorskip("sklearn", reason="fitting an annotator needs scikit-learn")

REFERENCE = cells()
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def query(n: int = 15) -> anndata.AnnData:
    return cells(n, seed=1)


def annotated(**options) -> anndata.AnnData:
    adata = query()
    options = {"reference": REFERENCE, "label_key": "cell_type", "method": "expression-linear", **options}
    scfm.tl.annotate(adata, progress=False, **options)
    return adata


def test_it_writes_label_score_margin_reason_and_probabilities() -> None:
    adata = annotated()
    before = query()
    assert set(adata.obs) - set(before.obs) == {f"scfm_{n}" for n in ("label", "score", "margin", "novelty", "reason")}
    assert [*adata.obs["scfm_label"].cat.categories] == [*sorted(TYPES), "unknown"]
    assert adata.obs["scfm_score"].between(0, 1).all()
    assert (adata.obs["scfm_margin"] <= adata.obs["scfm_score"] + 1e-6).all()
    table = scfm.get.annotation(adata)
    assert [*table.columns] == sorted(TYPES)
    np.testing.assert_allclose(table.max(axis=1), adata.obs["scfm_score"], atol=1e-6)
    assert (adata.X != before.X).nnz == 0


def test_labels_with_a_slash_survive_the_round_trip_through_a_file(tmp_path: Path) -> None:
    adata = annotated(key_added="a/b")
    adata.write_h5ad(tmp_path / "q.h5ad")
    again = anndata.read_h5ad(tmp_path / "q.h5ad")
    assert "CD4+/CD25 T" in scfm.get.annotation(again).columns
    assert (again.obs["a_b_label"].astype(str) == adata.obs["a_b_label"].astype(str)).all()
    np.testing.assert_array_equal(again.obsm["a_b_proba"], adata.obsm["a_b_proba"])
    facts = again.uns["scfm_annotation"]["a_b"]
    assert [*facts["classes"]] == sorted(TYPES)
    assert len(facts["thresholds"]) == len(TYPES)
    assert facts["evaluation"]["scores"]["macro_F1"]["value"] > 0.9


def test_columns_of_another_origin_are_not_overwritten() -> None:
    adata = query()
    adata.obs["scfm_label"] = "mine"
    with pytest.raises(ConfigError, match=r"'scfm_label', which scfm did not write"):
        scfm.tl.annotate(adata, REFERENCE, label_key="cell_type", progress=False)
    assert (adata.obs["scfm_label"] == "mine").all()
    scfm.tl.annotate(
        adata, REFERENCE, label_key="cell_type", method="expression-linear", key_added="new", progress=False
    )
    assert (adata.obs["scfm_label"] == "mine").all()


def test_it_may_be_run_again() -> None:
    adata = annotated()
    scfm.tl.annotate(adata, REFERENCE, label_key="cell_type", method="expression-knn", progress=False)
    assert adata.uns["scfm_annotation"]["scfm"]["method"] == "expression-knn"


def test_a_copy_leaves_the_object_as_it_was() -> None:
    adata = query()
    out = scfm.tl.annotate(
        adata, REFERENCE, label_key="cell_type", method="expression-linear", copy=True, progress=False
    )
    assert "scfm_label" in out.obs
    assert "scfm_label" not in adata.obs
    assert not adata.uns


def test_reference_annotator_and_file_of_one_give_the_same(tmp_path: Path) -> None:
    fitted = Annotator.fit(REFERENCE, "cell_type", model=None, method="expression-linear")
    fitted.save(tmp_path / "a.npz")
    REFERENCE.write_h5ad(tmp_path / "r.h5ad")
    first, second = query(), query()
    scfm.tl.annotate(first, fitted, progress=False)
    scfm.tl.annotate(second, tmp_path / "a.npz", progress=False)
    assert first.obs.equals(second.obs)
    third = query()
    scfm.tl.annotate(third, tmp_path / "r.h5ad", label_key="cell_type", method="expression-linear", progress=False)
    np.testing.assert_allclose(third.obsm["scfm_proba"], first.obsm["scfm_proba"], atol=1e-4)


def test_a_backed_object_is_annotated(tmp_path: Path) -> None:
    query().write_h5ad(tmp_path / "q.h5ad")
    backed = anndata.read_h5ad(tmp_path / "q.h5ad", backed="r")
    scfm.tl.annotate(backed, REFERENCE, label_key="cell_type", method="expression-linear", progress=False)
    assert (backed.obs["scfm_label"] == annotated().obs["scfm_label"]).all()


def test_duplicated_cell_names_do_not_mix_cells_up() -> None:
    adata = query()
    adata.obs_names = ["same"] * adata.n_obs
    scfm.tl.annotate(adata, REFERENCE, label_key="cell_type", method="expression-linear", progress=False)
    assert (adata.obs["scfm_label"].astype(str).array == annotated().obs["scfm_label"].astype(str).array).all()


@pytest.mark.parametrize("n", [0, 2])
def test_tiny_objects_are_annotated(n: int) -> None:
    adata = query()[:n].copy()
    scfm.tl.annotate(adata, REFERENCE, label_key="cell_type", method="expression-linear", progress=False)
    assert adata.obsm["scfm_proba"].shape == (n, len(TYPES))


def test_majority_votes_are_reported_by_cluster() -> None:
    adata = query()
    truth = adata.obs["cell_type"].astype(str)
    adata.obs["cluster"] = truth.map({name: str(i) for i, name in enumerate(TYPES)})
    scfm.tl.annotate(
        adata, REFERENCE, label_key="cell_type", method="expression-linear", smooth="cluster", progress=False
    )
    assert (adata.obs.groupby("cluster")["scfm_label"].nunique() == 1).all()
    assert adata.obs["scfm_vote"].between(0.5, 1).all()
    told = adata.uns["scfm_annotation"]["scfm"]["clusters"]
    assert [*told["name"]] == ["0", "1", "2", "3"]
    plain = annotated()
    assert "scfm_vote" not in plain.obs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_key": None}, "say with label_key="),
        ({"label_key": "nothing"}, "no column 'nothing'"),
        ({"reference": 3}, "expected an AnnData object or the path"),
        ({"smooth": "nothing"}, "is no column of obs"),
        ({"smooth": "neighbors"}, "run sc.pp.neighbors"),
        ({"method": "finetuned"}, "is not one of auto"),
        ({"method": "prompt"}, "leave out the reference"),
        ({"method": "prompt", "reference": None, "label_key": None}, "names no cells itself"),
        ({"reference": None}, "is fitted already"),
        ({"tuning": {"epochs": 1}}, "belongs to method='finetune'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(options, message: str) -> None:
    adata = query()
    with pytest.raises(ConfigError, match=message):
        scfm.tl.annotate(adata, progress=False, **{"reference": REFERENCE, "label_key": "cell_type", **options})
    assert "scfm_label" not in adata.obs


def test_a_tuned_model_names_cells_and_is_calibrated_on_others() -> None:
    adata = query()
    tuning = {"method": "full", "epochs": 1}
    scfm.tl.annotate(
        adata, cells(80), label_key="cell_type", method="finetune", tuning=tuning, batch_key="donor", progress=False
    )
    facts = adata.uns["scfm_annotation"]["scfm"]
    assert facts["reference"]["n_cells"] < 0.7 * 320, "the cells that the model was tuned on calibrate, too"
    assert facts["space"]["model"] != "scfm-mini"
    assert (adata.obs["scfm_label"].astype(str) == adata.obs["cell_type"].astype(str)).mean() > 0.8


def test_a_model_that_names_cells_itself_is_asked() -> None:
    model = scfm.models.load(case("scmulan") / "checkpoint")
    adata = anndata.read_h5ad(case("scmulan") / "cells.h5ad")
    scfm.tl.annotate(adata, model=model, method="prompt", reject=False, progress=False)
    tokens = model.tokenize(adata)
    names = [*scfm.models.name_cells(model, tokens).values()][-1]
    assert [*adata.obs["scfm_label"].astype(str)] == [*names.names]
    np.testing.assert_allclose(adata.obsm["scfm_proba"], names.probabilities, atol=1e-6)
    two = [*names.labels[:2]]
    scfm.tl.annotate(adata, model=model, method="prompt", labels=two, reject=False, progress=False)
    assert set(adata.obs["scfm_label"]) <= set(two)
    with pytest.raises(ConfigError, match=r"which .* does not know"):
        scfm.tl.annotate(adata, model=model, method="prompt", labels=["nothing"], progress=False)


def test_a_classifier_that_was_trained_with_the_model_is_asked() -> None:
    model = scfm.models.load(case("scbert") / "checkpoint", checkpoint="finetune_best")
    adata = anndata.read_h5ad(case("scbert") / "cells.h5ad")
    scfm.tl.annotate(adata, model=model, method="prompt", reject=False, progress=False)
    (found,) = scfm.models.name_cells(model, model.tokenize(adata)).values()
    assert [*adata.obs["scfm_label"].astype(str)] == [*found.names]
    np.testing.assert_allclose(adata.obsm["scfm_proba"], found.probabilities, atol=1e-6)


def test_the_shipped_annotator_is_small_and_tells_its_scope_and_scores() -> None:
    path = Path(scfm.__file__).parent / "annotation" / "data" / "blood.npz"
    assert path.stat().st_size <= 2_000_000
    about = shipped().about
    assert "Human blood" in about["scope"]
    assert {"pbmc_1k_v3", "pbmc3k_labelled"} <= about["evaluation"]["unseen"].keys()
    assert about["evaluation"]["outside"]["baron_human_pancreas"]["unknown"] > 0.9
    assert set(about["sources"]) == {"zheng_sorted_mudan", "lymph_node_ref"}


def test_names_without_a_reference_or_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    adata = query()
    scfm.tl.annotate(adata, progress=False)
    assert adata.obsm["scfm_proba"].shape == (adata.n_obs, len(shipped().classes))


@pytest.mark.skipif(not DATA.is_dir(), reason="the labelled data sets are not here")
@pytest.mark.parametrize(("name", "folder"), [("pbmc_1k_v2", "benchmark"), ("pbmc3k_labelled", "reference")])
def test_the_shipped_annotator_scores_what_its_card_says(name: str, folder: str) -> None:
    adata = anndata.read_h5ad(DATA / folder / f"{name}.h5ad")[::4].copy()
    names = {
        "B": "B cell",
        "NK": "NK cell",
        "CD14+ Mono": "monocyte",
        "FCGR3A+ Mono": "monocyte",
        "CD8 T": "CD8 T cell",
    }
    names |= dict.fromkeys(("CD4 T", "Naive CD4 T", "Memory CD4 T"), "CD4 T cell")
    adata = adata[adata.obs["cell_type"].isin(names)].copy()
    scfm.tl.annotate(adata, progress=False)
    right = adata.obs["scfm_label"].astype(str) == adata.obs["cell_type"].astype(str).map(names)
    assert right.mean() > shipped().about["evaluation"]["unseen"][name]["accuracy"] - 0.06


@pytest.mark.skipif(not DATA.is_dir(), reason="the labelled data sets are not here")
def test_the_shipped_annotator_does_not_name_cells_of_the_pancreas() -> None:
    adata = anndata.read_h5ad(DATA / "corpus" / "baron_human_pancreas.h5ad")[::6].copy()
    scfm.tl.annotate(adata, progress=False)
    assert (adata.obs["scfm_label"] == "unknown").mean() > 0.85
    assert (adata.obs["scfm_reason"] == "too far from the reference").mean() > 0.8


def test_an_empty_count_matrix_is_all_unknown() -> None:
    adata = query(2)
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    scfm.tl.annotate(adata, REFERENCE, label_key="cell_type", method="expression-linear", progress=False)
    assert (adata.obs["scfm_label"] == "unknown").all()
    assert (adata.obs["scfm_reason"] == "too few genes").all()
