"""How much memory does embedding a large file take? 100,000 cells x 20,000 genes, backed, with a tiny model.

In a process of its own, because the peak of a process never falls. What counts is the whole peak, interpreter and
libraries included, less the embedding itself.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from timing import Row

N_CELLS = 100_000
N_GENES = 20_000
NONZERO = (500, 1_000)
BLOCK = 2_000
LIMIT_GB = 1.5
GIGABYTE = 1e9


def write_h5ad(path: Path, n_cells: int, seed: int = 0) -> None:
    """A gzip-compressed h5ad of random counts, written block by block."""
    rng = np.random.default_rng(seed)
    text = h5py.string_dtype()
    names = np.array([f"G{i}" for i in range(N_GENES)], dtype=object)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, index in (("obs", np.array([f"c{i}" for i in range(n_cells)], dtype=object)), ("var", names)):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            frame.attrs.create("column-order", [], dtype=text)
            column = frame.create_dataset("_index", data=index, dtype=text)
            column.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, N_GENES)})
        chunks = {"maxshape": (None,), "chunks": (1 << 17,), "compression": "gzip", "compression_opts": 1}
        indices = matrix.create_dataset("indices", (0,), np.int32, **chunks)
        data = matrix.create_dataset("data", (0,), np.float32, **chunks)
        lengths = rng.integers(NONZERO[0], NONZERO[1] + 1, n_cells)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        matrix.create_dataset("indptr", data=offsets)
        for start in range(0, n_cells, BLOCK):
            cells = lengths[start : start + BLOCK]
            columns = [np.sort(rng.choice(N_GENES, n, replace=False, shuffle=False)) for n in cells]
            for dataset, values in ((indices, np.concatenate(columns)), (data, rng.geometric(0.5, cells.sum()))):
                dataset.resize((int(offsets[start] + cells.sum()),))
                dataset[offsets[start] :] = values


def tiny_model():  # type: ignore[no-untyped-def]
    """A random transformer on the 20,000 genes: one layer, 32 wide, 64 tokens a cell."""
    from scfm.genes import GeneVocabulary
    from scfm.models import FoundationModel, ModelCard
    from scfm.tokenizers import RankValueTokenizer
    from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config

    vocabulary = GeneVocabulary(tuple(f"G{i}" for i in range(N_GENES)), "symbol")
    config = make_config(
        encoder=StackSpec(n_layers=1, width=32, n_heads=2, head_dim=16, ff=64),
        terms={"gene": TermSpec("table", rows=N_GENES)},
        readouts={"mean": ReadoutSpec((PartSpec("mean"),))},
    )
    tokenizer = RankValueTokenizer(vocabulary, np.ones(N_GENES), max_length=64)
    return FoundationModel(CellTransformer(config).eval(), tokenizer, ModelCard("tiny", "scfm"))


def peak_gb() -> float:
    """The most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIGABYTE


def measure(path: Path) -> dict[str, float]:
    """Embed a backed file in this process; gigabytes of its peak less the output."""
    import anndata as ad

    import scfm

    cells = ad.read_h5ad(path, backed="r")
    scfm.tl.embed(cells, tiny_model(), gene_matching="published", progress=False)
    written = sum(a.nbytes for a in (*cells.obsm.values(), *cells.varm.values()))
    return {"above": peak_gb() - written / GIGABYTE}


def measured(path: Path) -> float:
    """`measure` in a fresh process."""
    command = [sys.executable, os.fspath(Path(__file__)), os.fspath(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["above"])


def run() -> list[Row]:
    """Rows of (name, ours, reference, ratio): the limit, and a tenth of the cells, which shows whether it is flat."""
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = Path(folder) / "cells.h5ad", Path(folder) / "tenth.h5ad"
        write_h5ad(whole, N_CELLS)
        write_h5ad(tenth, N_CELLS // 10)
        large, small = measured(whole), measured(tenth)
    name = f"peak memory above the output, backed {N_CELLS:,} x {N_GENES:,}"
    return [
        (f"{name}, share of {LIMIT_GB} GB", f"{large:.2f} GB", f"{LIMIT_GB} GB", large / LIMIT_GB),
        (f"{name}, against a tenth of the cells", f"{large:.2f} GB", f"{small:.2f} GB", large / small),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        for name, ours, reference, ratio in run():
            print(f"{name:<90} {ours:>10} {reference:>10} {ratio:8.2f}")
