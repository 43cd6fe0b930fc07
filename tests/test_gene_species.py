"""Names of another species or in another case are recognised, and orthologues translate."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gene_cases import (
    HUMAN_MARKERS,
    MOUSE_MARKERS,
    RETIRED_MOUSE_SYMBOLS,
    all_ids,
    all_symbols,
    ensembl,
    symbols,
    table,
    tokens,
)

from scfm import genes
from scfm.errors import GeneMatchError
from scfm.genes import GeneVocabulary, PublishedRule

GOLDEN = Path(os.environ.get("SCFM_GOLDEN", Path(__file__).parent / "golden"))

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
