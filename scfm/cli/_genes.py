"""From file to file: what `scfm embed-genes` and `scfm embed-sequences` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scfm.cli._embed import genes_line
from scfm.cli._files import add_results, bytes_of, check_space, checked_output, copy_file, is_h5ad, replacing, write_all
from scfm.cli._shell import columns


def embed_genes_of_file(source: Path, out: Path, vectors: str, **options: Any) -> str:
    """Write vectors of genes into a copy of a file.

    Parameters
    ----------
    source, out
        Input and output.
    vectors
        Model or table, as `scfm.tl.embed_genes` takes it.
    options
        Further arguments of it.

    Returns
    -------
    What to tell the user.
    """
    target = checked_output(out, source)
    from scfm import counts, tl
    from scfm.get._slots import UNS, Slots

    adata = counts.read(source)
    check_space(target, bytes_of(source) + 4096 * adata.n_vars)
    before = dict(adata.uns.get(UNS, {}))
    in_place = is_h5ad(source)
    with replacing(target) as unfinished:
        if in_place:
            copy_file(source, unfinished, target)
        tl.embed_genes(adata, vectors, **options)
        key = next(k for k, facts in adata.uns[UNS].items() if before.get(k) is not facts)
        if in_place:
            add_results(unfinished, adata, key, target)
        else:
            write_all(unfinished, adata, target)
    rows = [
        (f'varm["{name}"]', " x ".join(f"{n:,}" for n in adata.varm[name].shape))
        for name in Slots(key).of_genes
        if name in adata.varm
    ]
    return f"{genes_line(adata, key)}\n{out}\n{columns(rows, indent='  ')}"


def embed_sequences_of_file(fasta: Path, out: Path, model: str, **options: Any) -> str:
    """Write vectors of sequences as an h5ad.

    Parameters
    ----------
    fasta, out
        Input and output.
    model
        As `scfm.tl.embed_sequences` takes it.
    options
        Further arguments of it.

    Returns
    -------
    What to tell the user.
    """
    target = checked_output(out, fasta)
    from scfm import tl

    with replacing(target) as unfinished:
        made = tl.embed_sequences(fasta, model, **options)
        write_all(unfinished, made, target)
    facts = made.uns["scfm"]["sequences"]["tokens"]
    return (
        f"{out}\n  {made.n_obs:,} {'genes' if options.get('average_by') else 'sequences'} x {made.n_vars:,}; "
        f"{facts['from_cache']:,} of {facts['sequences']:,} sequences from the cache, {facts['in_windows']:,} in windows"
    )
