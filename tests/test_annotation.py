"""Annotators: what they choose, what they know, what they reject, and what they refuse."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotation_cases import TYPES, cells, names, with_vectors

import scfm
from scfm.annotation import METHODS, Annotator
from scfm.annotation._annotation import voted
from scfm.annotation._calibration import fit_temperature, tempered
from scfm.annotation._choose import best_method, splits
from scfm.annotation._classifiers import Knn, Linear
from scfm.annotation._expression import GeneSpace, cell_keys
from scfm.annotation._novelty import Distance
from scfm.errors import ConfigError, GeneMatchError

pytest.importorskip("sklearn", reason="fitting an annotator needs scikit-learn")

REFERENCE = cells()
QUERY = cells(30, seed=1)


@pytest.fixture(scope="module")
def annotator() -> Annotator:
    return Annotator.fit(REFERENCE, "cell_type")


@pytest.fixture(scope="module")
def expression_only() -> Annotator:
    return Annotator.fit(REFERENCE, "cell_type", model=None)


def accuracy(annotation, query=QUERY) -> float:
    return float((annotation.labels == query.obs["cell_type"].astype(str).to_numpy()).mean())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "stack"])
def test_every_method_names_cells_of_known_types(method: str) -> None:
    found = Annotator.fit(REFERENCE, "cell_type", method=method)
    assert set(found.members) == set(METHODS[method])
    assert accuracy(found.annotate(QUERY, reject=False)) > 0.9


def test_auto_is_no_worse_than_any_method_that_it_compared(annotator: Annotator) -> None:
    scores = annotator.about["scores"]
    assert scores[annotator.method] >= max(scores.values()) - 0.05
    assert accuracy(annotator.annotate(QUERY)) > 0.9


def test_auto_says_in_one_line_what_it_chose_and_what_each_scored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="scfm"):
        found = Annotator.fit(REFERENCE, "cell_type", model=None)
    (line,) = [r.getMessage() for r in caplog.records if "macro F1" in r.getMessage()]
    assert line.startswith(f"{found.method} was taken")
    assert all(f"{name} 0." in line or f"{name} 1." in line for name in found.about["scores"])


def test_results_follow_the_order_of_the_rows(annotator: Annotator) -> None:
    order = np.random.default_rng(0).permutation(QUERY.n_obs)
    straight, shuffled = annotator.annotate(QUERY), annotator.annotate(QUERY[order].copy())
    assert (straight.labels[order] == shuffled.labels).all()
    np.testing.assert_allclose(straight.proba[order], shuffled.proba, atol=1e-5)
    np.testing.assert_allclose(straight.novelty[order], shuffled.novelty, atol=1e-4)


def test_a_cell_alone_gets_the_same_name_as_among_others(annotator: Annotator) -> None:
    together = annotator.annotate(QUERY)
    alone = annotator.annotate(QUERY[5:6].copy())
    assert alone.labels[0] == together.labels[5]
    np.testing.assert_allclose(alone.proba[0], together.proba[5], atol=1e-5)


def test_probabilities_are_of_the_classes_and_add_up_to_one(annotator: Annotator) -> None:
    found = annotator.annotate(QUERY)
    assert found.classes == tuple(sorted(TYPES))
    np.testing.assert_allclose(found.proba.sum(axis=1), 1, atol=1e-5)
    named = found.labels != "unknown"
    assert (found.labels[named] == np.array(found.classes)[found.proba[named].argmax(axis=1)]).all()


def test_held_out_cells_are_calibrated() -> None:
    reference = cells(150, strength=1.8, seed=4)
    found = Annotator.fit(reference, "cell_type", model=None)
    new = cells(250, strength=1.8, seed=5)
    said = found.annotate(new, reject=False)
    scores = scfm.evaluation.annotation_scores(new.obs["cell_type"], said.labels, said.proba, said.classes, n_boot=20)
    assert 0.5 < scores["accuracy"] < 0.999, "too easy or too hard to say anything about calibration"
    assert scores["ECE"] <= 0.05


def test_a_new_type_is_unknown_and_known_ones_are_not(annotator: Annotator) -> None:
    new = cells(30, ("Erythrocyte",), seed=2, strength=30)
    assert (annotator.annotate(new).labels == "unknown").mean() > 0.9
    assert (annotator.annotate(QUERY).labels == "unknown").mean() < 0.05
    assert annotator.annotate(new).novelty.min() > np.quantile(annotator.annotate(QUERY).novelty, 0.9)


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_the_user_sets_the_share_of_known_cells_that_are_rejected(annotator: Annotator, share: float) -> None:
    many = cells(200, seed=9)
    rejected = (annotator.annotate(many, false_rejection=share, tolerance=0).labels == "unknown").mean()
    assert abs(rejected - share) < 0.05 + share / 4


def test_a_rejected_cell_has_a_reason_and_others_have_none(annotator: Annotator) -> None:
    both = anndata.concat([QUERY, cells(20, ("Erythrocyte",), seed=2, strength=30)])
    found = annotator.annotate(both, false_rejection=0.2, tolerance=0)
    unknown = found.labels == "unknown"
    assert unknown.any()
    assert (found.reason[unknown] != "").all()
    assert (found.reason[~unknown] == "").all()
    assert "too far from the reference" in found.reason


def test_cells_with_few_genes_are_unknown_and_say_so(annotator: Annotator) -> None:
    few = QUERY[:4].copy()
    x = few.X.toarray()
    x[0] = 0
    x[1, np.flatnonzero(x[1])[5:]] = 0
    few.X = sp.csr_matrix(x)
    found = annotator.annotate(few)
    assert [*found.labels[:2]] == ["unknown", "unknown"]
    assert [*found.reason[:2]] == ["too few genes", "too few genes"]
    assert np.isnan(found.score[0]) and np.isnan(found.proba[0]).all()
    assert (found.labels[2:] != "unknown").all()


def test_without_rejection_every_cell_with_genes_has_a_class(annotator: Annotator) -> None:
    new = cells(30, ("Erythrocyte",), seed=2, strength=30)
    assert set(annotator.annotate(new, reject=False).labels) <= set(TYPES)


def test_only_the_labels_that_are_asked_for_are_given(annotator: Annotator) -> None:
    found = annotator.annotate(QUERY, labels=["B", "Mono"], reject=False)
    assert found.classes == ("B", "Mono")
    assert set(found.labels) == {"B", "Mono"}
    own = QUERY.obs["cell_type"].isin(["B", "Mono"]).to_numpy()
    assert (found.labels[own] == QUERY.obs["cell_type"].astype(str).to_numpy()[own]).mean() > 0.9


def test_ambiguous_cells_get_the_name_of_the_type_above() -> None:
    # the two kinds of T cells are the same cells: nobody can tell them apart
    def mixture(seed: int) -> anndata.AnnData:
        alike = cells(40, ("CD4 T", "CD8 T"), strength=1.0, seed=seed)
        return anndata.concat([alike, cells(40, ("B",), strength=6, seed=seed)], index_unique="-", keys=["t", "b"])

    tree = {"CD4 T": "T cell", "CD8 T": "T cell", "T cell": "lymphocyte", "B": "lymphocyte"}
    fitted = Annotator.fit(mixture(3), "cell_type", model=None, ontology=tree)
    new = mixture(4)
    found = fitted.annotate(new, false_rejection=0.6, tolerance=0)
    backed_off = found.labels == "T cell"
    assert backed_off.any()
    truth = new.obs["cell_type"].astype(str).to_numpy()
    assert np.isin(truth[backed_off], ["CD4 T", "CD8 T"]).all()
    assert all(reason.startswith("ambiguous between") for reason in found.reason[backed_off])
    assert (found.score[backed_off] >= found.proba[backed_off].max(axis=1)).all()


def test_a_saved_annotator_gives_equal_results_in_a_new_process(annotator: Annotator, tmp_path: Path) -> None:
    annotator.save(tmp_path / "a.npz")
    QUERY.write_h5ad(tmp_path / "q.h5ad")
    code = (
        "import sys, numpy as np; from scfm.annotation import Annotator\n"
        "found = Annotator.load(sys.argv[1]).annotate(sys.argv[2])\n"
        "np.savez(sys.argv[3], proba=found.proba, novelty=found.novelty, labels=found.labels.astype(str))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "a.npz"), str(tmp_path / "q.h5ad"), str(tmp_path / "o.npz")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = annotator.annotate(QUERY)
    with np.load(tmp_path / "o.npz") as there:
        assert (there["labels"] == here.labels.astype(str)).all()
        np.testing.assert_array_equal(there["proba"], here.proba)
        np.testing.assert_array_equal(there["novelty"], here.novelty)


def test_a_saved_annotator_holds_no_pickle(annotator: Annotator, tmp_path: Path) -> None:
    annotator.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(arrays["about.json"].tobytes())
    assert tuple(about["classes"]) == annotator.classes
    assert all(a.dtype != object for a in arrays.values())


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_no_annotator_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.npz"
    if content is None:
        np.savez(path, x=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="no annotator"):
        Annotator.load(path)
    with pytest.raises(ConfigError, match=r"no file"):
        Annotator.load(tmp_path / "b.npz")


def test_a_backed_query_gives_what_the_same_cells_give_in_memory(annotator: Annotator, tmp_path: Path) -> None:
    QUERY.write_h5ad(tmp_path / "q.h5ad")
    backed = anndata.read_h5ad(tmp_path / "q.h5ad", backed="r")
    np.testing.assert_array_equal(annotator.annotate(backed).proba, annotator.annotate(QUERY).proba)
    np.testing.assert_array_equal(annotator.annotate(tmp_path / "q.h5ad").proba, annotator.annotate(QUERY).proba)


def test_memory_does_not_grow_with_the_query(expression_only: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    look = Annotator._look
    monkeypatch.setattr(
        Annotator, "_look", lambda self, part, measured: seen.append(part.counts.shape[0]) or look(self, part, measured)
    )
    query = cells(700, seed=8)
    expression_only.annotate(query)
    assert sum(seen) == query.n_obs
    assert max(seen) <= 1024 < query.n_obs


def test_a_query_with_other_names_and_fewer_genes_is_read(expression_only: Annotator) -> None:
    table = scfm.genes.table("human").set_index("ensembl_id")["symbol"]
    other = QUERY[:, ::2].copy()
    other.var_names = [table[name] for name in other.var_names]
    found = expression_only.annotate(other, reject=False)
    assert found.facts["genes_missing"] == len(names()) - other.n_vars
    assert accuracy(found) > 0.85


def test_cells_of_another_species_go_through_orthologues(expression_only: Annotator) -> None:
    pairs = scfm.genes.orthologues().set_index("human_ensembl_id")["mouse_ensembl_id"]
    pairs = pairs[~pairs.index.duplicated()]
    known = [n for n in QUERY.var_names if n in pairs.index]
    mouse = QUERY[:, known].copy()
    mouse.var_names = [pairs[n] for n in known]
    mouse = mouse[:, ~mouse.var_names.duplicated()].copy()
    with pytest.raises(GeneMatchError):
        expression_only.annotate(mouse)
    found = expression_only.annotate(mouse, reading=scfm.annotation.Reading(orthologues=True), reject=False)
    assert accuracy(found) > 0.85


# what a reference may be


def test_cells_without_a_label_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    some = REFERENCE.copy()
    some.obs["cell_type"] = some.obs["cell_type"].astype(object)
    some.obs.iloc[:7, some.obs.columns.get_loc("cell_type")] = np.nan
    found = Annotator.fit(some, "cell_type", model=None, method="expression-linear")
    assert found.about["n_without_label"] == 7
    assert found.about["n_cells"] == some.n_obs - 7
    assert "7 cells of the reference have no label" in caplog.text


def test_rare_classes_are_learnt_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    rare = cells(2, ("Erythrocyte",), strength=30)
    both = anndata.concat([REFERENCE, rare], index_unique="-", keys=["known", "rare"])
    found = Annotator.fit(both, "cell_type", model=None)
    assert "Erythrocyte" in found.classes
    assert found.about["rare_classes"] == ["Erythrocyte"]
    assert "cannot be held out: Erythrocyte" in caplog.text
    assert (found.annotate(cells(5, ("Erythrocyte",), strength=30, seed=5), reject=False).labels == "Erythrocyte").any()


def test_whole_donors_are_held_out() -> None:
    groups = REFERENCE.obs["donor"].to_numpy()
    codes = REFERENCE.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    pairs, grouped = splits(codes, groups, seed=0)
    assert grouped
    assert all(set(groups[learn]).isdisjoint(groups[test]) for learn, test in pairs)
    found = Annotator.fit(REFERENCE, "cell_type", model=None, method="expression-linear", batch_key="donor")
    assert found.about["held_out_groups"] is True


def test_groups_that_determine_the_label_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    codes = np.repeat([0, 1, 2], 20)
    pairs, grouped = splits(codes, codes.astype(str), seed=0)
    assert not grouped
    assert len(pairs) == 5
    assert "the groups determine the label" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obs.rename(columns={"cell_type": "other"}), "no column 'cell_type'"),
        (lambda a: a.obs.assign(cell_type=np.nan), "no cell of the reference has a label"),
        (lambda a: a.obs.assign(cell_type="B"), "two classes or more"),
        (lambda a: a.obs.assign(cell_type=["unknown", *["B"] * (a.n_obs - 1)]), "rename"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(change, message: str) -> None:
    bad = REFERENCE.copy()
    bad.obs = change(bad)
    with pytest.raises(ConfigError, match=message):
        Annotator.fit(bad, "cell_type", model=None)


def test_disjoint_genes_are_refused(expression_only: Annotator) -> None:
    other = QUERY.copy()
    other.var_names = [f"made_up_{i}" for i in range(other.n_vars)]
    with pytest.raises(GeneMatchError, match="no gene in common"):
        expression_only.annotate(other)
    with pytest.raises(GeneMatchError, match="no gene in common"):
        Annotator.fit(REFERENCE, "cell_type", model=None, query_var=other.var)


def test_genes_outside_every_table_are_compared_by_name() -> None:
    renamed, query = REFERENCE.copy(), QUERY.copy()
    renamed.var_names = query.var_names = [f"locus_{i}" for i in range(query.n_vars)]
    found = Annotator.fit(renamed, "cell_type", model=None, method="expression-linear")
    assert accuracy(found.annotate(query)) > 0.9


def test_a_query_from_the_reference_is_noticed(annotator: Annotator, caplog: pytest.LogCaptureFixture) -> None:
    annotator.annotate(QUERY)
    assert "are cells of the reference" not in caplog.text
    found = annotator.annotate(REFERENCE[::2].copy())
    assert found.facts["n_in_reference"] == len(found)
    assert "are cells of the reference" in caplog.text


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_queries_are_answered(annotator: Annotator, n: int) -> None:
    found = annotator.annotate(QUERY[:n].copy())
    assert len(found) == n == len(found.proba)
    assert found.proba.shape == (n, len(TYPES))


def test_a_label_that_the_reference_does_not_have_is_refused(annotator: Annotator) -> None:
    with pytest.raises(ConfigError, match=r"'NK', which the reference does not have"):
        annotator.annotate(QUERY, labels=["B", "NK"])


@pytest.mark.parametrize("options", [{"false_rejection": 1.5}, {"tolerance": -1}])
def test_impossible_rates_are_refused(annotator: Annotator, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a share below 1"):
        annotator.annotate(QUERY, **options)


def test_methods_that_read_an_embedding_need_one() -> None:
    with pytest.raises(ConfigError, match="reads an embedding"):
        Annotator.fit(REFERENCE, "cell_type", model=None, method="knn")
    with pytest.raises(ConfigError, match="is not one of auto"):
        Annotator.fit(REFERENCE, "cell_type", model=None, method="magic")


# vectors that are there already


def test_vectors_that_both_bring_along_are_used_without_counts() -> None:
    reference, query = with_vectors(REFERENCE.copy()), with_vectors(QUERY.copy())
    reference.X = query.X = None
    found = Annotator.fit(reference, "cell_type", model=None, use_rep="X_vec", method="knn")
    assert accuracy(found.annotate(query)) > 0.85
    with pytest.raises(ConfigError, match="holds no 'X_vec'"):
        found.annotate(QUERY)


def test_vectors_of_the_same_model_are_reused_and_give_the_same() -> None:
    reference, query = REFERENCE.copy(), QUERY.copy()
    scfm.tl.embed(reference, progress=False)
    scfm.tl.embed(query, progress=False)
    computed = Annotator.fit(REFERENCE, "cell_type", method="knn").annotate(QUERY)
    reused = Annotator.fit(reference, "cell_type", method="knn").annotate(query)
    np.testing.assert_allclose(reused.proba, computed.proba, atol=1e-5)
    query.obsm["X_scfm_mini"][:] = reference.obsm["X_scfm_mini"][0]
    spoilt = Annotator.fit(reference, "cell_type", method="knn").annotate(query)
    assert len(set(spoilt.proba.argmax(axis=1))) == 1, "stored vectors were not used"


def test_vectors_of_another_version_are_refused() -> None:
    reference = REFERENCE.copy()
    scfm.tl.embed(reference, progress=False)
    reference.uns["scfm"]["scfm_mini"]["version"] = "0.0.1"
    with pytest.raises(ConfigError, match=r"computed by scfm 0\.0\.1"):
        Annotator.fit(reference, "cell_type")
    Annotator.fit(reference, "cell_type", method="knn", use_rep=False)


def test_vectors_of_another_model_are_refused() -> None:
    reference, query = REFERENCE.copy(), QUERY.copy()
    for adata in (reference, query):
        scfm.tl.embed(adata, progress=False)
    query.uns["scfm"]["scfm_mini"]["model"] = "another"
    fitted = Annotator.fit(reference, "cell_type", method="knn", use_rep="X_scfm_mini", model=None)
    with pytest.raises(ConfigError, match="vectors of another, but the reference was embedded by scfm-mini"):
        fitted.annotate(query, use_rep="X_scfm_mini")
    with pytest.raises(ConfigError, match="holds vectors of another"):
        Annotator.fit(query, "cell_type", model=scfm.models.load("scfm-mini"), use_rep="X_scfm_mini")


# the parts


def test_regression_in_plain_arrays_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    for n_classes in (2, 4):
        x = rng.standard_normal((60, 5)).astype(np.float32)
        codes = rng.integers(0, n_classes, 60)
        theirs = LogisticRegression(C=1.0, max_iter=300, tol=1e-3).fit(x, codes).predict_proba(x)
        np.testing.assert_allclose(Linear.fit(x, codes, n_classes, 1.0, 0).proba(x), theirs, atol=1e-4)


def test_a_class_that_does_not_occur_gets_no_probability() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    codes = np.array([0, 2] * 10)
    assert Linear.fit(x, codes, 3, 1.0, 0).proba(x)[:, 1].max() == 0
    assert Knn(x, codes, 3, 5).proba(x)[:, 1].max() == 0


def test_closer_neighbours_count_more() -> None:
    x = np.array([[0.0, 0.0], [1.0, 0.0], [1.1, 0.0]], dtype=np.float32)
    proba = Knn(x, np.array([0, 1, 1]), 2, 3).proba(np.array([[0.1, 0.0]], dtype=np.float32))
    assert proba[0, 0] > 1 / 3


@pytest.mark.slow
def test_approximate_neighbours_agree_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynndescent")
    from scfm.annotation import _classifiers

    rng = np.random.default_rng(0)
    x, codes = rng.standard_normal((600, 8)).astype(np.float32), rng.integers(0, 3, 600)
    query = rng.standard_normal((50, 8)).astype(np.float32)
    exact = Knn(x, codes, 3).proba(query)
    monkeypatch.setattr(_classifiers, "EXACT", 100)
    approximate = Knn(x, codes, 3).proba(query)
    assert np.abs(exact - approximate).mean() < 0.02


def test_a_temperature_makes_overconfident_probabilities_honest() -> None:
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(3), 4000)
    codes = np.array([rng.choice(3, p=p) for p in honest])
    bold = tempered(honest, 0.3)
    found = fit_temperature(bold, codes)
    assert found == pytest.approx(1 / 0.3, rel=0.1)
    np.testing.assert_allclose(tempered(bold, found), honest, atol=0.05)


def test_distance_is_that_of_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4000, 3)) * [1, 2, 5]).astype(np.float32)
    found = Distance.fit(x, np.zeros(len(x), dtype=np.int64), 1)
    shrunk = 0.9 * np.diag([1, 4, 25]) + 0.1 * 10 * np.eye(3)
    expected = np.sqrt((x**2 / np.diag(shrunk)).sum(axis=1))
    np.testing.assert_allclose(found(x), expected, rtol=0.1, atol=0.1)


def test_the_simplest_of_equal_methods_is_the_first() -> None:
    assert best_method({"a": [0.8, 0.9, 0.85], "b": [0.8, 0.9, 0.86]}) == "a"
    assert best_method({"a": [0.70, 0.71, 0.70], "b": [0.80, 0.81, 0.81]}) == "b"


def test_equal_cells_have_equal_keys_and_others_do_not() -> None:
    keys = cell_keys(QUERY.X.astype(np.float32))
    assert len(np.unique(keys)) == QUERY.n_obs
    assert (cell_keys(QUERY.X[::-1].tocsr()) == keys[::-1]).all()


def test_columns_of_one_gene_are_added_up() -> None:
    from scfm.counts import CountBlock

    space = GeneSpace(names()[:3], "human")
    match = space.match(pd.DataFrame(index=[names()[0], f"{names()[0]}.2", names()[2]]))
    block = CountBlock(np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32), np.array([1.0, 2.0, 5.0]), 3)
    assert space.counts(block, match).toarray().tolist() == [[3.0, 0.0, 5.0]]


def test_a_majority_vote_is_by_cluster_or_graph() -> None:
    labels = np.array(["a", "a", "b", "b", "b"], dtype=object)
    voted_labels, share = voted(labels, np.array([0, 0, 0, 1, 1]))
    assert [*voted_labels] == ["a", "a", "a", "b", "b"]
    np.testing.assert_allclose(share, [2 / 3] * 3 + [1, 1])
    graph = sp.csr_matrix(np.array([[0, 1, 1, 0, 0]] * 2 + [[1, 1, 0, 0, 0]] + [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]))
    assert [*voted(labels, graph.astype(float))[0]] == ["a", "a", "a", "b", "b"]
