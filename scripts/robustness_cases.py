"""Score scfm-mini, a transformer with random weights and every baseline on public sets measured with several assays.

    python scripts/robustness_cases.py DATA [--case lines] [--floor-cells 300]

DATA holds ``benchmark/*.h5ad``. Writes tables and pictures to ``docs/_static/robustness``, and one page for a browser per
case to ``demo-output``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scfm
from scfm.evaluation import RobustnessReport, metric_table
from scfm.models.families import geneformer
from scfm.tokenizers import families
from scfm.transformer import CellTransformer

OUT = Path(__file__).resolve().parents[1] / "docs" / "_static" / "robustness"
FLOOR = "random transformer"
BERT = {
    "vocab_size": 0,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.02,
    "attention_probs_dropout_prob": 0.02,
}
"""The size of Geneformer V1 (10 million parameters with its tables)."""
TABLE = (
    "bio total", "batch total", "kNN within", "kNN transfer", "linear transfer", "batch ASW", "same-batch neighbours",
    "batch probe",
)  # fmt: skip
SCIB = ("cLISI", "iLISI", "BRAS", "kBET", "PCR")


@dataclass(frozen=True)
class Case:
    """A public set and how it is asked."""

    read: Callable[[Path], dict[str, AnnData]]
    batch_key: str
    label_key: str = "cell_type"
    options: Mapping[str, Any] = field(default_factory=dict)


def read(data: Path, name: str) -> AnnData:
    return anndata.read_h5ad(data / "benchmark" / f"{name}.h5ad")


def split(adata: AnnData, genes: Mapping[str, str]) -> dict[str, AnnData]:
    """One set per assay, each with the genes that its own table measured."""
    return {
        assay: adata[adata.obs["assay"] == assay, adata.var[column].astype(str) == "True"].copy()
        for assay, column in genes.items()
    }


def lines(data: Path) -> dict[str, AnnData]:
    adata = read(data, "sc_mixology_3cl_celseq2_dropseq")
    singlets = adata[adata.obs["demuxlet_class"] == "SNG"].copy()
    return split(singlets, {"CEL-seq2": "in_celseq2", "Drop-seq": "in_dropseq"})


def stem_cells(data: Path) -> dict[str, AnnData]:
    adata = read(data, "mesc_ziegenhain_protocols")
    columns = {
        "CEL-seq2": "in_celseq2",
        "Drop-seq": "in_dropseq",
        "MARS-seq": "in_marsseq",
        "SCRB-seq": "in_scrbseq",
        "Smart-seq2": "in_smartseq2",
        "Smart-seq (Fluidigm C1)": "in_smartseq",
    }
    return split(adata, columns)


CASES: Mapping[str, Case] = {
    "lines": Case(lines, "assay"),
    "plates": Case(lambda data: {"plates": read(data, "sc_mixology_5cl_celseq2")}, "batch"),
    "blood": Case(
        lambda data: {name: read(data, name) for name in ("pbmc_1k_v2", "pbmc_1k_v3", "pbmc_5prime")},
        "assay",
        "cell_type_coarse",
        {"max_cells": 1200, "n_subsamples": 1, "n_draws": 1},
    ),
    "stem_cells": Case(stem_cells, "assay", options={"orthologues": True}),
}


def floor() -> scfm.models.FoundationModel:
    """A transformer of the size of Geneformer V1 whose weights are random: what an architecture gives without training."""
    table = scfm.genes.table("human")
    ids = table.loc[(table["status"] == "current") & (table["biotype"] == "protein_coding"), "ensembl_id"]
    names = ["<pad>", "<mask>", *ids]
    tokenizer = families.geneformer(names, dict.fromkeys(ids, 1.0), {}, BERT["max_position_embeddings"])
    torch.manual_seed(0)
    config = geneformer.config({**BERT, "vocab_size": len(names)}, {}, special_tokens=False)
    card = scfm.models.ModelCard(FLOOR, "geneformer", details={})
    return scfm.models.FoundationModel(CellTransformer(config), tokenizer, card)


def floor_vectors(data: Mapping[str, AnnData], n: int, seed: int, **options: Any) -> np.ndarray:
    """Vectors of a random choice of n cells, NaN for the others (a cell takes about a second on a slow core)."""
    model = floor()
    total = sum(a.n_obs for a in data.values())
    chosen = np.zeros(total, dtype=bool)
    chosen[np.random.default_rng(seed).choice(total, min(n, total), replace=False)] = True
    out, start = np.full((total, BERT["hidden_size"]), np.nan, dtype=np.float32), 0
    for a in data.values():
        here = np.flatnonzero(chosen[start : start + a.n_obs])
        if len(here):
            part = a[here].copy()
            scfm.tl.embed(part, model, key_added="floor", gene_embeddings=None, progress=False, **options)
            out[start + here] = part.obsm["X_floor"]
        start += a.n_obs
    return out


def score(case: Case, data: Mapping[str, AnnData], n_floor: int) -> Iterator[tuple[str, RobustnessReport]]:
    """The whole report; and one on the cells that the random transformer saw, without alterations."""
    options = {"batch_key": case.batch_key, "label_key": case.label_key, "progress": True, **case.options}
    yield "", scfm.tl.robustness(dict(data), **options)
    if n_floor:
        to_embed = {name: value for name, value in case.options.items() if name == "orthologues"}
        yield "_floor", with_floor(data, n_floor, options, to_embed)


def with_floor(
    data: Mapping[str, AnnData], n: int, options: Mapping[str, Any], to_embed: Mapping[str, Any]
) -> RobustnessReport:
    """The report on n cells, the random transformer beside everything else."""
    x = floor_vectors(data, n, 0, **to_embed)
    seen, start, few, vectors = ~np.isnan(x).any(axis=1), 0, {}, []
    for name, a in data.items():
        here = seen[start : start + a.n_obs]
        few[name] = a[here].copy()
        vectors.append(x[start : start + a.n_obs][here])
        start += a.n_obs
    own = {FLOOR: np.concatenate(vectors)}
    return scfm.tl.robustness(few, **{**options, "models": ["scfm-mini"], "use_rep": own, "stress": (), "align": ()})


def write(name: str, report: RobustnessReport) -> None:
    """Table, verdict and pictures for the documentation."""
    OUT.mkdir(parents=True, exist_ok=True)
    directions = metric_table()["better"].map({"higher": "↑", "lower": "↓"})
    found = report.to_dataframe()
    plain = found[found["detail"] == ""]
    shown = [m for m in TABLE if (plain["metric"] == m).any()]
    leakage = found.groupby("embedding")["leakage"].first()
    rows = []
    for embedding in report.embeddings:
        own = plain[plain["embedding"] == embedding].set_index("metric")
        rows.append(
            {
                "": embedding,
                **{f"{m} {directions[m]}": interval(own, m) for m in shown},
                "leakage": leakage[embedding],
            }
        )
    text = [markdown(pd.DataFrame(rows))]
    scib = plain[plain["metric"].isin(SCIB)].pivot(index="embedding", columns="metric", values="value")
    if len(scib):
        scib = scib.reindex(index=report.embeddings, columns=[m for m in SCIB if m in scib])
        text.append(markdown(scib.map("{:.2f}".format).rename(columns="{} ↑".format).rename_axis("").reset_index()))
    stress = report.stress()
    if len(stress):
        keep = [
            c
            for c in stress
            if c == "none" or c.split(" ", 1)[1] in ("10 %", "5 %", "500 genes", "30 %", "20 %", "50 %")
        ]
        text.append(
            markdown(stress[keep].map(lambda v: "" if np.isnan(v) else f"{v:.2f}").rename_axis("").reset_index())
        )
    text += [f"> {v}" for v in report.verdicts.values()]
    (OUT / f"{name}.md.inc").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    found.round(4).to_csv(OUT / f"{name}.csv", index=False)
    for kind in ("summary", "stress"):
        try:
            report.plot(kind).savefig(OUT / f"{name}_{kind}.png", dpi=110)
        except scfm.errors.ConfigError as nothing:
            print(f"{name}: {nothing}")


def interval(own: pd.DataFrame, metric: str) -> str:
    if metric not in own.index or np.isnan(own.loc[metric, "value"]):
        return ""
    row = own.loc[metric]
    return f"{row['value']:z.2f}" + ("" if np.isnan(row["low"]) else f" ({row['low']:z.2f} to {row['high']:z.2f})")


def markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with benchmark/")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--floor-cells", type=int, default=300, help="cells for the transformer with random weights")
    parser.add_argument("--pages", type=Path, default=Path("demo-output"), help="folder for the HTML pages")
    args = parser.parse_args()
    args.pages.mkdir(parents=True, exist_ok=True)
    for name in args.case or CASES:
        begin = time.perf_counter()
        case = CASES[name]
        for suffix, report in score(case, case.read(args.data), args.floor_cells):
            write(name + suffix, report)
            report.to_html(args.pages / f"robustness_{name}{suffix}.html")
            print(report)
        print(f"{name}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
