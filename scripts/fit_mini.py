"""Fit the built-in model scfm-mini: a projection of all expressed genes, learnt from a corpus of small data sets.

    python scripts/fit_mini.py DATA [--out scfm/models/data/scfm-mini]

DATA holds ``corpus/*.h5ad`` with raw counts, ``obs["species"]`` and ``uns["source"]``. The same data and seed give the
same weights, up to the last bit of their half precision.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from evaluate_mini import Cells, genes_of, log_values, model_embedding, read
from numpy.typing import NDArray

from scfm import genes
from scfm.genes import GeneVocabulary
from scfm.models import FoundationModel, ModelCard
from scfm.models._bag_model import bag_model
from scfm.models._model import MODEL_FILE
from scfm.training import _projection as training
from scfm.training._projection import CellSet, Projection, ProjectionRecipe

ROOT = Path(__file__).parents[1]
OUT = ROOT / "scfm" / "models" / "data" / "scfm-mini"
PINNED = ROOT / "tests" / "data" / "scfm_mini.npz"


def vocabulary() -> GeneVocabulary:
    """Every protein-coding human gene by Ensembl id, and the token of the cell."""
    table = genes.table("human")
    coding = table[(table["status"] == "current") & (table["biotype"] == "protein_coding")].sort_values("ensembl_id")
    return GeneVocabulary(
        names=(*coding["ensembl_id"], "<cls>"),
        namespace="ensembl",
        specials={"cls": len(coding)},
        species="human",
        symbols=(*coding["symbol"], "<cls>"),
    )


def corpus(
    data: Path, names: GeneVocabulary, species: Sequence[str] = ("human",)
) -> dict[str, tuple[Cells, Mapping[str, str]]]:
    """Files of some species whose source states a licence or a publication, with what it states."""
    import anndata

    found = {}
    for path in sorted((data / "corpus").glob("*.h5ad")):
        backed = anndata.read_h5ad(path, backed="r")
        its_species, source = str(backed.obs["species"].iloc[0]), dict(backed.uns["source"])
        backed.file.close()
        stated = [k for k in ("licence", "publication") if "not stated" not in str(source[k])[:25]]
        if its_species in species and stated:
            found[path.stem] = read(path, names, species=its_species)[0], source
    return found


def fit(sets: Sequence[Cells], recipe: ProjectionRecipe) -> tuple[NDArray[np.float64], Projection]:
    """Vectors (V, n_axes) of the genes, and the fit they come from."""
    cells = [CellSet(log_values(s.counts, recipe.target_sum), s.measured) for s in sets]
    projection = training.fit(cells, recipe)
    vectors, center = projection.vectors(recipe), projection.moments.center
    return training.finished(vectors, center, (s.sample(recipe) for s in cells)), projection


def card(
    sets: Mapping[str, tuple[Cells, Mapping[str, str]]], table: NDArray[np.float64], recipe: ProjectionRecipe
) -> ModelCard:
    """What is known of the model."""
    n_cells = {name: len(cells) for name, (cells, _) in sets.items()}
    n_genes = int((np.abs(table).max(axis=1) > 0).sum())
    return ModelCard(
        name="scfm-mini",
        family="scfm",
        title="Projection of all expressed genes, learnt from public human cells; runs at the speed of PCA",
        parameters=table.size,
        species="human",
        licence="BSD-3-Clause",
        source="comes with the package",
        verified="fitted by scripts/fit_mini.py; a test pins its vectors; scores in MODEL_CARD.md",
        data=f"{sum(n_cells.values()):,} human cells of {len(n_cells)} public data sets",
        details={
            "recipe": asdict(recipe),
            "genes_with_a_vector": n_genes,
            "corpus": {
                name: {"n_cells": n_cells[name], "licence": str(s["licence"]), "publication": str(s["publication"])}
                for name, (_, s) in sets.items()
            },
        },
    )


def with_checksums(folder: Path) -> None:
    """Let the card name the SHA-256 of the weights and the vocabulary."""
    about = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    files = ("model.safetensors", "vocabulary.json", training.STATISTICS_FILE)
    about["card"]["checksums"] = {name: sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / MODEL_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")


def pin(folder: Path, file: Path) -> None:
    """Store synthetic cells, 20 to 20,000 counts deep, and their vectors, for the test that guards the weights."""
    model = FoundationModel.from_pretrained(folder)
    names = [model.vocabulary.names[i] for i in genes_of(model.vocabulary)]
    draw = np.random.default_rng(0)
    level = np.exp(draw.normal(0, 2, len(names)))
    profiles = level * np.exp(draw.normal(0, 1, (24, len(names))))
    depth = np.geomspace(20, 20_000, len(profiles))
    counts = sp.csr_matrix(draw.poisson(depth[:, None] * profiles / profiles.sum(axis=1, keepdims=True)))
    cells = Cells(counts.astype(np.float32), np.ones(len(names), dtype=bool), np.full(len(profiles), ""))
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with corpus/")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = replace(ProjectionRecipe(), seed=args.seed)
    names = vocabulary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        sets = corpus(args.data, names)
    for name, (cells, _) in sets.items():
        print(f"{name:36} {len(cells):6,} cells {int(cells.measured.sum()):7,} genes")
    table, projection = fit([cells for cells, _ in sets.values()], recipe)
    model = bag_model(table, names, recipe.target_sum, card(sets, table, recipe))
    model.transformer.half()
    model.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)
    training.save_statistics(args.out, projection, recipe, table)
    with_checksums(args.out)
    if args.out == OUT:
        pin(OUT, PINNED)
    n_genes = model.card.details["genes_with_a_vector"]
    print(f"{n_genes:,} of {len(genes_of(names)):,} genes have a vector; wrote {args.out}")


if __name__ == "__main__":
    main()
