"""`scfm.tl.generate`: cells that a model writes, as an AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from scfm import models
from scfm.get._slots import plain
from scfm.models._writing import Sampling, expression, kinds_of_words, write_cells
from scfm.tl._open import open_model

UNS = "scfm_generated"


def generate(
    model: str | Path | models.FoundationModel = "scmulan",
    n_cells: int = 100,
    *,
    genes: Mapping[str, int] | None = None,
    top_k: int | None = None,
    end_weight: float = 0.1,
    max_length: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    checkpoint: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    **words: str | Sequence[str],
) -> AnnData:
    """Let a model write cells that fit a description.

    A cell depends on its words, the seed and its row alone: the first rows of a larger call are those of a smaller one.

    Parameters
    ----------
    model
        A registered name, a folder, a hub repository, or a loaded model that was trained to write cells.
    n_cells
        How many.
    genes
        Genes that every cell is to have, with levels from 0 to the model's highest (scMulan: 10).
    top_k
        Draw only among the likeliest genes, so many; None: among all.
    end_weight
        Factor of the probability that a cell ends; scMulan's authors use 0.1, against cells that end early.
    max_length
        Words of the longest cell, those of the description included; None: as in the model's training.
    batch_size
        Cells written together. Keys and values of all their words are kept in memory.
    seed
        Key of all draws.
    checkpoint, family, revision
        See `scfm.models.load`.
    device, dtype
        Where and how precisely to compute.
    progress
        Show a progress bar.
    words
        The description, by kind (`scfm.models.kinds_of_words`): one word for all cells, or one per cell, such as
        ``organ="Lung", cell_type="Fibroblast"``.

    Returns
    -------
    AnnData
        ``.X`` (n_cells, genes of the model) csr, the level of each gene relative to the highest, 0 to 1: no counts, and
        not their logarithms; ``.obs`` the words, ``n_genes``, and ``ended``: whether the model ended the cell itself;
        ``.uns["scfm_generated"]`` what was done.

    Raises
    ------
    ConfigError, GeneMatchError
        Before the long work, if the model does not write cells, or does not know a word or gene; the message names those
        that may be meant.

    Examples
    --------
    >>> import scfm
    >>> cells = scfm.tl.generate(
    ...     "tests/golden/scmulan/tiny/checkpoint", 3, organ="Lung", cell_type="T cell", progress=False
    ... )
    >>> cells.shape
    (3, 160)
    """
    loaded = open_model(model, checkpoint=checkpoint, family=family, revision=revision, device=device, dtype=dtype)
    sampling = Sampling(top_k, end_weight, max_length, batch_size, seed)
    with tqdm(total=n_cells, desc=loaded.card.name, unit="cell", disable=not progress) as bar:
        written = write_cells(loaded, n_cells, words, genes, sampling, bar.update)
    levels, ids = expression(loaded, written)
    described = [kind for kind in kinds_of_words(loaded) if kind in words]
    obs = pd.DataFrame(
        {
            **{
                kind: pd.Categorical(np.broadcast_to(np.asarray(words[kind], dtype=object), n_cells))
                for kind in described
            },
            "n_genes": np.diff(levels.indptr).astype(np.int32),
            "ended": written.per_cell["ended"],
        },
        index=[f"generated_{i}" for i in range(n_cells)],
    )
    facts = {
        "model": loaded.card.name,
        "family": loaded.card.family,
        "version": version("scfm"),
        "values": "level of each gene relative to the highest; no counts",
        "words": {kind: words[kind] if isinstance(words[kind], str) else "one per cell" for kind in described},
        "genes": {"names": [*(genes or {})], "levels": [*(genes or {}).values()]},
        "top_k": top_k,
        "end_weight": end_weight,
        "max_length": max_length or loaded.config.writing_spec.longest,
        "batch_size": batch_size,
        "seed": seed,
    }
    var = pd.DataFrame(index=[loaded.vocabulary.names[i] for i in ids])
    return AnnData(levels, obs=obs, var=var, uns={UNS: plain(facts)})
