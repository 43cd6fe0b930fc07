"""Build the recorded tokens that ``scfm verify`` compares with, from the recorded cases of the published systems.

The counts, names, draws and tokens are those of ``tests/golden``, where the families' own code made them; for built-in
models there is no other code, so their own tokens of the same cells are recorded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp

from scfm import genes, models
from scfm.counts import CountBlock
from scfm.models._recorded import FILE, Recorded, write
from scfm.models._registry import BUILT_IN
from scfm.tokenizers import QuantileBins, Tokens

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("SCFM_GOLDEN", ROOT / "tests" / "golden"))
N_CELLS = 16
OFFICIAL = "the authors' code"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "scfm" / "models" / "data" / FILE)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    records = list(all_records())
    write(records, out)
    for record in records:
        print(f"{record.name}: {len(record.tokens)} cells, {record.tokens.n_tokens} tokens by {record.origin}")
    print(f"{out}: {out.stat().st_size:,} bytes")


def all_records() -> Iterator[Recorded]:
    """One record per family, and one per built-in model that is there."""
    yield geneformer("geneformer_v1")
    yield geneformer("geneformer_v2")
    yield scgpt()
    yield scbert()
    yield scfoundation()
    yield scmulan()
    for name in BUILT_IN:
        if name in models.cards():
            yield built_in(name)


def case(family: str) -> tuple[Path, dict[str, np.ndarray], anndata.AnnData]:
    """Folder, arrays and cells of a recorded case."""
    folder = GOLDEN / family / "tiny"
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    return folder, golden, anndata.read_h5ad(folder / "cells.h5ad")


def block(matrix: sp.spmatrix) -> CountBlock:
    """Counts without explicit zeros."""
    csr = sp.csr_matrix(matrix).astype(np.float32)
    csr.eliminate_zeros()
    return CountBlock(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data, csr.shape[1])


def ragged(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Real entries of a padded array, end to end."""
    return np.concatenate([row[:n] for row, n in zip(padded, lengths, strict=True)])


def tokens(ids: np.ndarray, lengths: np.ndarray, values: np.ndarray | None = None) -> Tokens:
    """Expected tokens of padded recorded arrays."""
    return Tokens(
        ids=ragged(ids, lengths).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        values=None if values is None else ragged(values, lengths).astype(np.float32),
    )


def geneformer(family: str) -> Recorded:
    """Geneformer: the cells that have genes of the vocabulary."""
    folder, golden, cells = case(family)
    checkpoint = next(p for p in sorted((folder / "checkpoint").iterdir()) if (p / "config.json").is_file())
    model = models.load(checkpoint)
    rows = golden["cell_index"][:N_CELLS]
    return Recorded(
        name=family,
        family=model.card.family,
        origin=OFFICIAL,
        genes=tuple(cells.var["ensembl_id"].astype(str)),
        block=block(cells.X[rows]),
        tokens=tokens(golden["tokens"][: len(rows)], golden["length"][: len(rows)]),
        tokenizer=model.tokenizer,
    )


def scgpt() -> Recorded:
    """scGPT, zero-shot, with the recorded draws of bins and of the genes that are kept."""
    folder, golden, cells = case("scgpt")
    model = models.load(folder / "checkpoint" / "pretrained")
    width = int(golden["embed.max_length"])
    order = np.full((cells.n_obs, golden["rand.embed_perm"].shape[1]), -1)
    order[golden["embed.sampled_cells"]] = golden["rand.embed_perm"]
    n = min(N_CELLS, cells.n_obs)
    lengths = np.minimum(golden["embed.n_tokens"][:n], width)
    return Recorded(
        name="scgpt",
        family=model.card.family,
        origin=OFFICIAL,
        genes=tuple(cells.var["feature_name"].astype(str)),
        block=block(cells.X[:n]),
        tokens=tokens(golden["embed.gene"][:n], lengths, golden["embed.expr"][:n]),
        tokenizer=replace(model.tokenizer, max_length=width, bins=QuantileBins(ties="random")),
        draws={"ties": golden["rand.embed_binning"][:n], "order": order[:n].astype(np.int16)},
    )


def scbert() -> Recorded:
    """scBERT: every gene of the list and the closing token."""
    folder, golden, cells = case("scbert")
    model = models.load(folder / "checkpoint")
    levels = golden["tokens"][:N_CELLS]
    lengths = np.full(len(levels), levels.shape[1])
    return Recorded(
        name="scbert",
        family=model.card.family,
        origin=OFFICIAL,
        genes=tuple(cells.var_names.astype(str)),
        block=block(cells.X[: len(levels)]),
        tokens=tokens(np.tile(np.arange(levels.shape[1]), (len(levels), 1)), lengths, levels),
        tokenizer=model.tokenizer,
    )


def scfoundation() -> Recorded:
    """scFoundation: the expressed genes, and the two depths of the default target."""
    folder, golden, cells = case("scfoundation")
    model = models.load(folder / "checkpoint")
    lengths = golden["tok_lengths"][:N_CELLS]
    n = len(lengths)
    return Recorded(
        name="scfoundation",
        family=model.card.family,
        origin=OFFICIAL,
        genes=tuple(cells.var["gene_name"].astype(str)),
        block=block(cells.X[:n]),
        tokens=tokens(golden["tok_positions"][:n], lengths, golden["tok_values"][:n]),
        tokenizer=model.tokenizer,
    )


def scmulan() -> Recorded:
    """scMulan: the prompt that asks for the cell type."""
    folder, golden, cells = case("scmulan")
    model = models.load(folder / "checkpoint")
    lengths = golden["prompt_len"][:N_CELLS]
    n = len(lengths)
    return Recorded(
        name="scmulan",
        family=model.card.family,
        origin=OFFICIAL,
        genes=tuple(cells.var_names.astype(str)),
        block=block(cells.X[:n]),
        tokens=tokens(golden["prompt_ids"][:n], lengths, golden["prompt_expr"][:n]),
        tokenizer=model.tokenizer,
    )


def built_in(name: str) -> Recorded:
    """A built-in model on the cells of Geneformer V2."""
    _, _, cells = case("geneformer_v2")
    model = models.load(name)
    counts = block(cells.X[:N_CELLS])
    names = cells.var["ensembl_id"].astype(str).tolist()
    found = genes.match(names, model.vocabulary, policy="published")
    made = model.tokenizer.tokenize_block(counts, found)
    part = "bag" if "bag" in made.parts else ""
    made = made.parts.get(part, made)
    return Recorded(
        name=name,
        family=model.card.family,
        origin="scfm itself, when the model was made",
        genes=tuple(names),
        block=counts,
        tokens=Tokens(made.ids, made.offsets, made.values),
        part=part,
    )


if __name__ == "__main__":
    main()
