"""Scores of an annotation: against scikit-learn, by hand, and under resampling; and their pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from annotation_cases import cells

import scfm
from scfm.errors import ConfigError
from scfm.evaluation import annotation_scores
from scfm.ontology import Ontology

metrics = pytest.importorskip("sklearn.metrics", reason="compared with scikit-learn")

CLASSES = ["A", "B", "C", "D"]


def drawn(n: int = 600, seed: int = 0):
    rng = np.random.default_rng(seed)
    true = rng.choice([*CLASSES, "new"], n, p=[0.4, 0.3, 0.2, 0.02, 0.08])
    p = rng.dirichlet(np.ones(4), n)
    p[np.arange(n), [CLASSES.index(t) if t in CLASSES else 0 for t in true]] += 0.4 * (true != "new")
    p /= p.sum(axis=1, keepdims=True)
    given = np.where(p.max(axis=1) < 0.35, "unknown", np.array(CLASSES)[p.argmax(axis=1)])
    return true, given, p


def test_scores_are_those_of_scikit_learn() -> None:
    true, given, p = drawn()
    scores = annotation_scores(true, given, p, CLASSES, n_boot=20)
    known = true != "new"
    large = [c for c in CLASSES if (true == c).sum() >= 20]
    assert large == ["A", "B", "C"]
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true[known], given[known]))
    f1 = metrics.f1_score(true[known], given[known], labels=large, average="macro")
    assert scores["macro F1"] == pytest.approx(f1)
    recall = metrics.recall_score(true[known], given[known], labels=large, average="macro")
    assert scores["balanced accuracy"] == pytest.approx(recall)
    assert scores["novelty AUROC"] == pytest.approx(metrics.roc_auc_score(~known, 1 - p.max(axis=1)))
    assert scores["coverage"] == pytest.approx((given[known] != "unknown").mean())
    named = known & (given != "unknown")
    assert scores["accuracy when named"] == pytest.approx((given[named] == true[named]).mean())
    assert not scores.per_class.loc["D", "counted"]


def test_calibration_error_and_risk_are_what_they_are_by_hand() -> None:
    p = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    true = np.array(["A"] * 8 + ["B"] * 2 + ["A"] * 6 + ["B"] * 4)
    scores = annotation_scores(true, ["A"] * 20, p, ["A", "B"], n_boot=5, min_cells=1)
    assert scores["ECE"] == pytest.approx((0.1 * 10 + 0.0 * 10) / 20)
    wrong = np.cumsum(true == "B") / np.arange(1, 21)
    assert scores["AURC"] == pytest.approx(wrong.mean())
    assert scores.curve["risk"].iloc[-1] == pytest.approx(0.3)


def test_intervals_hold_the_value_and_are_wider_over_donors() -> None:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(8), 60)
    right = rng.random(480) < np.repeat(np.linspace(0.1, 1, 8), 60)
    true = np.array(["A", "B"] * 240)
    given = np.where(right, true, np.where(true == "A", "B", "A"))
    cells_, donors = (annotation_scores(true, given, groups=g, n_boot=300) for g in (None, donor))
    for scores in (cells_, donors):
        row = scores.table.loc["accuracy"]
        assert row["low"] < row["value"] < row["high"]
    assert (cells_.over, donors.over) == ("cells", "groups")
    width = [s.table.loc["accuracy", "high"] - s.table.loc["accuracy", "low"] for s in (cells_, donors)]
    assert width[1] > 1.5 * width[0]


def test_a_broader_name_earns_part_of_the_credit_and_the_broadest_none() -> None:
    tree = {"CD4": "T", "CD8": "T", "T": "lymphocyte", "B": "lymphocyte", "lymphocyte": "cell"}
    true = ["CD4", "CD8", "B"]

    def score(given: list[str]) -> float:
        return annotation_scores(true, given, ontology=tree, n_boot=2, min_cells=1)["tolerant F1"]

    right, broad, wrong, nothing = (score(g) for g in (true, ["T", "T", "B"], ["B", "B", "CD4"], ["lymphocyte"] * 3))
    assert right == 1
    assert right > broad > wrong
    assert nothing == 0
    assert broad == pytest.approx(2 * 3 / (5 + 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["A"], ["A", "B"]), "they must match"),
        (([], []), "one name per cell"),
        ((["A"], ["A"], [[1.0]]), "pass the name of each column"),
        ((["A"], ["A"], [[1.0, 0.0]], ["B", "C"]), "no true name is among the classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        annotation_scores(*arguments)


OBO = """format-version: 1.2

[Term]
id: CL:0000542
name: lymphocyte

[Term]
id: CL:0000084
name: T cell
is_a: CL:0000542 ! lymphocyte

[Term]
id: CL:0000624
name: CD4-positive, alpha-beta T cell
synonym: "CD4 T" EXACT []
synonym: "T helper" BROAD []
is_a: CL:0000084 {source="x"} ! T cell

[Term]
id: CL:0000625
name: CD8-positive, alpha-beta T cell
is_a: CL:0000084 ! T cell

[Term]
id: CL:0000236
name: B cell
is_a: CL:0000542 ! lymphocyte

[Term]
id: CL:9999999
name: gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


def test_an_obo_file_is_a_tree_of_labels(tmp_path) -> None:
    (tmp_path / "cl.obo").write_text(OBO)
    tree = Ontology.of(tmp_path / "cl.obo")
    labels = ["cd4 t", "CL:0000625", "B cell"]
    assert tree.groups(labels) == {"T cell": frozenset(labels[:2]), "lymphocyte": frozenset(labels)}
    assert "CL:9999999" not in tree.parents
    small = tree.among(labels)
    assert small.groups(labels) == tree.groups(labels)
    assert len(small.parents) == 4


@pytest.mark.parametrize(("content", "message"), [(None, "there is no file"), ("nothing", r"holds no \[Term\]")])
def test_a_file_that_is_no_ontology_is_refused(tmp_path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "cl.obo").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Ontology.of(tmp_path / "cl.obo")


def test_a_label_cannot_be_its_own_ancestor() -> None:
    with pytest.raises(ConfigError, match="its own ancestor"):
        Ontology.of({"a": "b", "b": "a"})


@pytest.fixture(scope="module")
def annotated():
    adata = cells(15, seed=1)
    scfm.tl.annotate(adata, cells(), label_key="cell_type", method="expression-linear", progress=False)
    adata.obsm["X_umap"] = np.random.default_rng(0).standard_normal((adata.n_obs, 2))
    return adata


@pytest.mark.parametrize("kind", ["confusion", "reliability", "coverage", "umap"])
def test_every_picture_is_drawn(annotated, kind: str, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    figure = scfm.pl.annotation(annotated, kind, truth="cell_type")
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    texts = {t.get_text() for axes in figure.axes for t in (axes.title, axes.xaxis.label, axes.yaxis.label)}
    assert texts & {"given", "confidence", "share of cells that are named", "label"}


def test_a_picture_of_what_is_not_there_is_refused(annotated) -> None:
    for options, message in (
        ({"kind": "pie"}, "is not one of"),
        ({"kind": "confusion"}, "is no column of obs"),
        ({"kind": "confusion", "truth": "cell_type", "key": "x"}, "no annotation 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            scfm.pl.annotation(annotated, **options)
    bare = annotation_scores(["a", "b"], ["a", "b"], n_boot=2)
    with pytest.raises(ConfigError, match="without probabilities"):
        scfm.pl.annotation(bare, "reliability")


def test_scores_are_plain_types() -> None:
    true, given, p = drawn(100)
    plain = annotation_scores(true, given, p, CLASSES, n_boot=5).to_dict()
    assert pd.json_normalize(plain).shape[0] == 1
    assert plain["per_class"]["class"] == CLASSES[: len(plain["per_class"]["class"])]
