"""Small corpora and configurations for tests of training."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm import genes

N_GENES = 60


def symbols(n: int = N_GENES) -> list[str]:
    """Symbols of human protein-coding genes."""
    table = genes.table("human")
    table = table[(table["status"] == "current") & (table["biotype"] == "protein_coding") & (table["symbol"] != "")]
    return list(table["symbol"][~table["symbol"].duplicated()][:n])


def cells(n: int = 40, seed: int = 0, names: list[str] | None = None, donors: int = 2) -> ad.AnnData:
    """Cells of two types, whose genes go together, and of a few donors."""
    rng = np.random.default_rng(seed)
    names = symbols() if names is None else names
    kind = rng.integers(0, 2, n)
    level = np.where(np.arange(len(names))[None] % 2 == kind[:, None], 6.0, 0.5)
    counts = rng.poisson(level * rng.gamma(4, 0.25, (n, 1)))
    obs = pd.DataFrame(
        {"donor": [f"d{i % donors}" for i in range(n)], "kind": np.where(kind == 0, "a", "b")},
        index=[f"cell{seed}_{i}" for i in range(n)],
    )
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))


def corpus_folder(folder: Path, n_files: int = 2, n_cells: int = 40) -> Path:
    """A folder of h5ad files; each has genes of its own that the others lack."""
    folder.mkdir(parents=True, exist_ok=True)
    names = symbols()
    for i in range(n_files):
        own = [g for j, g in enumerate(names) if j % 10 != i]
        cells(n_cells, seed=i, names=own).write_h5ad(folder / f"study{i}.h5ad")
    return folder


TINY: dict[str, Any] = {
    "model": {"n_layers": 1, "width": 16, "n_heads": 2, "max_length": 32, "dropout": 0.1},
    "sampling": {"batch_tokens": 300, "block_rows": 8, "pool_blocks": 4},
    "run": {"steps": 6, "learning_rate": 0.01, "warmup_steps": 2, "device": "cpu"},
    "validation": {"share": 0.25},
    "output": {"progress": False, "tensorboard": False, "checkpoint_every": 2, "log_every": 1},
}


def tiny(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run of seconds, with entries of its parts replaced."""
    config = copy.deepcopy(TINY)
    config["output"]["folder"] = str(folder)
    for part, entries in changes.items():
        config[part] = {**config.get(part, {}), **entries}
    return config


@contextlib.contextmanager
def room_for(n_bytes: int):
    """No file may grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
