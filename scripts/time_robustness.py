"""How long does a robustness report take? The whole report on 8,000 blood cells of four data sets.

    python scripts/time_robustness.py DATA [--cells 8000]

DATA holds ``reference/*.h5ad``.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
from transfer_protocol import COARSE

import scfm

FILES = ("kang2018_ctrl_stim", "pbmc14k_sorted", "pbmc3k_labelled", "zheng_sorted_pbmc")


def blood(data: Path, n_cells: int) -> dict[str, anndata.AnnData]:
    """Cells with a coarse label of each file, a share of all that is the same in each."""
    names = {fine: coarse for coarse, fines in COARSE.items() for fine in fines}
    found = {}
    for file in FILES:
        adata = anndata.read_h5ad(data / "reference" / f"{file}.h5ad")
        label = adata.obs["cell_type"].astype(str).map(names)
        adata = adata[label.notna().to_numpy()].copy()
        adata.obs_names_make_unique()
        adata.obs["batch"], adata.obs["label"] = file, label.dropna().to_numpy()
        found[file] = adata
    share = min(1.0, n_cells / sum(adata.n_obs for adata in found.values()))
    draw = np.random.default_rng(0)
    return {
        file: adata[np.sort(draw.permutation(adata.n_obs)[: int(adata.n_obs * share)])].copy()
        for file, adata in found.items()
    }


def main() -> None:
    """Print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cells", type=int, default=8000)
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = blood(args.data, args.cells)
        start = time.perf_counter()
        report = scfm.tl.robustness(cells, batch_key="batch", label_key="label", progress=False)
    print(report)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    n = sum(adata.n_obs for adata in cells.values())
    print(f"{n:,} cells: {time.perf_counter() - start:.0f} s, peak memory {memory:.1f} GB")


if __name__ == "__main__":
    main()
