"""Names of genes find the right tokens, whatever annotation they come from."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import resources
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm import genes
from scfm.errors import GeneMatchError
from scfm.genes import CoverageWarning, GeneVocabulary, MatchReport, PublishedRule
from scfm.genes._names import GeneNames, How

GOLDEN = Path(os.environ.get("SCFM_GOLDEN", Path(__file__).parent / "golden"))
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

RETIRED_SYMBOLS = {
    "SEPT1": "SEPTIN1",
    "MARCH1": "MARCHF1",
    "MLL": "KMT2A",
    "GBA": "GBA1",
    "C10orf54": "VSIR",
    "FAM46C": "TENT5C",
    "LARGE": "LARGE1",
    "PARK2": "PRKN",
    "WISP2": "CCN5",
    "HIST1H4C": "H4C3",
    "H2AFZ": "H2AZ1",
    "TCEB1": "ELOC",
    "ATP5A1": "ATP5F1A",
    "CXorf21": "TASL",
    "SGOL1": "SGO1",
    "MKL1": "MRTFA",
    "FAM129C": "NIBAN3",
    "TMEM173": "STING1",
    "KIAA1524": "CIP2A",
    "C1orf186": "RHEX",
    "IL8": "CXCL8",
}
RETIRED_MOUSE_SYMBOLS = {
    "Sept1": "Septin1",
    "March1": "Marchf1",
    "H2afz": "H2az1",
    "Atp5a1": "Atp5f1a",
    "Hist1h4c": "H4c3",
    "Tmem173": "Sting1",
    "Fam46c": "Tent5c",
    "Tceb1": "Eloc",
    "Cd45": "Ptprc",
}
HUMAN_MARKERS = {
    "CD3D": "ENSG00000167286",
    "CD4": "ENSG00000010610",
    "CD8A": "ENSG00000153563",
    "MS4A1": "ENSG00000156738",
    "NKG7": "ENSG00000105374",
    "LYZ": "ENSG00000090382",
    "FCGR3A": "ENSG00000203747",
    "PPBP": "ENSG00000163736",
    "PECAM1": "ENSG00000261371",
    "EPCAM": "ENSG00000119888",
    "INS": "ENSG00000254647",
    "XIST": "ENSG00000229807",
    "MT-CO1": "ENSG00000198804",
    "MALAT1": "ENSG00000251562",
    "FOXP3": "ENSG00000049768",
    "HBB": "ENSG00000244734",
    "ACTB": "ENSG00000075624",
    "GAPDH": "ENSG00000111640",
    "TTN": "ENSG00000155657",
    "TP53": "ENSG00000141510",
    "PTPRC": "ENSG00000081237",
    "CD19": "ENSG00000177455",
    "GNLY": "ENSG00000115523",
    "CD14": "ENSG00000170458",
    "FCER1A": "ENSG00000179639",
    "CST3": "ENSG00000101439",
    "ALB": "ENSG00000163631",
    "KRT18": "ENSG00000111057",
    "COL1A1": "ENSG00000108821",
    "VIM": "ENSG00000026025",
}
MOUSE_MARKERS = {
    "Cd3d": "ENSMUSG00000032094",
    "Cd4": "ENSMUSG00000023274",
    "Cd8a": "ENSMUSG00000053977",
    "Ms4a1": "ENSMUSG00000024673",
    "Nkg7": "ENSMUSG00000004612",
    "Actb": "ENSMUSG00000029580",
    "Gapdh": "ENSMUSG00000057666",
    "Xist": "ENSMUSG00000086503",
    "Malat1": "ENSMUSG00000092341",
    "Foxp3": "ENSMUSG00000039521",
    "Ins2": "ENSMUSG00000000215",
    "Pecam1": "ENSMUSG00000020717",
    "Epcam": "ENSMUSG00000045394",
    "Alb": "ENSMUSG00000029368",
    "mt-Co1": "ENSMUSG00000064351",
}


@cache
def table(species: str) -> pd.DataFrame:
    return genes.table(species)


@cache
def all_ids(species: str = "human") -> GeneVocabulary:
    """Every id of today, behind two special tokens."""
    current = table(species).query("status == 'current'")["ensembl_id"]
    return GeneVocabulary(("<pad>", "<cls>", *current), "ensembl", {"pad": 0, "cls": 1}, species=species)


@cache
def all_symbols(species: str = "human") -> GeneVocabulary:
    """Every symbol of today."""
    current = table(species).query("status == 'current' and symbol != ''")["symbol"]
    return GeneVocabulary(tuple(dict.fromkeys(current)), "symbol", species=species)


def symbols(*names: str, **options: object) -> GeneVocabulary:
    return GeneVocabulary(names, "symbol", **options)  # type: ignore[arg-type]


def ensembl(*names: str, **options: object) -> GeneVocabulary:
    return GeneVocabulary(names, "ensembl", **options)  # type: ignore[arg-type]


def tokens(names: list[str], vocabulary: GeneVocabulary, **options: object) -> list[str | None]:
    found = genes.match(names, vocabulary, **options).columns  # type: ignore[arg-type]
    return [vocabulary.names[i] if i >= 0 else None for i in found]


# The tables


def test_tables_are_small() -> None:
    data = resources.files("scfm.genes") / "data"
    assert sum(len(f.read_bytes()) for f in data.iterdir() if f.name.endswith(".xz")) <= 3_000_000


@pytest.mark.parametrize(("species", "prefix"), [("human", "ENSG"), ("mouse", "ENSMUSG")])
def test_a_table_has_one_row_per_id(species: str, prefix: str) -> None:
    frame = table(species)
    assert frame["ensembl_id"].is_unique
    assert frame["ensembl_id"].is_monotonic_increasing
    assert frame["ensembl_id"].str.fullmatch(prefix + r"\d{11}").all()
    assert frame["start"].dtype == np.int64
    assert set(frame["status"]) == {"current", "retired_e109", "retired_e90"}
    assert (frame.loc[frame["status"] == "current", "start"] > 0).all()


def test_changing_a_table_changes_nobody_elses() -> None:
    mine = genes.table("human")
    mine.loc[0, "symbol"] = "CHANGED"
    assert genes.table("Homo sapiens").loc[0, "symbol"] == "TSPAN6"


def test_a_species_without_a_table_is_named() -> None:
    with pytest.raises(GeneMatchError, match=r"axolotl.*human, mouse"):
        genes.table("axolotl")


def test_orthologues_are_one_to_one() -> None:
    pairs = genes.orthologues()
    assert pairs["human_ensembl_id"].is_unique
    assert pairs["mouse_ensembl_id"].is_unique
    assert pairs.set_index("human_symbol").loc["CD3D", "mouse_symbol"] == "Cd3d"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the full gene tables are not at hand")
@pytest.mark.parametrize("species", ["human", "mouse"])
def test_the_shipped_table_says_what_its_source_says(species: str) -> None:
    source = pd.read_csv(SHARED / f"genes_{species}.tsv.gz", sep="\t", dtype=str, keep_default_na=False)
    source = source.sort_values("ensembl_id").rename(columns={"older_ensembl_symbols": "older_symbols"})
    shipped = table(species).assign(start=lambda t: t["start"].replace(0, "").astype(str))
    for column in set(source) & set(shipped):
        assert shipped[column].tolist() == source[column].tolist(), column


@pytest.mark.skipif(not SHARED.is_dir(), reason="the full gene tables are not at hand")
def test_the_shipped_orthologues_say_what_their_source_says() -> None:
    source = pd.read_csv(SHARED / "orthologues_human_mouse.tsv", sep="\t", dtype=str, keep_default_na=False)
    source = source[source["type"] == "one2one"].sort_values("human_ensembl_id")
    shipped = genes.orthologues()
    for column in ("human_ensembl_id", "mouse_ensembl_id", "agrees_with_hgnc_mgi"):
        assert shipped[column].tolist() == source[column].tolist(), column


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


SMALL = {
    "ensembl_id": [f"ENSG{i:011d}" for i in range(7)],
    "symbol": ["A", "B", "C", "D", "D", "E", "F"],
    "previous_symbols": ["P|Q", "Q|C", "", "", "", "", ""],
    "alias_symbols": ["X", "X|Y|A", "P", "Z", "", "", ""],
    "older_symbols": ["", "", "Y", "RP1-1.1", "", "", ""],
    "biotype": ["protein_coding"] * 3 + ["lncRNA", "protein_coding"] + ["protein_coding"] * 2,
    "chromosome": ["1"] * 7,
    "start": ["1"] * 7,
    "status": ["current"] * 6 + ["retired_e90"],
}


@pytest.mark.parametrize(
    ("name", "how", "rows"),
    [
        ("A", How.CURRENT, (0,)),
        ("C", How.CURRENT, (2,)),
        ("D", How.CURRENT, (4, 3)),
        ("P", How.PREVIOUS, (0,)),
        ("Y", How.ALIAS, (1,)),
        ("Z", How.ALIAS, (3,)),
        ("RP1-1.1", How.OLDER, (3,)),
        ("F", How.OLDER, (6,)),
        ("ENSG00000000005", How.EXACT, (5,)),
    ],
)
def test_better_kinds_of_names_come_first(name: str, how: How, rows: tuple[int, ...]) -> None:
    assert GeneNames(SMALL).find(name) == (how, rows)


@pytest.mark.parametrize("name", ["Q", "X", "d", "nothing"])
def test_names_of_several_genes_and_of_none_mean_nothing(name: str) -> None:
    assert GeneNames(SMALL).find(name) is None


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


# What does not fit


def test_nothing_in_common_shows_both_sides() -> None:
    with pytest.raises(GeneMatchError, match=r"none of the 2.*'foo', 'bar'.*'ENSG00000010610'.*gene_key="):
        genes.match(["foo", "bar"], ensembl("ENSG00000010610"))


@pytest.mark.parametrize("names", [list(MOUSE_MARKERS), list(MOUSE_MARKERS.values())], ids=["symbols", "ids"])
@pytest.mark.parametrize("vocabulary", [all_ids, all_symbols], ids=["ids", "symbols"])
def test_mouse_names_are_recognised_before_a_human_vocabulary(names: list[str], vocabulary: object) -> None:
    with pytest.raises(GeneMatchError, match=r"look like mouse genes, while the vocabulary is human.*orthologues=True"):
        genes.match(names, vocabulary())  # type: ignore[operator]


@pytest.mark.parametrize("names", [list(HUMAN_MARKERS), list(HUMAN_MARKERS.values())], ids=["symbols", "ids"])
def test_human_names_are_recognised_before_a_mouse_vocabulary(names: list[str]) -> None:
    with pytest.raises(GeneMatchError, match="look like human genes, while the vocabulary is mouse"):
        genes.match(names, all_ids("mouse"))


def test_a_few_matches_by_chance_do_not_hide_the_wrong_species() -> None:
    mouse = table("mouse").query("status == 'current' and symbol != ''")["symbol"].tolist()[:5000]
    with pytest.raises(GeneMatchError, match=r"only .* of the 5,000 gene names"):
        genes.match(mouse, all_ids())


def test_an_upper_case_vocabulary_does_not_hide_the_wrong_species() -> None:
    vocabulary = symbols(*dict.fromkeys(map(str.upper, HUMAN_MARKERS)), rule=PublishedRule(upper=True))
    with pytest.raises(GeneMatchError, match="look like mouse genes"):
        genes.match(list(MOUSE_MARKERS), vocabulary)


def test_an_announced_species_is_compared_at_once() -> None:
    with pytest.raises(GeneMatchError, match="the data are Mus musculus and the vocabulary is human"):
        genes.match(["CD4"], all_ids(), species="Mus musculus")


@pytest.mark.parametrize(
    ("names", "vocabulary", "remedy"),
    [
        ([s.lower() for s in HUMAN_MARKERS], all_ids(), r"str\.upper\(\)"),
        (
            [s.upper() for s in RETIRED_MOUSE_SYMBOLS.values()] + ["0610010K14RIK"] * 9,
            all_ids("mouse"),
            r"str\.capitalize\(\)",
        ),
    ],
    ids=["lower", "upper"],
)
def test_a_wrong_case_is_named(names: list[str], vocabulary: GeneVocabulary, remedy: str) -> None:
    with pytest.raises(GeneMatchError, match=f"in another case.*{remedy}"):
        genes.match(names, vocabulary)


def test_two_species_in_one_matrix_match_and_are_noted() -> None:
    found = genes.match(list(HUMAN_MARKERS.values()) + list(MOUSE_MARKERS.values()), all_ids())
    assert found.n_matched == len(HUMAN_MARKERS)
    assert "look like mouse genes" in str(found.report)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(GeneMatchError, match="'resolve' or 'published'"):
        genes.match(["CD4"], all_ids(), policy="official")  # type: ignore[arg-type]


# Orthologues


def test_mouse_data_reach_a_human_vocabulary_through_orthologues() -> None:
    names = ["Cd3d", "Sept1", "ENSMUSG00000000215", "ENSMUSG00000023274.16", "Gm1992"]
    found = genes.match(names, all_symbols(), orthologues=True)
    assert [all_symbols().names[i] if i >= 0 else None for i in found.columns[[0, 1, 3, 4]]] == [
        "CD3D",
        "SEPTIN1",
        "CD4",
        None,
    ]
    assert found.report.species == "mouse"
    assert found.report.how["orthologue"] >= 3
    assert "have an orthologue" in str(found.report)


def test_human_data_reach_a_mouse_vocabulary_through_orthologues() -> None:
    assert tokens(["CD3D", "MLL", "ENSG00000010610"], all_symbols("mouse"), orthologues=True) == [
        "Cd3d",
        "Kmt2a",
        "Cd4",
    ]


def test_orthologues_are_left_aside_for_data_of_the_same_species() -> None:
    plain = genes.match(list(HUMAN_MARKERS), all_ids())
    offered = genes.match(list(HUMAN_MARKERS), all_ids(), orthologues=True)
    assert offered.columns.tolist() == plain.columns.tolist()
    assert offered.report == plain.report


def test_a_name_of_another_species_that_the_vocabulary_lists_is_exact() -> None:
    vocabulary = ensembl("ENSG00000167286", "ENSMUSG00000032094")
    names = ["ENSMUSG00000032094", "ENSMUSG00000023274"]
    assert tokens(names, vocabulary, orthologues=True) == ["ENSMUSG00000032094", None]


def test_a_table_of_ones_own_may_be_a_frame_or_a_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "Gene stable ID": [
                "ENSMUSG00000032094.9",
                "ENSMUSG00000023274",
                "ENSMUSG00000023274",
                "ENSMUSG00000053977",
            ],
            "Human gene stable ID": ["ENSG00000167286", "ENSG00000010610", "ENSG00000156738", ""],
        }
    )
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    names = ["ENSMUSG00000032094", "ENSMUSG00000023274", "ENSMUSG00000053977"]
    for given_table in (frame, tmp_path / "pairs.csv", str(tmp_path / "pairs.csv")):
        found = genes.match(names, all_ids(), orthologues=given_table)
        assert found.n_matched == 1
        assert "2 pairs that are not one-to-one left out" in str(found.report)
    assert tokens(names, all_ids(), orthologues=frame, policy="published")[:2] == ["ENSG00000167286", "ENSG00000010610"]


def test_species_without_a_gene_table_use_a_table_of_their_own() -> None:
    frame = pd.DataFrame({"axolotl": ["amex1", "amex2"], "human": ["CD4", "IL8"]})
    assert tokens(["amex2", "amex1"], symbols("CXCL8", "CD4"), orthologues=frame, species="axolotl") == ["CXCL8", "CD4"]


def test_a_table_that_lacks_the_species_is_named(tmp_path: Path) -> None:
    names = list(MOUSE_MARKERS)
    with pytest.raises(GeneMatchError, match=r"no column of human names.*'human_ensembl_id'"):
        genes.match(names, all_ids(), orthologues=pd.DataFrame({"mouse": names, "rat": ["x"] * len(names)})[["mouse"]])
    with pytest.raises(GeneMatchError, match="no table of orthologues at"):
        genes.match(names, all_ids(), orthologues=tmp_path / "nothing.csv")
    with pytest.raises(GeneMatchError, match="join human and mouse, not axolotl and human"):
        genes.match(names, all_ids(), orthologues=True, species="axolotl")


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


def test_golden_nicheformer_cells_of_two_species_align_with_the_vocabulary() -> None:
    folder = GOLDEN / "nicheformer" / "tiny"
    vocabulary = ensembl(*ad.read_h5ad(folder / "model_means" / "model.h5ad").var_names)
    aligned = []
    for file, options in (("cells.h5ad", {}), ("mouse_cells.h5ad", {"orthologues": folder / "orthologs.csv"})):
        cells = ad.read_h5ad(folder / file)
        columns = genes.match(cells.var, vocabulary, policy="published", **options).columns
        counts = np.zeros((cells.n_obs, len(vocabulary)), dtype=np.float32)
        counts[:, columns[columns >= 0]] = cells[:, columns >= 0].to_df().to_numpy()
        aligned.append(counts)
    assert np.array_equal(np.vstack(aligned), np.load(folder / "arrays.npz")["X_aligned"])


# The report


def test_a_report_is_plain_and_readable() -> None:
    found = genes.match(["CD4", "CD4", "IL8", "foo"], all_ids())
    plain = found.report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["how"] == {"current symbol": 2, "previous symbol": 1}
    assert plain["unmatched"] == ["foo"]
    assert (plain["n_vars"], plain["n_matched"], plain["n_genes"], plain["n_duplicates"]) == (4, 3, 2, 1)
    for part in ("policy 'resolve'", "3 of 4 columns", "CD4, CD4", "without a token: 1 columns (foo)"):
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
