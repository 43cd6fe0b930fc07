"""The scripts behind the tables of the guide on naming cells: what counts, what is a tie, who is compared with whom."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import annotation_cases
import numpy as np
import pytest
from sklearn.metrics import f1_score

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
CLASSES = np.array(["B", "NK", "T"])
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def script() -> Any:
    """Imports a script by its name, with those that it imports."""
    sys.path.insert(0, str(SCRIPTS))
    yield import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def compare(script: Any) -> ModuleType:
    return script("compare_annotation")


def truth(n: int = 40) -> np.ndarray:
    return np.repeat(CLASSES, n)


def wrong(names: np.ndarray, every: int) -> np.ndarray:
    """Every so many cells get the next name."""
    out = names.copy()
    out[::every] = CLASSES[(np.searchsorted(CLASSES, out[::every]) + 1) % len(CLASSES)]
    return out


def said(names: np.ndarray) -> Arrays:
    """What the comparison keeps of ours."""
    codes = np.searchsorted(CLASSES, names)
    return {
        "true": truth(),
        "method": np.array("linear"),
        "classes": CLASSES,
        "proba": np.eye(3)[codes],
        "rejecting": np.where(np.arange(len(names)) < 6, "unknown", names),
        "held/codes": np.arange(3),
        "held/proba": np.eye(3),
        "names": names,
    }


def write(
    folder: Path, case: str, seed: int, ours: np.ndarray, scanvi: np.ndarray | None = None, **others: Any
) -> None:
    np.savez(folder / f"ours_{case}_seed{seed}.npz", **said(ours))
    np.savez(folder / f"baselines_{case}_seed{seed}.npz", **others)
    if scanvi is not None:
        np.savez(folder / f"scanvi_{case}_seed{seed}.npz", scANVI=scanvi)


def row(table: str, case: str) -> list[str]:
    """The cells of the first line that begins with a name."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {case} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_macro_f1_is_that_of_scikit_learn_over_known_classes_with_enough_cells(compare: ModuleType) -> None:
    true = np.array([*truth(), *["rare"] * 19, *["new"] * 40])
    names = wrong(np.array([*truth(), *["B"] * 19, *["NK"] * 40]), 7)
    known = np.isin(true, [*CLASSES, "rare"])
    expected = f1_score(true[known], names[known], labels=CLASSES, average="macro")
    found = compare.f1(true, names, np.array([*CLASSES, "rare"]), np.ones((1, len(true))))
    np.testing.assert_allclose(found, [expected])


def test_equal_names_are_a_tie_and_worse_ones_are_worse(compare: ModuleType, tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "equal", seed, wrong(truth(), 9), LR=wrong(truth(), 9))
        write(tmp_path, "ahead", seed, truth(), LR=wrong(truth(), 5))
        write(tmp_path, "behind", seed, wrong(truth(), 5), LR=truth())
    table = compare.tables(tmp_path)
    assert row(table, "equal")[-2:] == ["+0.000 [+0.000, +0.000]", "tie"]
    assert row(table, "ahead")[-1] == "better"
    assert row(table, "behind")[-1] == "worse"
    assert row(table, "3 all cases")[1] == "LR"


def test_the_best_other_is_named(compare: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "one", 0, truth(), LR=wrong(truth(), 3), kNN=wrong(truth(), 9))
    assert row(compare.tables(tmp_path), "one")[5] == "kNN"


def test_scanvi_is_compared_on_its_own_cases_and_seeds_only(compare: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "1k_v2 to 1k_v3", 0, truth(), LR=truth(), scanvi=wrong(truth(), 5))
    write(tmp_path, "1k_v2 to 1k_v3", 1, wrong(truth(), 2), LR=truth())
    write(tmp_path, "another", 0, truth(), LR=truth())
    _, pooled, beside, _ = compare.tables(tmp_path).split("\n\n")
    assert "scANVI" not in pooled
    assert row(beside, "1k_v2 to 1k_v3")[1:3] == ["1", "1.000"]
    assert row(beside, "1k_v2 to 1k_v3")[-1] == "better"
    assert "another" not in beside


def test_the_share_of_known_cells_that_are_unknown_is_reported(compare: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "one", 0, truth(), LR=truth())
    *_, calibration = compare.tables(tmp_path).split("\n\n")
    assert row(calibration, "one") == ["one", "linear", "0.000", "0.000", "5.0%"]


def test_every_baseline_names_well_separated_types(script: Any) -> None:
    cases = script("naming_cases")
    reference, query = (annotation_cases.cells(40, seed=seed) for seed in (0, 1))
    for adata in (reference, query):
        adata.obs["label"] = adata.obs["cell_type"].astype(str)
    found = script("naming_baselines").baselines(cases.Case("made up", "", cases.fixed(reference, query)), 0)
    assert {"LR on log expression", "kNN on PCA"} <= set(found)
    for names in found.values():
        assert (names == query.obs["label"]).mean() > 0.95


def test_another_seed_takes_another_share_of_the_reference_and_the_same_query(script: Any) -> None:
    cases = script("naming_cases")
    adata = annotation_cases.cells(40)
    adata.obs["label"] = adata.obs["cell_type"].astype(str)
    pair = cases.fixed(adata, adata)
    (whole, query), (first, _), (second, same) = (pair(seed) for seed in range(3))
    assert whole.n_obs == 160 and first.n_obs == second.n_obs == 144
    assert set(first.obs_names) != set(second.obs_names)
    assert query is same


def test_tolerances_are_chosen_on_sets_that_no_comparison_uses(script: Any) -> None:
    choose, fit = script("choose_rejection"), script("fit_annotator")
    chosen = {choose.PANCREAS, choose.BLOOD, choose.NODE, choose.LUNG, choose.BRAIN, choose.HEART}
    assert not chosen & set(fit.UNSEEN)
    compared = (SCRIPTS / "naming_cases.py").read_text(encoding="utf-8")
    assert not [name for name in chosen if name in compared]


def test_whole_groups_are_on_one_side(script: Any) -> None:
    adata = annotation_cases.cells(20)
    first = script("choose_rejection").half(adata, "donor")
    donors = adata.obs["donor"].to_numpy()
    assert 0 < first.sum() < len(first)
    assert not set(donors[first]) & set(donors[~first])


def test_shares_of_a_tolerance_are_means_over_types_and_over_pairs(script: Any) -> None:
    choose = script("choose_rejection")
    shares = {"a": (0.0, 0.2), "b": (0.4,)}
    rows = [
        {"pair": pair, "AUROC": 0.9} | {f"{kind} {t}": x for kind in ("known", "new") for t in choose.TOLERANCES}
        for pair, each in shares.items()
        for x in each
    ]
    line = choose.tolerance_table(rows).splitlines()[-1]
    assert line == f"| {choose.TOLERANCES[-1]} | 20.0% | 25.0% | 40.0% | 0 of 2 | 20.0% |"
