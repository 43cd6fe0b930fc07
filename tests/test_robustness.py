"""`scfm.tl.robustness`: what it says of cells whose truth is known, what it refuses, and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import ConfigError, ControlError, CountsError, GeneMatchError, MissingDependencyError
from scfm.evaluation import RobustnessReport, _baselines
from scfm.evaluation._cells import Part, common_genes
from scfm.evaluation._controls import failures
from scfm.evaluation._experiment import Plan, run
from scfm.evaluation._question import Measurement, question
from scfm.evaluation._space import Design
from scfm.evaluation._stress import LEVELS, Stress, altered_blocks, changed_neighbours, drift, kept_genes, setting
from scfm.evaluation._subjects import NO_COST, Cells, OfArray, OfBaseline, Subject

N_GENES = 600
LABELS = ("T", "B", "NK")
QUICK: dict[str, Any] = {
    "label_key": "cell_type", "stress": (), "baselines": ("pca",), "n_boot": 60, "n_draws": 1, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def genes() -> list[str]:
    vocabulary = scfm.models.load("scfm-mini").vocabulary
    return [vocabulary.names[i] for i in np.flatnonzero(vocabulary.is_gene)[:N_GENES]]


def cells(
    genes: list[str], n: int = 30, assays: tuple[str, ...] = ("a", "b"), seed: int = 0, bias: float = 0.3
) -> AnnData:
    """Cells of three labels, each with genes of its own; assays bend every gene a little."""
    rng = np.random.default_rng(seed)
    g = len(genes)
    base = rng.gamma(0.6, size=g) + 0.05
    markers = np.ones((len(LABELS), g))
    for i in range(len(LABELS)):
        markers[i, 40 * i : 40 * (i + 1)] = 8
    bent = np.exp(rng.normal(scale=bias, size=(len(assays), g)))
    rows, obs = [], []
    for a, assay in enumerate(assays):
        for i, label in enumerate(LABELS):
            p = base * markers[i] * bent[a]
            rows += [rng.multinomial(rng.integers(800, 1600), p / p.sum()) for _ in range(n)]
            obs += [{"assay": assay, "cell_type": label, "donor": f"d{k % 4}"} for k in range(n)]
    names = [f"{o['assay']}{k}" for k, o in enumerate(obs)]
    return AnnData(
        sp.csr_matrix(np.array(rows), dtype=np.float32),
        obs=pd.DataFrame(obs, index=names),
        var=pd.DataFrame(index=genes),
    )


@pytest.fixture(scope="module")
def adata(genes: list[str]) -> AnnData:
    found = cells(genes)
    found.uns["neighbors"] = {"mine": 1}
    found.obsp["connectivities"] = sp.eye_array(found.n_obs, format="csr")
    return found


@pytest.fixture(scope="module")
def report(adata: AnnData) -> RobustnessReport:
    """One whole run."""
    return scfm.tl.robustness(
        adata, stress=("depth", "panel"), n_boot=100, n_draws=2, group_key="donor", progress=False
    )


def test_every_row_has_a_value_an_interval_and_its_numbers(report: RobustnessReport) -> None:
    table = report.to_dataframe()
    assert {"PCA-50", "HVG-2000", "scfm-mini", "scfm-mini + center", "oracle"} <= set(table["embedding"])
    scored = table[table["value"].notna() & table["low"].notna()]
    assert len(scored) > 0.9 * table["value"].notna().sum()
    assert (scored["low"] <= scored["high"]).all()
    assert (scored["n_cells"] > 0).all()
    assert set(table["n_units"]) == {4}
    pca = table[table["embedding"] == "PCA-50"]
    assert pca["difference"].isna().all()
    compared = table[~table["kind"].isin(["control"]) & table["p"].notna()]
    assert (compared["p_holm"] >= compared["p"] - 1e-12).all()


def test_easy_cells_are_told_apart_and_controls_are_at_chance(report: RobustnessReport) -> None:
    scores = report.summary(["kNN within", "kNN transfer"])
    assert (scores.loc[["PCA-50", "scfm-mini", "oracle"]] > 0.9).all(axis=None)
    assert (scores.loc[["shuffled rows", "random vectors"]] < 0.6).all(axis=None)


def test_shallower_cells_move_further_from_where_they_were(report: RobustnessReport) -> None:
    moved = report.stress("drift").loc["scfm-mini"]
    depth = [moved[f"depth {x}"] for x in ("50 %", "20 %", "10 %", "5 %")]
    assert depth == sorted(depth)
    f1 = report.stress("stressed kNN").loc["scfm-mini"]
    assert f1["none"] >= f1["depth 5 %"]
    assert "panel 300 genes" in f1
    assert "panel 1,000 genes" not in f1  # there are 600 genes
    assert any("panels of that size were left out" in note for note in report.notes)


def test_the_text_says_verdict_numbers_costs_and_leakage(report: RobustnessReport) -> None:
    text = str(report)
    assert text.startswith("Batch, label and person can be told apart")
    for expected in (
        "over 4 groups",
        "depth 10 %",
        "a -> b",
        "cells_per_second",
        "fitted here",
        "unknown",
        "pip install",
    ):
        assert expected in text, expected


def test_a_verdict_is_three_sentences(report: RobustnessReport) -> None:
    for name, text in report.verdicts.items():
        assert len(re.findall(r"\.(?= [A-Zs]|$)", text)) == 3, text
        assert name in text


def test_what_the_user_had_is_untouched_and_the_report_survives_a_file(
    adata: AnnData, report: RobustnessReport, tmp_path: Path
) -> None:
    assert adata.uns["neighbors"] == {"mine": 1}
    assert set(adata.uns) == {"neighbors", "scfm_robustness"}
    assert list(adata.obsm) == []
    assert list(adata.obsp) == ["connectivities"]
    adata.write_h5ad(tmp_path / "x.h5ad")
    read = scfm.get.robustness(anndata.read_h5ad(tmp_path / "x.h5ad"))
    pd.testing.assert_frame_equal(read.to_dataframe(), report.to_dataframe(), check_dtype=False)
    assert str(read) == str(report)
    with pytest.raises(ConfigError, match="holds no embeddings"):
        read.plot("umap")


def test_the_page_loads_nothing_from_elsewhere(report: RobustnessReport, tmp_path: Path) -> None:
    text = report.to_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|<script|@import""", text)
    assert text.count("<img") >= 2
    assert "scfm-mini" in text


@pytest.mark.parametrize("kind", ["summary", "stress"])
def test_pictures_are_drawn_of_the_report_and_of_the_annotated_data(
    adata: AnnData, report: RobustnessReport, kind: Any
) -> None:
    import matplotlib.pyplot as plt

    for source in (report, adata):
        figure = scfm.pl.robustness(source, kind)
        assert figure.axes
        plt.close(figure)
    with pytest.raises(ConfigError, match="none of summary"):
        scfm.pl.robustness(report, "pie")  # type: ignore[arg-type]


def test_a_run_gives_the_same_numbers_again(adata: AnnData) -> None:
    first, second = (scfm.tl.robustness(adata.copy(), **QUICK).to_dataframe() for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_sets_with_genes_of_their_own_are_compared_on_common_genes_and_absence_is_no_zero(genes: list[str]) -> None:
    a, b = (cells(genes, 30, (name,), seed=3) for name in "ab")
    a, b = a[:, :500].copy(), b[:, 100:][:, ::-1].copy()
    joint = scfm.tl.robustness({"a": a, "b": b}, **QUICK)
    assert any("the 400 genes that all 2 data sets have" in note for note in joint.notes)
    embedded = [x.obsm["X_scfm_mini"] for x in (a, b) if scfm.tl.embed(x, progress=False) is None]
    np.testing.assert_allclose(joint.vectors["scfm-mini"], np.concatenate(embedded), rtol=1e-5, atol=1e-6)
    assert "scfm_robustness" not in a.uns


def test_genes_named_in_two_ways_are_joined(genes: list[str]) -> None:
    table = scfm.genes.table("human").set_index("ensembl_id")
    known = [g for g in genes if g in table.index and table.loc[g, "symbol"]]
    variables = [pd.DataFrame(index=known), pd.DataFrame(index=[table.loc[g, "symbol"] for g in known])]
    first, second = common_genes(variables)
    assert len(first) > 0.9 * len(known)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(GeneMatchError, match="no gene in common"):
        common_genes([pd.DataFrame(index=["x1", "x2"]), pd.DataFrame(index=["y1", "y2"])])


def parts(adata: AnnData) -> list[Part]:
    source = scfm.counts.find(adata)
    return [Part("data", source, np.arange(adata.n_vars), np.arange(adata.n_obs))]


def dense(blocks: Any, shape: tuple[int, int]) -> np.ndarray:
    out = [sp.csr_matrix((b.data, b.indices, b.indptr), shape=(b.n_cells, shape[1])).toarray() for b in blocks]
    return np.concatenate(out)


@pytest.fixture(scope="module")
def before(adata: AnnData) -> Any:
    return setting(parts(adata), np.unique(adata.obs["assay"], return_inverse=True)[1], 0)


@pytest.mark.parametrize("kind", LEVELS)
def test_alterations_do_what_they_say_and_leave_the_matrix_alone(adata: AnnData, before: Any, kind: str) -> None:
    x = adata.X.toarray()
    level = {"panel": 300.0}.get(kind, LEVELS[kind][1])
    y = dense(altered_blocks(Stress(kind, level), before, 0, 0), x.shape)
    again = dense(altered_blocks(Stress(kind, level), before, 0, 0), x.shape)
    other = dense(altered_blocks(Stress(kind, level), before, 0, 1), x.shape)
    np.testing.assert_array_equal(y, again)
    assert (y != other).any()
    np.testing.assert_array_equal(adata.X.toarray(), x)
    total, altered = x.sum(axis=1), y.sum(axis=1)
    if kind == "depth":
        assert (y <= x).all()
        assert altered.sum() / total.sum() == pytest.approx(level, rel=0.05)
    if kind == "panel":
        kept = kept_genes(Stress(kind, level), before, 0)
        assert kept.sum() == 300
        np.testing.assert_array_equal(y, x * kept)
        assert (kept_genes(Stress(kind, 500.0), before, 0) >= kept).all()
    if kind == "dropout":
        assert np.isin(y[x > 0], [0]).mean() == pytest.approx(level, abs=0.03)
        assert ((y == x) | (y == 0)).all()
    if kind == "ambient":
        np.testing.assert_array_equal(altered, total)
        kept = np.minimum(x, y).sum() / total.sum()
        assert 1 - level < kept < 1
    if kind == "doublets":
        assert (y >= x).all()
        assert (altered.sum() - total.sum()) / total.sum() == pytest.approx(level, rel=0.1)


def test_an_altered_cell_does_not_depend_on_the_other_cells(adata: AnnData, before: Any) -> None:
    stress = Stress("depth", 0.1)
    all_cells = dense(altered_blocks(stress, before, 0, 0), adata.shape)
    few = parts(adata[:7].copy())
    alone = dense(altered_blocks(stress, setting(few, np.zeros(7, dtype=int), 0), 0, 0), (7, adata.n_vars))
    np.testing.assert_array_equal(all_cells[:7], alone)


def test_true_totals_are_altered_with_the_counts(adata: AnnData) -> None:
    from dataclasses import replace

    from scfm.evaluation import _stress

    (block,) = scfm.counts.find(adata).blocks()
    whole = replace(block, totals=np.full(block.n_cells, 5000.0))
    thin = _stress._rebuilt(whole, [_stress._thin(0.5, np.random.default_rng(0), *c) for c in _stress._cells(whole)])
    assert thin.totals is not None
    assert thin.totals.mean() == pytest.approx(2500, rel=0.02)


def test_drift_is_0_for_what_stays_and_about_1_for_strangers() -> None:
    x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    assert drift(x, x).max() == pytest.approx(0, abs=1e-5)
    assert drift(x, np.roll(x, 1, axis=0)).mean() == pytest.approx(1, abs=0.05)
    lost = x.copy()
    lost[3] = np.nan
    assert drift(x, lost)[3] == 1
    first, there = np.array([1, 0, 0]), np.array([0, 1])
    np.testing.assert_array_equal(changed_neighbours(np.array([[0, 1], [2, 0]]), first, there), [0, 1, 1])


def test_a_model_sees_altered_cells_as_the_verb_would(adata: AnnData) -> None:
    report = scfm.tl.robustness(adata.copy(), **{**QUICK, "stress": ("dropout",)})
    assert report.stress("drift").loc["scfm-mini", "dropout 10 %"] < 0.5
    assert (
        report.stress("drift").loc["scfm-mini", "dropout 50 %"]
        > report.stress("drift").loc["scfm-mini", "dropout 10 %"]
    )


def test_confounding_is_said_first(adata: AnnData) -> None:
    mixed = adata.copy()
    mixed.obs["donor"] = np.where(mixed.obs["assay"] == "a", "d1", "d2")
    report = scfm.tl.robustness(mixed, **QUICK)
    assert str(report).startswith("donor and batch are confounded")
    mixed.obs["assay"] = mixed.obs["cell_type"].map({"T": "a", "B": "b", "NK": "b"})
    report = scfm.tl.robustness(mixed, **QUICK)
    assert str(report).startswith("Label and batch are confounded")


def test_cells_without_a_label_and_rare_labels_are_left_out_and_said(adata: AnnData) -> None:
    some = adata.copy()
    some.obs["cell_type"] = some.obs["cell_type"].astype(object)
    some.obs.iloc[:5, some.obs.columns.get_loc("cell_type")] = np.nan
    some.obs.iloc[5:8, some.obs.columns.get_loc("cell_type")] = "rare"
    report = scfm.tl.robustness(some, **QUICK)
    assert report.parameters["n_cells"] == adata.n_obs - 8
    assert report.notes[0].startswith("5 cells without a label")
    assert "rare (3)" in report.notes[1]


def test_one_batch_and_one_label_are_scored_on_what_can_be_said(adata: AnnData) -> None:
    report = scfm.tl.robustness(adata.copy(), **{**QUICK, "batch_key": None})
    metrics = set(report.to_dataframe()["metric"])
    assert "kNN within" in metrics
    assert not metrics & {"kNN transfer", "batch ASW", "batch probe", "total"}
    assert any("One batch only" in note for note in report.notes)
    one = adata.copy()
    one.obs["cell_type"] = "T"
    report = scfm.tl.robustness(one, **{**QUICK, "stress": ("depth",)})
    metrics = set(report.to_dataframe()["metric"])
    assert {"drift", "same-batch neighbours", "batch ASW", "batch probe", "batch total"} <= metrics
    assert not metrics & {"kNN within", "label ASW", "stressed kNN"}
    assert any("One label only" in note for note in report.notes)
    assert "1 label, 2 batches" in str(report)
    assert not re.search(r"[+-]0\.000, -0\.000", str(report))


def test_embeddings_of_others_are_scored_and_cells_without_a_vector_left_out_of_all(adata: AnnData) -> None:
    own = adata.copy()
    x = np.random.default_rng(0).normal(size=(own.n_obs, 5))
    x[:4] = np.nan
    own.obsm["X_mine"] = x
    report = scfm.tl.robustness(own, use_rep="X_mine", **QUICK)
    assert "scfm-mini" not in report.embeddings
    assert report.summary().loc["X_mine", "kNN within"] < 0.6
    assert any("4 cells have no vector" in note for note in report.notes)
    assert len(report.vectors["PCA-50"]) == own.n_obs - 4


WRONG = [
    ({"batch_key": "chip"}, ConfigError, "batch_key='chip' is not a column of obs"),
    ({"label_key": "kind"}, ConfigError, "label_key='kind' is not a column of obs"),
    ({"group_key": "who"}, ConfigError, "group_key='who' is not a column"),
    ({"use_rep": "X_none"}, ConfigError, "is not in obsm"),
    ({"use_rep": {"x": np.zeros((3, 2))}}, ConfigError, r"shape \(3, 2\).*expected numbers"),
    ({"use_rep": {"x": np.full((180, 2), np.nan)}}, ConfigError, "no finite vector for 180"),
    ({"stress": ("heat",)}, ConfigError, "stress='heat' is none of depth"),
    ({"baselines": ("umap",)}, ConfigError, "baselines='umap' is none of pca"),
    ({"align": ("twist",)}, ConfigError, "neither 'center' nor 'harmony'"),
    ({"n_boot": 3}, ConfigError, "n_boot=3; at least 50"),
    ({"min_cells": 100}, ConfigError, "only 0 of 180 cells"),
    ({"models": "no-such-model"}, ConfigError, "no model"),
    ({"layer": "nothing"}, CountsError, "no layer 'nothing'"),
    ({"distance": "taxi"}, ConfigError, "distance='taxi' is neither"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG, ids=[next(iter(w[0])) for w in WRONG])
def test_what_cannot_work_is_said_before_the_long_work(
    adata: AnnData, options: Mapping[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        scfm.tl.robustness(adata, **{**QUICK, **options})


def test_a_column_that_names_every_cell_is_no_batch(adata: AnnData) -> None:
    own = adata.copy()
    own.obs["barcode"] = own.obs_names
    with pytest.raises(ConfigError, match="'barcode' has 180 values, none of them on more than 1 cells"):
        scfm.tl.robustness(own, **{**QUICK, "batch_key": "barcode"})


def test_other_things_than_annotated_data_are_refused() -> None:
    for wrong in ({}, {"a": 3}, "cells.h5ad"):
        with pytest.raises(ConfigError, match="AnnData"):
            scfm.tl.robustness(wrong)  # type: ignore[arg-type]


def test_missing_extras_are_named_with_the_line_that_installs_them(adata: AnnData) -> None:
    if not _baselines.BASELINES["scvi"].is_here:
        with pytest.raises(MissingDependencyError, match=r"pip install 'scfm\[scvi\]'"):
            scfm.tl.robustness(adata, **{**QUICK, "baselines": ("scvi",)})


def test_a_control_that_scores_wrongly_stops_the_report(report: RobustnessReport) -> None:
    from dataclasses import replace

    design = Design.of(np.repeat(LABELS, 100), np.tile(["a", "b"], 150))
    fine = {"kNN within": 0.33, "kNN transfer": 0.3, "same-batch neighbours": 0.0}
    perfect = {"kNN within": 1.0, "kNN transfer": 1.0, "same-batch neighbours": 0.01}
    assert failures({"shuffled rows": fine, "random vectors": fine, "oracle": perfect}, design) == []
    assert "at most" in failures({"shuffled rows": perfect}, design)[0]
    assert "or more was expected" in failures({"oracle": {**perfect, "kNN within": 0.9}}, design)[0]
    assert "the batch plays no part" in failures({"oracle": {**perfect, "same-batch neighbours": 0.5}}, design)[0]
    stopped = replace(report, failed=["shuffled rows have kNN within 0.90"])
    for show in (str, RobustnessReport.to_html, RobustnessReport.plot):
        with pytest.raises(ControlError, match=r"shuffled rows have kNN within 0\.90"):
            show(stopped)
    assert "not to be trusted" in repr(stopped)
    assert len(stopped.to_dataframe())


class Stopping(Subject):
    """Ends the run, as Ctrl-C does."""

    name, kind = "stopping", "model"

    def embed(self, cells: Cells) -> Any:
        raise KeyboardInterrupt


def plan(adata: AnnData, subjects: list[Subject], **options: Any) -> Plan:
    asks = question([Measurement("data", scfm.counts.find(adata), adata.obs)], "assay", "cell_type", None, 10)
    defaults: dict[str, Any] = {"n_boot": 50, "with_controls": False}
    return Plan(asks.parts, asks.design, asks.usable, subjects, **{**defaults, **options})


def test_ctrl_c_keeps_what_is_finished(adata: AnnData) -> None:
    pca = OfBaseline(_baselines.BASELINES["pca"])
    outcome = run(plan(adata, [pca, Stopping()]))
    assert set(outcome.scores) == {"PCA-50"}
    assert not outcome.finished
    assert "Interrupted" in outcome.notes[0]
    with pytest.raises(KeyboardInterrupt):
        run(plan(adata, [Stopping()]))


def test_large_data_are_scored_on_several_stratified_subsamples(adata: AnnData) -> None:
    x = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype(np.float32)
    outcome = run(plan(adata, [OfArray("x", x)], max_cells=100, n_subsamples=2))
    measured = outcome.scores["x"]["kNN within"]
    assert len(measured) == 2
    assert measured[0].value != measured[1].value
    assert len(outcome.vectors["x"]) == 100
    assert outcome.costs["x"][0] is NO_COST


def test_baselines_keep_unmeasured_genes_at_their_mean(adata: AnnData) -> None:
    fitted = _baselines.fit_pca(adata.X, np.zeros(adata.n_obs, dtype=int), 0)
    assert fitted.project is not None
    nothing = np.zeros(adata.n_vars, dtype=bool)
    np.testing.assert_allclose(fitted.project(adata.X, nothing), 0, atol=1e-5)
    np.testing.assert_allclose(fitted.project(adata.X, ~nothing), fitted.cells, atol=1e-4)


def test_centring_moves_the_mean_of_every_batch_to_the_origin(adata: AnnData) -> None:
    own = adata.copy()
    own.obsm["X"] = np.random.default_rng(0).normal(size=(own.n_obs, 3)) + (own.obs["assay"] == "a").to_numpy()[:, None]
    own.obsm["X"][0] = np.nan
    assert scfm.tl.align(own, "X", "assay") is None
    x = own.obsm["X_center"]
    for assay in "ab":
        np.testing.assert_allclose(np.nanmean(x[(own.obs["assay"] == assay).to_numpy()], axis=0), 0, atol=1e-5)
    assert np.isnan(x[0]).all()
    copied = scfm.tl.align(own, "X", "assay", key_added="Y", copy=True)
    assert copied is not None
    assert "Y" in copied.obsm
    assert "Y" not in own.obsm
    for wrong in ({"use_rep": "Z"}, {"batch_key": "z"}, {"method": "z"}):
        with pytest.raises(ConfigError):
            scfm.tl.align(own, **{"use_rep": "X", "batch_key": "assay", **wrong})


def test_harmony_mixes_batches(adata: AnnData) -> None:
    pytest.importorskip("harmonypy")
    own = adata.copy()
    label = np.unique(own.obs["cell_type"], return_inverse=True)[1]
    first = (own.obs["assay"] == "a").to_numpy()
    x = 4 * np.eye(6)[label] + np.random.default_rng(0).normal(scale=0.3, size=(own.n_obs, 6))
    own.obsm["X"] = x + 1.0 * first[:, None]
    scfm.tl.align(own, "X", "assay", "harmony")
    apart = [abs(own.obsm[k][first].mean() - own.obsm[k][~first].mean()) for k in ("X", "X_harmony")]
    assert apart[1] < apart[0] / 2


def test_scvi_gives_cells_without_counts_no_vector_and_says_nothing(
    genes: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scvi")
    own = cells(genes, n=10)
    own.X[3] = 0
    counts = sp.csr_matrix(own.X)
    batch = np.unique(own.obs["assay"], return_inverse=True)[1].ravel()
    x = _baselines.fit_scvi(counts, batch, 0).cells
    assert np.isnan(x).all(axis=1).tolist() == [i == 3 for i in range(own.n_obs)]
    assert np.isfinite(np.delete(x, 3, axis=0)).all()
    assert capfd.readouterr() == ("", "")


def test_recommend_says_one_line_and_leaves_the_cells_alone(adata: AnnData) -> None:
    own = adata.copy()
    keys = set(own.uns)
    own.obsm["X_noise"] = np.random.default_rng(0).normal(size=(own.n_obs, 5))
    found = scfm.tl.recommend(own, use_rep="X_noise", baselines=("pca",), n_boot=100, progress=False)
    assert found.representation == "PCA-50"
    assert found.sure
    assert str(found).startswith("Use PCA-50 here")
    assert "\n" not in str(found)
    assert set(own.uns) == keys
    best = {"perfect": np.eye(3)[np.unique(own.obs["cell_type"], return_inverse=True)[1]]}
    own.X = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, own.shape).astype(np.float32))
    found = scfm.tl.recommend(own, use_rep=best, baselines=("pca",), n_boot=200, align=(), progress=False)
    assert found.representation == "perfect"
    assert found.sure


def test_the_command_writes_page_and_table(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    page, table = tmp_path / "out.html", tmp_path / "out.csv"
    common = ["robustness", str(tmp_path / "cells.h5ad"), "--stress", "none", "--baseline", "pca", "--no-progress"]
    done = CliRunner().invoke(app, [*common, "--n-boot", "60", "--report", str(page), "--table", str(table)])
    assert done.exit_code == 0, done.output
    assert "PCA-50" in done.stdout
    assert "<table>" in page.read_text()
    assert len(pd.read_csv(table)) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "out.csv", "out.html"]
    wrong = CliRunner().invoke(app, [*common, "--report", str(tmp_path / "no" / "x.html")])
    assert wrong.exit_code == 1
    assert "is not there" in wrong.output


def test_cells_of_the_corpus_are_known_again_count_by_count(adata: AnnData) -> None:
    model = scfm.models.load("scfm-mini")
    model.seen = np.sort(np.unique(model.tokenize(adata).per_cell["fingerprint"])[:7])
    report = scfm.tl.robustness(adata.copy(), models=model, **QUICK)
    assert set(report.to_dataframe().query("embedding == 'scfm-mini'")["leakage"]) == {"seen"}
    assert any("7 of the cells are, count by count, in the corpus" in note for note in report.notes)
    assert "none of this is zero-shot" in report.verdicts["scfm-mini"]


def test_some_cells_are_held_in_the_order_asked(adata: AnnData, tmp_path: Path) -> None:
    rows = np.array([7, 3, 3, 100])
    adata.write_h5ad(tmp_path / "x.h5ad")
    for cells_of in (adata, anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")):
        held = scfm.counts.find(cells_of).only(rows)
        np.testing.assert_array_equal(dense(held.blocks(3), (4, adata.n_vars)), adata.X.toarray()[rows])
        assert list(held.obs_names) == list(adata.obs_names[rows])
        assert not held.is_backed
