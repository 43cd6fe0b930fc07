"""`scfm.tl.embed_sequences`: vectors of proteins and of DNA by a sequence model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from scfm.errors import ConfigError
from scfm.evaluation import health
from scfm.get._slots import UNS, plain
from scfm.models._device import resolve_device
from scfm.models._fasta import Sequence, read_sequences
from scfm.models._registry import home
from scfm.models._sequence_model import locate
from scfm.models._sequences import Pooling, SequenceJob, embed_letters

log = logging.getLogger("scfm")

KEY = "sequences"
HEADER = ("gene_symbol", "gene_id")


def embed_sequences(
    sequences: str | Path | Mapping[str, str],
    model: str | Path,
    *,
    pooling: Pooling = "mean",
    hidden_layer: int | None = None,
    average_by: str | Mapping[str, str] | None = None,
    too_long: Literal["windows", "truncate", "error"] = "windows",
    max_tokens: int | None = None,
    overlap: int | None = None,
    cache: bool | str | Path = True,
    batch_tokens: int | Literal["auto"] = "auto",
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> AnnData:
    """Embed proteins, transcripts or pieces of DNA with a sequence model.

    A sequence's vector does not depend on the other sequences: padding is masked and never counted, and a model in which
    it would be seen all the same reads only sequences of equal length together. What is computed is kept in a cache by
    content, so that a run that was stopped goes on where it was.

    Parameters
    ----------
    sequences
        A FASTA file (also gzipped), or letters by name. Case does not matter; RNA is read as DNA by DNA models; a stop
        ``*`` at the end of a protein is left out.
    model
        A folder with a transformers model and its tokenizer, or ``owner/repository`` of the hub, for example
        ``facebook/esm2_t33_650M_UR50D``. Which ones run is said in the guide, "Gene embeddings".
    pooling
        ``mean`` over the tokens of the letters, special tokens left out; ``cls``: the special token before them;
        ``last``: their last token, for models that read from left to right.
    hidden_layer
        0: embeddings, to n, or from the last with -1; None: the model's final state.
    average_by
        Give one vector per gene instead, the mean over its sequences: ``"gene_symbol"`` or ``"gene_id"`` as the headers of
        Ensembl, UniProt and NCBI name them, or the gene of each sequence by name.
    too_long
        What to do with sequences that the model cannot read at once: ``windows`` reads them in overlapping pieces of equal
        size, and each token counts in the piece in which it is farther from an edge (``cls``: the mean over the
        pieces); ``truncate`` reads the beginning; ``error`` names the first one.
    max_tokens, overlap
        Tokens of a piece, special ones included, and those that neighbouring pieces share; None: what the model was made
        for, and a quarter.
    cache
        Keep the vectors in ``$SCFM_HOME/sequences``, in another folder, or (False) not at all.
    batch_tokens
        Tokens per batch.
    device, dtype
        Where and how precisely to compute; None: the best device at hand, float32.
    revision
        Of the hub repository.
    trust_remote_code
        Run code that comes with the model, after you have read it; for hub repositories with a ``revision``.
    progress
        Show a progress bar.

    Returns
    -------
    AnnData with the sequences (or genes) as ``obs`` and their vectors as ``X`` (n, d) float32: a source for
    `scfm.tl.embed_genes`, and with `scfm.models.frozen_table` or `scfm.models.add_species` the frozen gene features of a
    transformer. ``obs`` holds ``length``, ``n_tokens``, ``n_windows`` and ``n_unknown``, and what the headers say of genes;
    for genes ``n_sequences``. ``uns["scfm"]["sequences"]`` holds what was done.

    Raises
    ------
    TokenizerError
        If there are no sequences, or the model cannot read them.
    CheckpointError
        If the model is missing, incomplete, or needs code of its own.
    ConfigError
        If an argument is impossible.

    Examples
    --------
    >>> proteins = scfm.tl.embed_sequences(
    ...     "Homo_sapiens.GRCh38.pep.all.fa.gz", "facebook/esm2_t33_650M_UR50D", average_by="gene_symbol"
    ... )  # doctest: +SKIP
    >>> scfm.tl.embed_genes(adata, proteins, key_added="esm2")  # doctest: +SKIP
    """
    job = SequenceJob(pooling, hidden_layer, too_long, max_tokens, overlap)
    listed = read_sequences(sequences)
    gene_of = None if average_by is None else _genes(listed, average_by)
    chosen = resolve_device(device)
    found = locate(model, revision, trust_remote_code=trust_remote_code)
    if found.binding:
        log.warning("%s: %s", found.name, found.binding)
    folder = None if cache is False else home() / KEY if cache is True else Path(cache).expanduser()
    with tqdm(total=len(listed), desc=found.short_name, unit="sequence", disable=not progress) as bar:
        result = embed_letters(
            {s.name: s.letters for s in listed},
            found,
            job,
            cache=folder,
            device=chosen,
            dtype=dtype,
            batch_tokens=batch_tokens,
            progress=bar,
        )
    obs = pd.DataFrame(
        {
            **{name: [getattr(s, name) for s in listed] for name in HEADER if any(getattr(s, name) for s in listed)},
            "length": [len(s.letters) for s in listed],
            "n_tokens": result.n_tokens,
            "n_windows": result.n_windows,
            "n_unknown": result.n_unknown,
        },
        index=pd.Index([s.name for s in listed], dtype=object),
    )
    facts = {
        "model": found.name,
        "family": str(found.config.get("model_type", "")),
        "version": version("scfm"),
        "parameters": {
            "pooling": pooling,
            "hidden_layer": "final" if hidden_layer is None else hidden_layer,
            "too_long": too_long,
            "device": str(chosen),
            "dtype": dtype or "float32",
            "own_code": found.own_code,
        },
        "tokens": {
            "sequences": len(listed),
            "from_cache": result.n_cached,
            "in_windows": int((result.n_windows > 1).sum()),
            "unknown": int(result.n_unknown.sum()),
        },
    }
    if result.n_unknown.any():
        log.warning(
            "%d tokens are unknown to %s (most in %s); they count as unknown letters",
            result.n_unknown.sum(),
            found.name,
            obs["n_unknown"].idxmax(),
        )
    out = AnnData(result.vectors, obs=obs) if gene_of is None else _averaged(result.vectors, obs, gene_of)
    facts["health"] = {k: v for k, v in health(out.X).to_dict().items() if k not in ("n_cells", "n_empty")}
    out.uns[UNS] = {KEY: plain(facts)}
    return out


def _genes(listed: list[Sequence], average_by: str | Mapping[str, str]) -> list[str]:
    """The gene of each sequence, empty where it has none."""
    if isinstance(average_by, str):
        if average_by not in HEADER:
            raise ConfigError(
                f"average_by={average_by!r} is neither {' nor '.join(map(repr, HEADER))} nor genes by name"
            )
        found = [getattr(s, average_by) for s in listed]
    else:
        found = [str(average_by.get(s.name, "") or "") for s in listed]
    if not any(found):
        raise ConfigError(
            f"no sequence has a gene (the first is {listed[0].name!r}); pass average_by={{name: gene, ...}} with the names "
            "of the sequences"
        )
    return found


def _averaged(vectors: np.ndarray, obs: pd.DataFrame, gene_of: list[str]) -> AnnData:
    """Mean vectors of genes in the order in which they first occur."""
    genes = [*dict.fromkeys(gene for gene in gene_of if gene)]
    place = {gene: i for i, gene in enumerate(genes)}
    rows = np.array([place.get(gene, -1) for gene in gene_of])
    there = rows >= 0
    if not there.all():
        log.warning("%d of %d sequences have no gene and are left out of the means", (~there).sum(), len(rows))
    counts = np.bincount(rows[there], minlength=len(genes))
    sums = np.zeros((len(genes), vectors.shape[1]))
    np.add.at(sums, rows[there], vectors[there])
    about = pd.DataFrame({"n_sequences": counts}, index=pd.Index(genes, dtype=object))
    for name in HEADER:
        if name in obs:
            about[name] = obs[name].to_numpy()[[int(np.flatnonzero(rows == i)[0]) for i in range(len(genes))]]
    return AnnData((sums / counts[:, None]).astype(np.float32), obs=about)
