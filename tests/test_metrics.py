"""Metrics of embeddings: equal to scikit-learn, at their limits on data whose answer is known, sure as often as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from scfm.evaluation import _metrics, _scib, metric_table
from scfm.evaluation._clusters import best_leiden, kmeans
from scfm.evaluation._confounding import composition_distance, confounding, duplicated
from scfm.evaluation._experiment import _only_possible
from scfm.evaluation._leakage import Dataset, leakage
from scfm.evaluation._neighbours import nearest
from scfm.evaluation._scores import (
    Score,
    adjusted_rand,
    balanced_accuracy,
    difference,
    macro_f1,
    mean_of,
    mean_of_cells,
    mean_of_groups,
    normalised_mutual_information,
    table_score,
)
from scfm.evaluation._space import Design, Space, prepared
from scfm.evaluation._statistics import (
    Resampling,
    holm,
    interval,
    p_value,
    resample_cells,
    resample_groups,
    subsample,
)
from scfm.evaluation._transfer import N_SEARCHED, FoldedVotes, Transfer, cross_validated, knn_labels

N = 120
"""Cells of each label and batch."""


def design(n_labels: int = 3, n_batches: int = 2, n: int = N) -> Design:
    label = np.repeat(np.arange(n_labels), n_batches * n)
    batch = np.tile(np.repeat(np.arange(n_batches), n), n_labels)
    return Design.of(label.astype(str), batch.astype(str))


def blobs(by: Any, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """Cells around one corner per code, in any direction alike."""
    codes = np.unique(by, return_inverse=True)[1].ravel()
    x = np.eye(codes.max() + 1)[codes]
    return np.hstack([x, np.zeros((len(x), 6))]) + np.random.default_rng(seed).normal(
        scale=noise, size=(len(x), x.shape[1] + 6)
    )


def space(x: np.ndarray, d: Design) -> Space:
    return Space(prepared(x), d)


def values(x: np.ndarray, d: Design) -> dict[str, float]:
    found: dict[str, Any] = {}
    for computation in _metrics.computable(len(d.labels), len(d.batches)):
        if not set(computation.gives) & {"iLISI", "cLISI", "BRAS", "kBET", "PCR"}:
            found.update(_only_possible(computation, space(x, d)))
    return {k: v.value if isinstance(v, Score) else v for k, v in found.items()}


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_tables_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, other = rng.integers(0, 4, 200), rng.integers(0, 6, 200)
    guess = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    assert table_score(truth, other, normalised_mutual_information).value == pytest.approx(
        sk.normalized_mutual_info_score(truth, other)
    )
    assert table_score(truth, other, adjusted_rand).value == pytest.approx(sk.adjusted_rand_score(truth, other))
    assert table_score(truth, guess, macro_f1).value == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert table_score(truth, guess, balanced_accuracy).value == pytest.approx(sk.balanced_accuracy_score(truth, guess))


def test_f1_is_over_the_classes_of_the_truth_and_no_prediction_is_a_wrong_one() -> None:
    truth, guess = np.array([0, 0, 1, 1]), np.array([0, 2, 1, -1])
    expected = sk.f1_score(truth, guess, labels=[0, 1], average="macro")
    assert table_score(truth, guess, macro_f1, n_rows=3).value == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2])
def test_equal_partitions_of_few_cells_agree_fully(n: int) -> None:
    codes = np.arange(n)
    assert table_score(codes, codes, adjusted_rand).value == 1
    assert table_score(codes, codes, normalised_mutual_information).value == 1


def test_means_of_groups_count_groups_alike() -> None:
    x, group = np.array([1.0, 1, 1, 0]), np.array([0, 0, 0, 1])
    assert mean_of_cells(x).value == 0.75
    assert mean_of_groups(x, group).value == 0.5
    used = np.array([True, True, False, False])
    assert mean_of_groups(x, group, used).value == 1
    assert mean_of_groups(x, group, used).n == 2
    both = mean_of([mean_of_cells(x), mean_of_groups(x, group)])
    assert both.value == pytest.approx(0.625)
    assert difference(mean_of_cells(x), mean_of_groups(x, group)).value == pytest.approx(0.25)


def test_silhouettes_equal_scikit_learn_and_isolated_labels_are_those_of_fewest_batches() -> None:
    d = design()
    d = d[np.flatnonzero((d.label != 0) | (d.batch == 0))]
    s = space(blobs(d.label, 0.4), d)
    widths = (sk.silhouette_samples(s.x, d.label) + 1) / 2
    assert _metrics.label_asw(s)["label ASW"].value == pytest.approx(widths.mean())
    assert _metrics.isolated_labels(s)["isolated labels"].value == pytest.approx(widths[d.label == 0].mean())


def test_neighbours_are_exact_and_leave_the_cell_itself_out() -> None:
    x = prepared(np.random.default_rng(0).normal(size=(60, 5)))
    rows, distances = nearest(x, None, 7)
    full = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(full, np.inf)
    np.testing.assert_array_equal(rows, np.argsort(full, axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :7], atol=1e-3)


def test_knn_transfer_is_the_majority_of_cosine_neighbours() -> None:
    rng = np.random.default_rng(1)
    x, y = prepared(rng.normal(size=(200, 8))), prepared(rng.normal(size=(50, 8)))
    labels = rng.integers(0, 2, 200)  # two labels and 15 votes: no ties
    expected = KNeighborsClassifier(15, metric="cosine", algorithm="brute").fit(x, labels).predict(y)
    np.testing.assert_array_equal(knn_labels(x, labels, y), expected)


def test_one_search_gives_the_votes_of_every_fold() -> None:
    d = design(3, 1, 80)
    x = prepared(blobs(d.label, 0.6))
    expected = cross_validated(knn_labels, x, d.label, 0)
    votes = FoldedVotes.of(d.label, 0)
    np.testing.assert_array_equal(votes.predict(*nearest(x, None, N_SEARCHED)), expected)


def test_cells_without_a_vector_get_no_label() -> None:
    x = prepared(np.random.default_rng(0).normal(size=(30, 4)))
    query = x[:3].copy()
    query[1] = np.nan
    assert (knn_labels(x, np.zeros(30, dtype=int), query) == [0, -1, 0]).all()


LIMITS = {
    "label": {  # biology, nothing of the batch
        "NMI (k-means)": 1, "ARI (k-means)": 1, "NMI (best Leiden)": 1, "ARI (best Leiden)": 1, "label ASW": 0.9,
        "isolated labels": 0.9, "graph connectivity": 1, "batch ASW": 0.97, "same-batch neighbours": 0,
        "effective batches": 1, "batch probe": 0, "kNN within": 1, "kNN transfer": 1, "kNN drop": 0, "linear within": 1,
        "linear transfer": 1, "linear drop": 0,
    },
    "batch": {  # the batch, nothing of biology
        "NMI (k-means)": 0, "ARI (k-means)": 0, "NMI (best Leiden)": 0, "ARI (best Leiden)": 0, "label ASW": 0.5,
        "isolated labels": 0.5, "batch ASW": 0.1, "same-batch neighbours": 1, "effective batches": 0, "batch probe": 1,
        "kNN within": 0.33, "kNN transfer": 0.25, "linear within": 0.33, "linear transfer": 0.25,
    },
    "both": {  # every label and batch apart from all others
        "NMI (best Leiden)": 0.76, "batch ASW": 0.1, "same-batch neighbours": 1, "effective batches": 0, "batch probe": 1,
        "kNN within": 1, "linear within": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITS)
def test_every_metric_gives_its_limit_where_the_answer_is_known(kind: str) -> None:
    d = design()
    x = {"label": blobs(d.label, 0.03), "batch": blobs(d.batch, 0.03), "both": blobs(d.stratum, 0.03)}[kind]
    found = values(x, d)
    for name, expected in LIMITS[kind].items():
        assert found[name] == pytest.approx(expected, abs=0.12), name


def test_labels_that_are_the_batch_leave_nothing_to_be_said_about_mixing() -> None:
    label = np.repeat(["a", "b"], N)
    d = Design.of(label, label)
    found = values(blobs(d.label), d)
    assert np.isnan(found["same-batch neighbours"])
    assert np.isnan(found["batch ASW"])
    assert np.isnan(found["batch probe"])
    assert "kNN transfer" not in found
    assert "no label occurs in two batches" in confounding(d)[0]


def test_drop_is_the_loss_against_the_same_labels_within_the_batch() -> None:
    d = design(3, 2)
    x = blobs(d.stratum, 0.03)
    x[d.batch == 1] = blobs(d.label, 0.03)[d.batch == 1][:, [1, 2, 0, *range(3, 9)]].repeat(2, axis=1)[:, : x.shape[1]]
    t = Transfer(space(x, d), "knn")
    assert t.within(1).value == 1
    assert t.cross(0, 1).value < 0.7
    drop = values(x, d)["kNN drop | 0 -> 1"]
    assert drop == pytest.approx(t.within(1).value - t.cross(0, 1).value)


def test_metrics_do_not_depend_on_the_order_of_the_cells() -> None:
    d = design(3, 2, 60)
    x = blobs(d.label, 0.5)
    order = np.random.default_rng(3).permutation(len(d))
    first, second = values(x, d), values(x[order], d[order])
    for name in ("label ASW", "graph connectivity", "batch ASW", "same-batch neighbours", "effective batches"):
        assert first[name] == pytest.approx(second[name], abs=1e-5), name


def test_clusterings_are_reproducible_and_leave_the_random_numbers_of_others_alone() -> None:
    import random

    d = design(3, 2, 60)
    s = space(blobs(d.label, 0.5), d)
    random.seed(0)
    state = random.getstate()
    np.testing.assert_array_equal(best_leiden(s), best_leiden(s))
    assert random.getstate() == state
    np.testing.assert_array_equal(kmeans(s.x, 3, 0), kmeans(s.x, 3, 0))


def test_every_metric_says_its_formula_its_direction_and_its_library() -> None:
    table = metric_table()
    assert set(table["better"]) == {"higher", "lower"}
    assert (table["formula"].str.len() > 10).all()
    assert {m for c in _metrics.COMPUTATIONS for m in c.gives} <= set(table.index)
    worst, best = zip(*table["limits"], strict=True)
    assert ((np.array(best) > np.array(worst)) == (table["better"] == "higher")).all()


def test_metrics_of_a_missing_library_are_named_with_the_line_that_installs_it() -> None:
    missing = _metrics.absent()
    assert ("kBET" in missing) != _scib.is_here()
    assert all(line.startswith("pip install 'scfm[") for line in missing.values())


@pytest.mark.skipif(not _scib.is_here(), reason="scib-metrics is not installed")
def test_our_own_metrics_equal_those_of_scib_metrics() -> None:
    import scib_metrics

    d = design(3, 2, 60)
    s = space(blobs(d.label, 0.5), d)
    assert _metrics.label_asw(s)["label ASW"].value == pytest.approx(
        scib_metrics.silhouette_label(s.x, d.label), abs=1e-4
    )
    assert _metrics.batch_asw(s)["batch ASW"].value == pytest.approx(
        scib_metrics.silhouette_batch(s.x, d.label, d.batch), abs=1e-4
    )
    assert _metrics.isolated_labels(s)["isolated labels"].value == pytest.approx(
        scib_metrics.isolated_labels(s.x, d.label, d.batch), abs=1e-4
    )


@pytest.mark.skipif(not _scib.is_here(), reason="scib-metrics is not installed")
def test_metrics_of_scib_metrics_are_those_of_a_direct_call() -> None:
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    d = design(3, 2, 60)
    x = blobs(d.label, 0.5).astype(np.float32)
    x[d.batch == 1, -1] += 0.4
    s = Space(prepared(x), d, raw=x)
    distances, rows = NearestNeighbors(n_neighbors=90, algorithm="brute").fit(s.x.astype(np.float64)).kneighbors()
    own = np.arange(len(d))[:, None]
    neighbours = NeighborsResults(np.hstack([own, rows[:, :89]]), np.hstack([0.0 * own, distances[:, :89]]))
    expected = {
        "clisi": scib_metrics.clisi_knn(neighbours, d.label),
        "ilisi": scib_metrics.ilisi_knn(neighbours, d.batch),
        "bras": scib_metrics.bras(s.x, d.label, d.batch),
        "kbet": scib_metrics.kbet_per_label(neighbours, d.batch, d.label),
        "pcr": scib_metrics.pcr_comparison(x, s.x, d.batch, categorical=True),
    }
    found = {name: function(s) for name, function in _scib.FUNCTIONS.items()}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-4)
    assert 0 < found["ilisi"] < 1


def test_intervals_of_three_units_are_the_whole_range_of_the_replicates() -> None:
    replicates = np.random.default_rng(0).normal(size=500)
    assert interval(replicates, 3) == pytest.approx((replicates.min(), replicates.max()), abs=0.05)
    low, high = interval(replicates, 10_000)
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])), abs=0.02)
    assert np.isnan(interval(replicates, 1)).all()


def test_p_values_are_two_sided_and_never_zero() -> None:
    assert p_value(np.ones(99)) == pytest.approx(0.02)
    assert p_value(np.array([-1.0, 1.0] * 50)) == 1
    assert p_value(np.zeros(10)) == 1
    assert np.isnan(p_value(np.full(3, np.nan)))


def test_holm_multiplies_step_by_step_and_never_falls() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])
    assert (holm(np.array([0.5, 0.6])) == 1).all()


def test_resampling_draws_within_strata_and_whole_groups() -> None:
    stratum = np.repeat([0, 1], [10, 30])
    drawn = resample_cells(stratum, 20, 0)
    assert (drawn.weights[:, :10].sum(axis=1) == 10).all()
    group = np.repeat(np.arange(8), 5)
    nested = resample_groups(group, group // 4, 20, 0)
    assert nested.n_units == 8
    assert (nested.weights[:, :4].sum(axis=1) == 4).all()
    crossed = resample_groups(group, np.tile([0, 1], 20), 20, 0)
    assert (crossed.weights.sum(axis=1) == 8).all()
    score = mean_of_cells(np.arange(40.0))
    assert nested.replicates(score).std() > drawn.replicates(score).std()


def test_equal_scores_differ_by_nothing_in_every_replicate() -> None:
    d = design(2, 1, 30)
    drawn = resample_cells(d.stratum, 50, 0)
    score = mean_of_cells(np.random.default_rng(0).random(len(d)))
    np.testing.assert_array_equal(drawn.replicates(difference(score, score)), 0)


def test_subsamples_keep_the_shares_and_every_stratum() -> None:
    strata = np.repeat([0, 1, 2], [900, 97, 3])
    rows = subsample(strata, 100, 0)
    counts = np.bincount(strata[rows])
    assert len(rows) in (100, 101)
    assert (np.abs(counts - [90, 10, 1]) <= 1).all()
    np.testing.assert_array_equal(rows, subsample(strata, 100, 0))
    assert (rows != subsample(strata, 100, 1)).any()
    np.testing.assert_array_equal(subsample(strata, 5000, 0), np.arange(1000))


def coverage(draw: Any, truth: float, n_runs: int = 200) -> float:
    inside = []
    for run in range(n_runs):
        score, resampling = draw(np.random.default_rng(run))
        low, high = interval(resampling.replicates(score), resampling.n_units)
        inside.append(low <= truth <= high)
    return float(np.mean(inside))


@pytest.mark.slow
@pytest.mark.parametrize("n_groups", [5, 12])
def test_intervals_over_groups_cover_as_often_as_they_say(n_groups: int) -> None:
    def draw(rng: np.random.Generator) -> tuple[Score, Resampling]:
        rate = np.clip(0.7 + rng.normal(scale=0.08, size=n_groups), 0, 1)
        group = np.repeat(np.arange(n_groups), 40)
        right = rng.random(len(group)) < rate[group]
        return mean_of_cells(right.astype(float)), resample_groups(group, np.zeros_like(group), 300, 0)

    assert coverage(draw, 0.7) == pytest.approx(0.95, abs=0.05)


@pytest.mark.slow
def test_intervals_over_cells_cover_the_f1_and_differences_as_often_as_they_say() -> None:
    stratum = np.repeat([0, 1], 150)

    def draw(rng: np.random.Generator) -> tuple[Score, Resampling]:
        wrong = rng.random(300) < 0.2
        return table_score(stratum, np.where(wrong, 1 - stratum, stratum), macro_f1), resample_cells(stratum, 300, 0)

    def paired(rng: np.random.Generator) -> tuple[Score, Resampling]:
        hard = rng.random(300)
        first, second = (mean_of_cells((hard < level).astype(float)) for level in (0.8, 0.75))
        return difference(first, second), resample_cells(stratum, 300, 0)

    assert coverage(draw, 0.8) == pytest.approx(0.95, abs=0.05)
    assert coverage(paired, 0.05) == pytest.approx(0.95, abs=0.05)


def test_confounding_with_people_is_found_and_crossed_designs_are_not_accused() -> None:
    d = design(2, 2, 20)
    assert confounding(d) == []
    assert "donor and batch are confounded" in confounding(d, {"donor": d.batch})[0]
    assert confounding(d, {"donor": np.arange(len(d)) % 5}) == []
    assert confounding(d, {"donor": np.zeros(len(d))}) == []
    partly = Design.of([*"aaaaaaaabbbbbbbbc", "c"], [*"00000000111111110", "1"])
    assert "partly confounded" in confounding(partly)[0]


def test_composition_is_compared_between_batches() -> None:
    assert composition_distance(design()) == 0
    assert composition_distance(Design.of([*"aabb"], [*"0011"])) == 1


def test_cells_with_the_counts_of_another_batch_are_counted() -> None:
    keys = np.array([5, 5, 7, 7, 9, 0, 0], dtype=np.uint64)
    assert duplicated(keys, np.array([0, 1, 0, 0, 1, 0, 1])) == 2


CORPUS = {"pbmc_a": {"publication": "Zheng et al. 2017, doi:10.1038/ncomms14049"}, "b": {"publication": ""}}


@pytest.mark.parametrize(
    ("corpus", "data", "expected"),
    [
        (CORPUS, Dataset("PBMC a"), "seen"),
        (CORPUS, Dataset("pbmc3k", "10.1038/ncomms14049; 10x Genomics"), "same study"),
        (CORPUS, Dataset("pbmc3k", "Zheng et al. 2017"), "same study"),
        (CORPUS, Dataset("lines", "Tian et al. 2019, doi:10.1038/s41592-019-0425-8"), "unseen"),
        (CORPUS, Dataset("mine"), "unknown"),
        (None, Dataset("mine", "Tian et al. 2019"), "unknown"),
    ],
)
def test_leakage_is_read_off_the_manifest(corpus: Any, data: Dataset, expected: str) -> None:
    assert leakage(corpus, data) == expected
