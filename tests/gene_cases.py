"""Well-known genes, and vocabularies of all of them."""

from __future__ import annotations

from functools import cache

import pandas as pd

from scfm import genes
from scfm.genes import GeneVocabulary

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
