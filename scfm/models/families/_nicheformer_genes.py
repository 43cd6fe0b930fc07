"""Which genes does a Nicheformer model read, and what is their usual level? From its companions, or as published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
from numpy.typing import NDArray

from scfm.errors import CheckpointError
from scfm.models._reading import kind_of, read_array, read_json
from scfm.tokenizers import RankValueTokenizer, families

PUBLISHED_TOKENS = 20_340
TECHNOLOGIES = ("dissociated", "merfish", "cosmx", "xenium")


def tokenizer_near(path: Path, n_tokens: int, length: int) -> RankValueTokenizer:
    """The tokenizer of a model.

    Parameters
    ----------
    path
        Folder of the model; its companions may lie in it or beside it.
    n_tokens
        Of the model.
    length
        Longest list of tokens.

    Raises
    ------
    CheckpointError
        If companions are missing or do not fit.
    """
    genes, means = _companions(path)
    if genes is not None and families.NICHEFORMER_GENES_FROM + len(genes) != n_tokens:
        raise CheckpointError(
            f"{path}: the list of genes near it has {len(genes):,} genes, which makes "
            f"{families.NICHEFORMER_GENES_FROM + len(genes):,} tokens, but the weights are for {n_tokens:,}; they are of "
            "different releases"
        )
    if n_tokens == PUBLISHED_TOKENS and not (genes and set(TECHNOLOGIES) <= set(means)):
        shipped = replace(RankValueTokenizer.published("nicheformer"), max_length=length)
        if genes is None or shipped.vocabulary.names[-len(genes) :] == tuple(genes):
            return shipped
    if genes is None or not set(TECHNOLOGIES) <= set(means):
        raise CheckpointError(
            f"{path} is a model of {n_tokens:,} tokens that needs its own genes and technology means: put model.h5ad and "
            f"{', '.join(f'{name}_mean_script.npy' for name in TECHNOLOGIES)}, which the authors publish in the folder "
            "data/model_means of their repository theislab/nicheformer, into the folder or into model_means beside it"
        )
    return families.nicheformer(genes, means, max_length=length)


def _companions(path: Path) -> tuple[list[str] | None, dict[str, NDArray[Any]]]:
    """Genes in the order of their tokens, and technology means, as far as they lie in or beside a folder."""
    near = (path, path / "model_means", path.parent / "model_means", path.parent / "data" / "model_means")
    genes: list[str] | None = None
    if (path / "vocab.json").is_file():
        ids = read_json(path / "vocab.json")
        genes = [str(gene) for gene in sorted(ids, key=ids.__getitem__) if ids[gene] >= families.NICHEFORMER_GENES_FROM]
    for file in [folder / "model.h5ad" for folder in near if (folder / "model.h5ad").is_file()][:1]:
        genes = _var_names(file)
    means = {
        name: read_array(found[0])
        for name in TECHNOLOGIES
        if (
            found := [
                folder / f"{name}_mean_script.npy" for folder in near if (folder / f"{name}_mean_script.npy").is_file()
            ]
        )
    }
    return genes, means


def _var_names(path: Path) -> list[str]:
    try:
        return [str(name) for name in anndata.read_h5ad(path).var_names]
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)} that cannot be read ({error}); download it again") from error
