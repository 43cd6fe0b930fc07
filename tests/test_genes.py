"""Names of genes find the right tokens, whatever annotation they come from."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gene_cases import (
    HUMAN_MARKERS,
    MOUSE_MARKERS,
    RETIRED_MOUSE_SYMBOLS,
    RETIRED_SYMBOLS,
    all_ids,
    all_symbols,
    ensembl,
    symbols,
    table,
    tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm import genes
from scfm.errors import GeneMatchError
from scfm.genes import CoverageWarning, GeneVocabulary, MatchReport, PublishedRule

GOLDEN = Path(os.environ.get("SCFM_GOLDEN", Path(__file__).parent / "golden"))

# Names of one species


@pytest.mark.parametrize(("species", "markers"), [("human", HUMAN_MARKERS), ("mouse", MOUSE_MARKERS)])
def test_markers_have_their_well_known_ids(species: str, markers: dict[str, str]) -> None:
    assert tokens(list(markers), all_ids(species)) == list(markers.values())
    assert tokens(list(markers.values()), all_symbols(species)) == list(markers)


@pytest.mark.parametrize(
    ("species", "renamed"), [("human", RETIRED_SYMBOLS), ("mouse", RETIRED_MOUSE_SYMBOLS)], ids=["human", "mouse"]
)
def test_an_old_symbol_and_a_new_one_meet_on_either_side(species: str, renamed: dict[str, str]) -> None:
    old, new = list(renamed), list(renamed.values())
    assert tokens(old, symbols(*new, species=species)) == new
    assert tokens(new, symbols(*old, species=species)) == old
    id_of = dict(zip(table(species)["symbol"], table(species)["ensembl_id"], strict=True))
    assert tokens(old, all_ids(species)) == [id_of[name] for name in new]


def test_a_symbol_that_two_genes_had_stays_without_a_token() -> None:
    assert tokens(["QARS", "CD4"], all_symbols()) == [None, "CD4"]


def test_an_unclear_name_in_a_vocabulary_is_the_gene_that_no_other_token_means() -> None:
    assert tokens(["QARS1", "EPRS1"], symbols("QARS", "EPRS")) == ["QARS", "EPRS"]
    assert tokens(["QARS1", "EPRS1", "CD4"], symbols("QARS", "CD4")) == [None, None, "CD4"]


def test_versions_are_stripped_from_ids_but_not_from_clone_names() -> None:
    vocabulary = ensembl("ENSG00000141510", "ENSG00000002586")
    names = ["ENSG00000141510.18", "ENSG00000002586.20_PAR_Y", "ENSG00000002586_PAR_Y"]
    assert tokens(names, vocabulary) == ["ENSG00000141510", "ENSG00000002586", "ENSG00000002586"]
    assert tokens(["AC012345.1", "CD4"], symbols("AC012345", "CD4")) == [None, "CD4"]


def test_a_vocabulary_with_versions_takes_ids_of_other_versions() -> None:
    assert tokens(["ENSG00000141510.18", "ENSG00000141510"], ensembl("ENSG00000141510.9")) == ["ENSG00000141510.9"] * 2


def test_ids_and_symbols_may_stand_in_one_column() -> None:
    found = genes.match(["CD4", "ENSG00000167286", "GAPDH", "ENSG00000081237.22"], all_symbols())
    assert [all_symbols().names[i] for i in found.columns] == ["CD4", "CD3D", "GAPDH", "PTPRC"]
    assert found.report.namespace == "mixed"


def test_the_copy_on_y_counts_for_the_gene_on_x() -> None:
    cd99 = table("human").query("symbol == 'CD99'").set_index("chromosome")["ensembl_id"]
    assert tokens(["CD99"], all_ids()) == [cd99["X"]]
    assert tokens([cd99["Y"]], ensembl(cd99["X"])) == [cd99["X"]]
    assert tokens([cd99["Y"]], all_ids()) == [cd99["Y"]]


def test_genes_that_only_share_a_generic_symbol_stay_apart() -> None:
    y_rna = table("human").query("symbol == 'Y_RNA'")["ensembl_id"].tolist()
    assert tokens([y_rna[0], y_rna[1]], ensembl(y_rna[0])) == [y_rna[0], None]


def test_a_retired_id_counts_for_its_successor() -> None:
    sod2 = table("human").query("symbol == 'SOD2'").set_index("status")["ensembl_id"]
    assert tokens([sod2["retired_e90"]], ensembl(sod2["current"])) == [sod2["current"]]
    assert tokens([sod2["current"]], ensembl(sod2["retired_e90"])) == [sod2["retired_e90"]]


def test_empty_names_match_nothing() -> None:
    var = pd.DataFrame({"gene_ids": ["ENSG00000010610", "", None, np.nan, "nan", pd.NA]})
    found = genes.match(var, symbols("CD4", "nan", "NA"), gene_key="gene_ids")
    assert found.columns.tolist() == [0, -1, -1, -1, -1, -1]


def test_special_tokens_are_no_genes() -> None:
    vocabulary = symbols("<pad>", "CLS", "CD4", specials={"pad": 0, "cls": 1})
    assert tokens(["<pad>", "CLS", "CD4"], vocabulary) == [None, None, "CD4"]


def test_a_suffix_of_a_repeated_name_is_dropped_unless_it_is_part_of_a_name() -> None:
    vocabulary = symbols("MATR3", "NKX2-1", "NKX2", "CD4")
    found = genes.match(["MATR3", "MATR3-1", "NKX2-1", "CD4-1"], vocabulary)
    assert found.columns.tolist() == [0, 0, 1, 3]
    assert found.report.how["spelling"] == 2
    assert found.report.n_duplicates == 1
    assert "MATR3-1" in str(found.report)
    assert tokens(["NKX2-1", "CD4"], symbols("NKX2", "CD4")) == [None, "CD4"]


def test_names_that_a_program_made_up_are_understood() -> None:
    names = ["HLA.A", "PTPRC_ENSG00000081237", "ENSG00000010610_CD4"]
    assert tokens(names, symbols("HLA-A", "PTPRC", "CD4")) == ["HLA-A", "PTPRC", "CD4"]
    assert tokens(["X1110004E09Rik"], all_ids("mouse")) == tokens(["1110004E09Rik"], all_ids("mouse")) != [None]


def test_symbols_listed_by_the_vocabulary_serve_where_no_table_does() -> None:
    vocabulary = ensembl("ENSGALG00000000001", "ENSGALG00000000002", symbols=("GENEA", "GENEB"), species="chicken")
    names = ["GENEB", "ENSGALG00000000001.2", "GENEC"]
    assert tokens(names, vocabulary) == ["ENSGALG00000000002", "ENSGALG00000000001", None]


def test_an_upper_case_vocabulary_knows_the_names_of_its_species() -> None:
    vocabulary = symbols("CD3D", "SEPTIN1", species="mouse", rule=PublishedRule(upper=True))
    assert tokens(["Cd3d", "Sept1", "ENSMUSG00000032094"], vocabulary) == ["CD3D", "SEPTIN1", "CD3D"]


# The column of names


def test_the_column_with_most_matches_is_chosen_and_named() -> None:
    ids = list(HUMAN_MARKERS.values())
    var = pd.DataFrame({"gene_ids": ids, "n": range(len(ids))}, index=[f"g{i}" for i in range(len(ids))])
    report = genes.match(var, all_ids()).report
    assert (report.gene_key, report.n_matched) == ("gene_ids", len(ids))
    assert "'gene_ids'" in str(report)
    assert genes.match(var.set_index("gene_ids"), all_ids()).report.gene_key == "var_names"


def test_exact_names_win_among_columns_with_equally_many_matches() -> None:
    var = pd.DataFrame({"symbol": list(HUMAN_MARKERS)}, index=list(HUMAN_MARKERS.values()))
    assert genes.match(var, all_symbols()).report.gene_key == "symbol"
    assert genes.match(var, all_ids()).report.gene_key == "var_names"


def test_an_unusual_column_is_found_when_the_usual_ones_fail() -> None:
    var = pd.DataFrame({"probe target": pd.Categorical(list(HUMAN_MARKERS))}, index=map(str, range(len(HUMAN_MARKERS))))
    assert genes.match(var, all_ids()).report.gene_key == "probe target"


def test_a_missing_gene_key_lists_the_columns() -> None:
    var = pd.DataFrame({"symbol": ["CD4"], "n_cells": [3]}, index=["ENSG00000010610"])
    with pytest.raises(GeneMatchError, match=r"gene_key='gene_symbol' is not in var.*symbol, n_cells"):
        genes.match(var, all_ids(), gene_key="gene_symbol")
    assert genes.match(var, all_ids(), gene_key="var_names").report.gene_key == "var_names"


def test_antibodies_have_no_token_though_they_bear_names_of_genes() -> None:
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression"]
    var = pd.DataFrame({"feature_types": kinds}, index=["CD4", "CD8A", "GAPDH"])
    found = genes.match(var, all_symbols())
    assert (found.columns >= 0).tolist() == [True, False, True]
    assert "1 Antibody Capture" in str(found.report)


# The published rule


def test_the_published_rule_is_followed_and_nothing_else() -> None:
    rule = PublishedRule(upper=True, aliases={"CD3-DELTA": "ENSG00000167286"}, duplicates="keep")
    vocabulary = ensembl("ENSG00000167286", "ENSG00000010610", rule=rule)
    names = ["ensg00000010610", "Cd3-delta", "ENSG00000010610.4", "CD4", "ENSG00000167286"]
    found = genes.match(names, vocabulary, policy="published")
    assert found.columns.tolist() == [1, 0, -1, -1, 0]
    assert found.duplicates == "keep"
    assert found.report.policy == "published"


def test_only_the_first_column_counts_where_the_rule_says_so() -> None:
    vocabulary = symbols("CD4", "CD8A", rule=PublishedRule(duplicates="first"))
    found = genes.match(["CD4", "CD8A", "CD4"], vocabulary, policy="published")
    assert found.columns.tolist() == [0, 1, -1]
    assert (found.n_matched, found.report.n_matched, found.report.n_duplicates) == (2, 2, 1)
    assert genes.match(["CD4", "CD8A", "CD4"], vocabulary).columns.tolist() == [0, 1, 0]


def test_golden_scgpt_symbols_find_their_recorded_ids() -> None:
    folder = GOLDEN / "scgpt" / "tiny"
    ids = json.loads((folder / "checkpoint" / "pretrained" / "vocab.json").read_text())
    vocabulary = symbols(*sorted(ids, key=ids.__getitem__), rule=PublishedRule(duplicates="keep"))
    var = ad.read_h5ad(folder / "cells.h5ad").var
    found = genes.match(var, vocabulary, gene_key="feature_name", policy="published")
    assert found.columns.tolist() == np.load(folder / "arrays.npz")["embed.id_in_vocab"].tolist()


# The report


def test_a_report_is_plain_and_readable() -> None:
    found = genes.match(["CD4", "CD4", "IL8", "foo"], all_ids())
    plain = found.report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["how"] == {"current symbol": 2, "previous symbol": 1}
    assert plain["unmatched"] == ["foo"]
    assert (plain["n_vars"], plain["n_matched"], plain["n_genes"], plain["n_duplicates"]) == (4, 3, 2, 1)
    for part in ("policy 'resolve'", "3 of 4 columns", "CD4, CD4", "without a token: 1 column (foo)"):
        assert part in str(found.report)


def test_measured_genes_are_those_with_a_column() -> None:
    found = genes.match(["CD8A", "foo", "CD4"], symbols("<pad>", "CD4", "CD8A", "CD19", specials={"pad": 0}))
    assert found.measured.tolist() == [False, True, True, False]
    assert found.columns.dtype == np.int32


def test_counts_complete_a_report() -> None:
    report = MatchReport(n_vars=10, n_matched=4).with_counts(75, 100)
    assert report.count_coverage == 0.75
    assert "75.0% of 100" in str(report)
    assert MatchReport().count_coverage is None
    assert MatchReport().with_counts(0, 0).count_coverage is None


def test_less_than_half_of_the_counts_is_a_warning() -> None:
    with pytest.warns(CoverageWarning, match="only 49.0% of the counts"):
        MatchReport().with_counts(49, 100)


# Contracts


@cache
def pool() -> list[str]:
    """Names of every kind: ids, versions, symbols of today and of the past, aliases, names of nothing."""
    some = table("human").query("symbol != ''").iloc[::97]
    words = [
        w for c in ("previous_symbols", "alias_symbols", "older_symbols") for t in some[c] for w in t.split("|") if w
    ]
    ids = some["ensembl_id"].tolist()
    return [*ids, *(f"{i}.3" for i in ids), *some["symbol"], *words, "nan", "", "foo", "MATR3-1", "Y_RNA"]


@cache
def sampled(namespace: str) -> GeneVocabulary:
    return all_ids() if namespace == "ensembl" else all_symbols()


names_and_vocabulary = st.tuples(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.sampled_from(["ensembl", "symbol"])
)


@settings(deadline=None, max_examples=60)
@given(names_and_vocabulary, st.randoms(use_true_random=False))
def test_permuted_columns_permute_the_result(case: tuple[list[int], str], random: object) -> None:
    names = ["CD4", *(pool()[i % len(pool())] for i in case[0])]
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = genes.match(names, sampled(case[1])).columns
    assert genes.match([names[i] for i in order], sampled(case[1])).columns.tolist() == found[order].tolist()


@settings(deadline=None, max_examples=60)
@given(names_and_vocabulary, st.lists(st.from_regex(r"zz[0-9]{1,6}", fullmatch=True), max_size=30))
def test_columns_without_a_token_change_nothing_for_the_others(case: tuple[list[int], str], more: list[str]) -> None:
    names = ["CD4", *(pool()[i % len(pool())] for i in case[0])]
    alone = genes.match(names, sampled(case[1]))
    among = genes.match(names + more, sampled(case[1]))
    assert among.columns.tolist() == alone.columns.tolist() + [-1] * len(more)
    assert among.report.how == alone.report.how


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.lists(st.integers(0, 10**6), max_size=40))
def test_an_exact_match_is_never_overridden(listed: list[int], further: list[int]) -> None:
    usable = [n for n in pool() if n not in ("", "nan")]
    names = list(dict.fromkeys(usable[i % len(usable)] for i in listed))
    data = names + [usable[i % len(usable)] for i in further]
    found = genes.match(data, symbols(*names)).columns
    assert found[: len(names)].tolist() == list(range(len(names)))
    assert all(names[i] == name for name, i in zip(data, found, strict=True) if name in names)
