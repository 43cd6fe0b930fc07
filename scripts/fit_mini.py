"""Fit the built-in model and put it into the package, with its checksums and the vectors that a test pins.

    python scripts/fit_mini.py [NAME=VALUE ...]

What is fitted stands in ``configs/scfm-mini.yaml`` (`scfm pretrain` alone fits without touching the package). The same
files and seed give the same weights, up to the last bit of their half precision.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from transfer_protocol import Cells, genes_of, model_embedding

from scfm.models import FoundationModel
from scfm.models._model import MODEL_FILE
from scfm.training._fit_projection import MODEL, ProjectionConfig, fit_projection

ROOT = Path(__file__).parents[1]
OUT = ROOT / "scfm" / "models" / "data" / "scfm-mini"
PINNED = ROOT / "tests" / "data" / "scfm_mini.npz"
CONFIG = ROOT / "configs" / "scfm-mini.yaml"
VERIFIED = "fitted by scfm pretrain configs/scfm-mini.yaml; a test pins its vectors; scores in MODEL_CARD.md"
SUMMED = ("model.safetensors", "vocabulary.json", "tokenizer.npz", "statistics.npz", "seen.npy")


def complete(folder: Path) -> None:
    """Let the card name the SHA-256 of the files, and where the weights come from."""
    about = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    sums = {name: sha256((folder / name).read_bytes()).hexdigest() for name in SUMMED}
    about["card"] |= {"checksums": sums, "source": "comes with the package", "verified": VERIFIED}
    (folder / MODEL_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")


def pin(folder: Path, file: Path) -> None:
    """Store synthetic cells, 20 to 20,000 counts deep, and their vectors, for the test that guards the weights."""
    model = FoundationModel.from_pretrained(folder)
    n_genes = len(genes_of(model.vocabulary))
    draw = np.random.default_rng(0)
    level = np.exp(draw.normal(0, 2, n_genes))
    profiles = level * np.exp(draw.normal(0, 1, (24, n_genes)))
    depth = np.geomspace(20, 20_000, len(profiles))
    counts = sp.csr_matrix(draw.poisson(depth[:, None] * profiles / profiles.sum(axis=1, keepdims=True)))
    cells = Cells(counts.astype(np.float32), np.ones(n_genes, dtype=bool), np.full(len(profiles), ""))
    (vectors,) = model_embedding(model)([cells])
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        file,
        indptr=counts.indptr.astype(np.int32),
        indices=counts.indices.astype(np.int32),
        data=counts.data.astype(np.int32),
        vectors=vectors,
    )


def main() -> None:
    """Fit and write the model."""
    with tempfile.TemporaryDirectory() as scratch:
        fit_projection(ProjectionConfig.read(CONFIG, [*sys.argv[1:], f"output.folder={scratch}"]))
        for file in (Path(scratch) / MODEL).iterdir():
            shutil.copyfile(file, OUT / file.name)
    complete(OUT)
    pin(OUT, PINNED)


if __name__ == "__main__":
    main()
