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
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from evaluate_mini import Cells, genes_of, log_values, model_embedding, read
from numpy.typing import NDArray

from scfm import genes
from scfm.genes import GeneVocabulary
from scfm.models import FoundationModel, ModelCard
from scfm.models._model import MODEL_FILE
from scfm.tokenizers import BagTokenizer

ROOT = Path(__file__).parents[1]
OUT = ROOT / "scfm" / "models" / "data" / "scfm-mini"
PINNED = ROOT / "tests" / "data" / "scfm_mini.npz"


@dataclass(frozen=True)
class Recipe:
    """How the gene vectors are learnt.

    Parameters
    ----------
    n_axes
        Length of a vector.
    target_sum
        Values are log1p of counts per so many.
    max_cells, min_genes
        Cells of a file: at most so many, each with so many genes.
    measured_in
        Genes are kept that at least this share of the files measured.
    scaling, weighting
        A gene is divided by its standard deviation within files to this power: while fitting, and in its vector.
        1 would let the noise of rare genes in deep cells drown everything, 0 hides all but the abundant genes.
    clip
        Scaled values are cut there while fitting.
    whitening
        Each axis is divided by its singular value to this power.
    seed
        Of the sample of cells and of the decomposition.
    """

    n_axes: int = 192
    target_sum: float = 300.0
    max_cells: int = 1500
    min_genes: int = 100
    measured_in: float = 0.3
    scaling: float = 0.75
    weighting: float = 0.5
    clip: float = 10.0
    whitening: float = 0.5
    seed: int = 0


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


def fit(sets: Sequence[Cells], recipe: Recipe) -> NDArray[np.float64]:
    """Vectors (V, n_axes) of the genes, without the direction of the mean cell, at a median length of 1 for a cell.

    A cell's vector then needs no centre: it is a weighted sum over the genes that the cell expresses.
    """
    vectors, center = project(sets, recipe)
    vectors = without(vectors, center)
    lengths = [np.linalg.norm(_values(cells, recipe) @ vectors, axis=1) for cells in sets]
    return vectors / np.median(np.concatenate(lengths))


def without(vectors: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gene vectors (V, d) less their part along the vector of one cell with the values ``center`` (V,)."""
    middle = center @ vectors
    return vectors - np.outer(vectors @ middle, middle) / (middle @ middle)


def project(sets: Sequence[Cells], recipe: Recipe) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vectors of the genes, and the mean cell.

    Each file is centred by its own mean, each gene divided by a power of its standard deviation within the files that
    measured it; of the stack the truncated singular value decomposition, every axis divided by a power of its singular
    value.

    Parameters
    ----------
    sets
        Counts of one file each.
    recipe
        The settings.

    Returns
    -------
    (V, n_axes), zero for genes that too few files measured or no cell expresses, and (V,) the mean of the file means.
    """
    values = [_values(cells, recipe) for cells in sets]
    measured = np.stack([cells.measured for cells in sets])
    kept = np.flatnonzero(measured.mean(axis=0) >= recipe.measured_in)
    measured = measured[:, kept]
    means = np.stack([np.asarray(x[:, kept].mean(axis=0)).ravel() for x in values])
    squares = np.stack([np.asarray(x[:, kept].power(2).sum(axis=0)).ravel() for x in values])
    sizes = np.array([[x.shape[0]] for x in values])
    within = (squares - sizes * means**2).clip(0) * measured
    deviation = np.sqrt(within.sum(axis=0) / (sizes * measured).sum(axis=0))
    varies = deviation > 0
    scale = np.where(varies, deviation, 1.0) ** -recipe.scaling * varies
    weight = np.where(varies, deviation, 1.0) ** -recipe.weighting * varies

    stack = np.empty((int(sizes.sum()), len(kept)), dtype=np.float32)
    at = 0
    for x, mean in zip(values, means, strict=True):
        part = (x[:, kept].toarray() - mean) * scale
        stack[at : at + len(part)] = part.clip(-recipe.clip, recipe.clip)
        at += len(part)
    singular, axes = _truncated_svd(stack, recipe.n_axes, recipe.seed)

    n_genes = sets[0].counts.shape[1]
    vectors, center = np.zeros((n_genes, recipe.n_axes)), np.zeros(n_genes)
    vectors[kept] = axes * weight[:, None] / singular**recipe.whitening
    center[kept] = (means * measured).sum(axis=0) / measured.sum(axis=0)
    return vectors, center


def _values(cells: Cells, recipe: Recipe) -> sp.csr_matrix:
    rows = np.flatnonzero(cells.counts.getnnz(axis=1) >= recipe.min_genes)
    if len(rows) > recipe.max_cells:
        rows = np.sort(np.random.default_rng(recipe.seed).choice(rows, recipe.max_cells, replace=False))
    return log_values(cells.counts[rows], recipe.target_sum)


def _truncated_svd(x: NDArray[np.float32], k: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The k largest singular values and right vectors (columns), each with its largest entry positive."""
    draws = np.random.default_rng(seed).standard_normal((x.shape[1], k + 20), dtype=np.float32)
    basis = np.linalg.qr(x @ draws)[0]
    for _ in range(4):
        basis = np.linalg.qr(x @ np.linalg.qr(x.T @ basis)[0])[0]
    _, singular, axes = np.linalg.svd((basis.T @ x).astype(np.float64), full_matrices=False)
    axes = axes[:k].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return singular[:k], axes * np.sign(largest)


def build(table: NDArray[np.float64], names: GeneVocabulary, recipe: Recipe, card: ModelCard) -> FoundationModel:
    """The model that sums the vectors of a cell's genes: no layers, one token per cell."""
    import torch

    from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config

    cell = (PartSpec("token", index=0),)
    config = make_config(
        encoder=StackSpec(n_layers=0, width=recipe.n_axes, n_heads=1, head_dim=recipe.n_axes, ff=1, norm="pre"),
        terms={"bag": TermSpec("bag", rows=len(names))},
        readouts={"unit": ReadoutSpec(cell, unit=True), "plain": ReadoutSpec(cell)},
        readout="unit",
    )
    transformer = CellTransformer(config)
    rows = np.zeros((len(names), recipe.n_axes), dtype=np.float32)
    rows[genes_of(names)] = table
    with torch.no_grad():
        transformer.terms["bag"].table.copy_(torch.as_tensor(rows))  # type: ignore[operator, union-attr]
    return FoundationModel(transformer.half(), BagTokenizer(names, target_sum=recipe.target_sum), card)


def card(sets: Mapping[str, tuple[Cells, Mapping[str, str]]], table: NDArray[np.float64], recipe: Recipe) -> ModelCard:
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
    files = ("model.safetensors", "vocabulary.json")
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
    recipe = replace(Recipe(), seed=args.seed)
    names = vocabulary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        sets = corpus(args.data, names)
    for name, (cells, _) in sets.items():
        print(f"{name:36} {len(cells):6,} cells {int(cells.measured.sum()):7,} genes")
    table = fit([cells for cells, _ in sets.values()], recipe)
    model = build(table, names, recipe, card(sets, table, recipe))
    model.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)
    with_checksums(args.out)
    if args.out == OUT:
        pin(OUT, PINNED)
    n_genes = model.card.details["genes_with_a_vector"]
    print(f"{n_genes:,} of {len(genes_of(names)):,} genes have a vector; wrote {args.out}")


if __name__ == "__main__":
    main()
