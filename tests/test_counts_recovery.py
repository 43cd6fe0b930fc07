"""Counts come back from normalised values where that is provable, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scfm import counts
from scfm.errors import CountsError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*from which the counts are computed back", "ignore:.*taken as they are"
)

BASES = {"log1p": np.e, "log2(x + 1)": 2.0, "log10(x + 1)": 10.0}


def make_counts(n_cells: int = 80, n_genes: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 1.0, n_genes) * rng.gamma(4, 1.0, (n_cells, 1))
    return rng.poisson(rates).astype(np.float64)


def normalised(dense: np.ndarray, target: float | None = 1e4, base: float | None = np.e) -> np.ndarray:
    """What scanpy's normalize_total and log1p give, in float32."""
    totals = dense.sum(axis=1, keepdims=True)
    target = float(np.median(totals[totals > 0])) if target is None else target
    values = (dense / np.where(totals > 0, totals / target, 1)).astype(np.float32)
    return values if base is None else (np.log1p(values) / np.float32(np.log(base))).astype(np.float32)


def recovered(source: counts.CountSource, n_rows: int = 30) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(source.blocks(n_rows))
    parts = [sparse.csr_array((b.data, b.indices, b.indptr), shape=(b.n_cells, b.n_columns)).toarray() for b in blocks]
    return np.vstack(parts), np.concatenate([b.totals for b in blocks if b.totals is not None])


def found(source: counts.CountSource) -> str:
    assert source.report.chosen is not None
    return "\n".join(source.report.chosen.found)


def test_the_700_cells_of_pbmc68k_reduced_come_out_exact() -> None:
    scanpy = pytest.importorskip("scanpy")
    adata = scanpy.datasets.pbmc68k_reduced()
    values = adata.raw.X.tocsr().astype(np.float64)
    before = adata.raw.X.data.copy()
    source = counts.find(adata)
    assert (source.where, source.report.kind, source.shape) == ("raw", "log1p", (700, 765))
    assert list(source.var.index) == list(adata.raw.var_names)
    smallest = np.array(
        [np.expm1(values.data[a:b]).min() for a, b in zip(values.indptr, values.indptr[1:], strict=False)]
    )
    expected = np.rint(np.expm1(values.toarray()) / smallest[:, None])
    dense, totals = recovered(source, 64)
    np.testing.assert_array_equal(dense, expected)
    np.testing.assert_allclose(totals, 1e4 / smallest, rtol=1e-12)
    np.testing.assert_allclose(totals, adata.obs["n_counts"], rtol=2e-3)
    np.testing.assert_allclose(np.log1p(dense / totals[:, None] * 1e4), values.toarray(), atol=2e-3)
    assert "rounded to 3 decimals" in found(source) and "n_counts" in found(source)
    np.testing.assert_array_equal(adata.raw.X.data, before)


def test_a_warning_says_what_is_done_with_normalised_values() -> None:
    with pytest.warns(
        UserWarning, match=r"X holds log1p of normalised counts, from which the counts are computed back"
    ):
        counts.find(ad.AnnData(normalised(make_counts())))


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csc_matrix, np.float64])
@pytest.mark.parametrize("target", [1e4, 1e6, None, 777.0])
def test_all_genes_give_counts_totals_and_target(form: type, target: float | None) -> None:
    dense = make_counts()
    dense[5] = 0
    source = counts.find(ad.AnnData(form(normalised(dense, target))))
    back, totals = recovered(source)
    np.testing.assert_array_equal(back, dense)
    np.testing.assert_array_equal(totals, dense.sum(axis=1))
    assert "no gene is missing" in found(source)


@pytest.mark.parametrize("target", [1e4, 1e6, None, 777.0])
@pytest.mark.parametrize("kind", ["log1p", "log2(x + 1)", "log10(x + 1)", "normalised"])
def test_a_gene_subset_gives_true_totals_that_the_genes_present_do_not_sum_to(kind: str, target: float | None) -> None:
    dense = make_counts()
    source = counts.find(ad.AnnData(normalised(dense, target, BASES.get(kind))[:, ::3]))
    assert source.report.kind == kind
    back, totals = recovered(source)
    np.testing.assert_array_equal(back, dense[:, ::3])
    np.testing.assert_allclose(totals, dense.sum(axis=1), rtol=3e-6)
    assert "genes are missing" in found(source) and "ASSUMED" not in found(source)


def test_a_column_of_totals_tells_the_target_of_rounded_values() -> None:
    dense = make_counts()
    obs = pd.DataFrame({"total_counts": dense.sum(axis=1)}, index=[f"c{i}" for i in range(len(dense))])
    source = counts.find(ad.AnnData(normalised(dense, 5e3)[:, ::3].round(3), obs=obs))
    back, totals = recovered(source)
    np.testing.assert_array_equal(back, dense[:, ::3])
    np.testing.assert_allclose(totals, dense.sum(axis=1), rtol=2e-3)
    assert "target sum 5,000" in found(source) and "obs['total_counts']" in found(source)


def test_log1p_of_counts_that_were_never_normalised_keeps_its_totals() -> None:
    dense = 2 * make_counts()
    source = counts.find(ad.AnnData(np.log1p(dense).astype(np.float32)))
    back, totals = recovered(source)
    np.testing.assert_array_equal(back, dense)
    np.testing.assert_array_equal(totals, dense.sum(axis=1))
    assert "not normalised before" in found(source)


def test_cells_whose_smallest_count_is_not_one_come_out_right() -> None:
    dense = make_counts()
    dense[dense == 1] = 0
    dense[0, :3], dense[0, 3:] = (4, 6, 9), 0
    back, _ = recovered(counts.find(ad.AnnData(normalised(dense))))
    np.testing.assert_array_equal(back, dense)


def test_the_counts_of_a_cell_do_not_depend_on_other_cells_or_the_order_of_genes() -> None:
    dense = make_counts()
    values = normalised(dense)[:, ::2]
    whole, totals = recovered(counts.find(ad.AnnData(values)))
    shuffled = np.random.default_rng(1).permutation(len(values))
    columns = np.random.default_rng(2).permutation(values.shape[1])
    other, other_totals = recovered(counts.find(ad.AnnData(values[shuffled][:, columns])), 7)
    np.testing.assert_array_equal(other, whole[shuffled][:, columns])
    np.testing.assert_array_equal(other_totals, totals[shuffled])


def test_a_cell_of_pbmc68k_reduced_alone_is_what_it_is_among_others() -> None:
    adata = pytest.importorskip("scanpy").datasets.pbmc68k_reduced()
    whole, totals = recovered(counts.find(adata))
    for row in (0, 33, 699):
        alone, total = recovered(counts.find(adata[[row]]))
        np.testing.assert_array_equal(alone[0], whole[row])
        np.testing.assert_array_equal(total[0], totals[row])


def test_repeated_entries_are_added_up_before_the_logarithm_is_undone() -> None:
    dense = make_counts()
    tidy = sparse.csr_matrix(normalised(dense))
    halves = sparse.csr_matrix(
        (np.repeat(tidy.data / 2, 2), np.repeat(tidy.indices, 2), tidy.indptr * 2), shape=tidy.shape
    )
    adata = ad.AnnData(halves)
    back, _ = recovered(counts.find(adata))
    np.testing.assert_array_equal(back, dense)
    assert adata.X.nnz == 2 * tidy.nnz


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    target=st.sampled_from([1e4, 1e5, None]),
    places=st.sampled_from([None, 4, 5]),
    keep=st.integers(1, 4),
)
def test_counts_come_back_whatever_the_target_precision_and_genes(
    seed: int, target: float | None, places: int | None, keep: int
) -> None:
    dense = make_counts(40, 200, seed)
    values = normalised(dense, target)[:, ::keep]
    back, _ = recovered(counts.find(ad.AnnData(values if places is None else values.round(places))))
    present = dense[:, ::keep]
    divisors = [np.gcd.reduce(row[row > 0].astype(int)) if row.any() else 1 for row in present]
    np.testing.assert_array_equal(back, present / np.maximum(divisors, 1)[:, None])


def smoothed(dense: np.ndarray) -> np.ndarray:
    values = normalised(dense)
    return (0.6 * values + 0.4 * np.roll(values, 1, axis=0))[:, ::3]


def tpm(dense: np.ndarray) -> np.ndarray:
    lengths = np.random.default_rng(3).gamma(4, 500, dense.shape[1])
    rate = dense / lengths
    return rate / rate.sum(axis=1, keepdims=True) * 1e6


REFUSED = {
    "log1p of TPM": (lambda x: np.log1p(tpm(x)), "log-normalised", "cannot be had back"),
    "TPM": (tpm, "normalised, not counts", "no multiples of a count"),
    "smoothed logarithms": (smoothed, "unclear", "smoothed"),
    "coarse logarithms": (
        lambda x: normalised(np.random.default_rng(4).poisson(40 * x)).round(2),
        "log-normalised",
        "too coarse",
    ),
    "scaled": (lambda x: normalised(x) - normalised(x).mean(0), "scaled", "negative"),
    "NaN": (lambda x: np.where(x > 4, np.nan, x), "not finite", "NaN"),
    "infinite": (lambda x: np.where(x > 4, np.inf, x), "not finite", "infinite"),
    "negative integers": (lambda x: x.astype(int) - 1, "scaled", "negative"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_counts_is_named_with_numbers_and_a_remedy(name: str) -> None:
    make, kind, says = REFUSED[name]
    adata = ad.AnnData(make(make_counts()))
    with pytest.raises(CountsError, match=says) as error:
        counts.find(adata)
    assert "layers['counts']" in str(error.value) or name in ("NaN", "infinite")
    source, report = counts.search(adata)
    assert source is None and report.candidates[0].kind == kind
    assert report.candidates[0].evidence.n_values > 0


def test_fractional_counts_are_taken_as_they_are_and_named() -> None:
    rng = np.random.default_rng(0)
    dense = make_counts() * 5
    corrected = np.maximum(dense - 0.3 * rng.random(dense.shape) * (rng.random(dense.shape) < 0.5), 0)
    for dtype in (np.float32, np.float64):
        adata = ad.AnnData(corrected.astype(dtype))
        with pytest.warns(UserWarning, match="counts with fractions"):
            source = counts.find(adata)
        (block,) = source.blocks()
        assert source.report.kind == "fractional counts" and block.totals is None and block.data.dtype == dtype
        np.testing.assert_array_equal(
            sparse.csr_array((block.data, block.indices, block.indptr), shape=dense.shape).toarray(), adata.X
        )


def test_halves_of_counts_are_fractions_and_not_normalised_counts() -> None:
    assert counts.find(ad.AnnData(make_counts() / 2)).report.kind == "fractional counts"


def unseen_row(n_cells: int = 5000) -> int:
    from scfm.counts._evidence import sampled_rows
    from scfm.counts._readers import reader

    rows = sampled_rows(reader(sparse.csr_matrix((n_cells, 3))))
    return int(np.setdiff1d(np.arange(n_cells), rows)[17])


def test_one_cell_in_memory_that_does_not_fit_is_found_before_the_work() -> None:
    values = normalised(make_counts(1000, 100))
    values[unseen_row(1000)] *= 1.01
    with pytest.raises(CountsError, match=r"99\.9% of all cells"):
        counts.find(ad.AnnData(values))


@pytest.mark.parametrize(("value", "says"), [(-1.0, "0 or more"), (np.nan, "0 or more"), (0.5, "whole numbers only")])
def test_a_bad_cell_outside_the_sample_stops_the_stream_and_is_named(value: float, says: str) -> None:
    dense, row = np.ones((5000, 4), np.float32), unseen_row()
    dense[row, 2] = value
    source = counts.find(ad.AnnData(sparse.csr_matrix(dense)))
    with pytest.raises(CountsError, match=rf"cell '{row}'.*column '2'.*{says}"):
        list(source.blocks())


def test_a_normalised_cell_outside_the_sample_on_disk_stops_the_stream_and_is_named(tmp_path: Path) -> None:
    values, row = normalised(make_counts(5000, 40)), unseen_row()
    values[row] *= 1.01
    ad.AnnData(values).write_h5ad(tmp_path / "cells.h5ad")
    source = counts.find(tmp_path / "cells.h5ad")
    with pytest.raises(CountsError, match=f"cell '{row}'.*no multiples of a count"):
        list(source.blocks())
