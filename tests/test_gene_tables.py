"""The gene tables that ship hold what their sources say, and each name means one gene or none."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gene_cases import table

from scfm import genes
from scfm.errors import GeneMatchError
from scfm.genes._names import GeneNames, How

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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
