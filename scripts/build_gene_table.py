"""Build the gene tables that ship with scfm from the full tables of genes and orthologues.

    python scripts/build_gene_table.py genes_human.tsv.gz genes_mouse.tsv.gz orthologues_human_mouse.tsv

The output (``scfm/genes/data``) holds one text per table, compressed with xz: columns one after another, separated
by form feeds, each a name followed by one value per line. Gene ids are stored as differences of their numbers.
The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

import numpy as np
import pandas as pd

LIMIT = 3_000_000
TEXT_COLUMNS = {
    "symbol": "symbol",
    "previous_symbols": "previous_symbols",
    "alias_symbols": "alias_symbols",
    "older_ensembl_symbols": "older_symbols",
    "biotype": "biotype",
    "chromosome": "chromosome",
    "start": "start",
    "status": "status",
}


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def differences(ids: pd.Series) -> list[str]:
    """Ensembl ids of one species as differences of their numbers, in the order given."""
    numbers = ids.str.extract(r"^ENS[A-Z]*G(\d{11})$", expand=False)
    if numbers.isna().any():
        raise SystemExit(f"not an Ensembl gene id: {ids[numbers.isna()].iloc[0]!r}")
    return [str(d) for d in np.diff(numbers.astype(np.int64).to_numpy(), prepend=0)]


def write(path: Path, columns: dict[str, list[str]]) -> None:
    for name, values in columns.items():
        if any("\n" in v or "\f" in v for v in values):
            raise SystemExit(f"column {name!r} holds a line break or form feed")
    text = "\f".join("\n".join([name, *values]) for name, values in columns.items())
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def gene_columns(path: Path) -> dict[str, list[str]]:
    genes = read(path).sort_values("ensembl_id", kind="stable")
    columns = {"ensembl_id": differences(genes["ensembl_id"])}
    for source, name in TEXT_COLUMNS.items():
        columns[name] = genes[source].tolist() if source in genes else [""] * len(genes)
    return columns


def orthologue_columns(path: Path) -> dict[str, list[str]]:
    pairs = read(path)
    pairs = pairs[pairs["type"] == "one2one"].sort_values("human_ensembl_id", kind="stable")
    for column in ("human_ensembl_id", "mouse_ensembl_id"):
        if pairs[column].duplicated().any():
            raise SystemExit(f"{column} holds an id twice among the one-to-one pairs")
    return {
        "human_ensembl_id": differences(pairs["human_ensembl_id"]),
        "mouse_ensembl_id": differences(pairs["mouse_ensembl_id"]),
        "agrees_with_hgnc_mgi": pairs["agrees_with_hgnc_mgi"].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("human", type=Path, help="genes_human.tsv.gz")
    parser.add_argument("mouse", type=Path, help="genes_mouse.tsv.gz")
    parser.add_argument("orthologues", type=Path, help="orthologues_human_mouse.tsv")
    default = Path(__file__).resolve().parent.parent / "scfm" / "genes" / "data"
    parser.add_argument("--out", type=Path, default=default, help="folder to write to (default: the package's)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "genes_human.txt.xz", gene_columns(arguments.human))
    write(arguments.out / "genes_mouse.txt.xz", gene_columns(arguments.mouse))
    write(arguments.out / "orthologues_human_mouse.txt.xz", orthologue_columns(arguments.orthologues))
    sizes = {p.name: p.stat().st_size for p in sorted(arguments.out.glob("*.xz"))}
    print(sizes, "total", sum(sizes.values()))
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(f"the tables take {sum(sizes.values()):,} bytes; {LIMIT:,} are allowed")


if __name__ == "__main__":
    main()
