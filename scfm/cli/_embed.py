"""From file to file: what `scfm embed` and `scfm inspect` do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm.cli._files import (
    BYTES_PER_CELL,
    PARTIAL,
    SUFFIX,
    add_results,
    bytes_of,
    check_space,
    checked_output,
    copy_file,
    is_h5ad,
    replacing,
    write_all,
)
from scfm.cli._shell import columns, say
from scfm.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.tokenizers import ContextOption


def embed_file(
    source: Path,
    out: Path | None,
    model: str,
    *,
    context: Sequence[str],
    dry_run: bool,
    load: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    """Embed a file into a file; what can go wrong early is looked at before the long work.

    Parameters
    ----------
    source, out
        Input and output; without output only `dry_run` is possible.
    model
        As `scfm.models.load` takes it.
    context
        ``name=value`` each.
    dry_run
        Only say what it would take.
    load, options
        Further arguments of `scfm.models.load` and `scfm.tl.embed`.

    Returns
    -------
    What to tell the user.
    """
    target = None if out is None else checked_output(out, source)
    from scfm import counts, models, tl

    begin = time.monotonic()
    adata = counts.read(source)
    counts.search(adata, layer=options["layer"], use_raw=options["use_raw"])
    loaded = models.load(model, **load)
    asked = {**options, "context": _context(context, loaded.tokenizer.context_options, adata.obs.columns)}
    if dry_run or out is None or target is None:
        return str(tl.embed(adata, loaded, dry_run=True, **asked))
    in_place = is_h5ad(source)
    check_space(target, _bytes_needed(source, adata, in_place=in_place))
    _tell_leftovers(target)
    with replacing(target) as unfinished:
        if in_place:
            copy_file(source, unfinished, target)
        before = set(adata.uns.get("scfm", {}))
        tl.embed(adata, loaded, **asked)
        key = _key(asked["key_added"] or loaded.card.name)
        if in_place:
            add_results(unfinished, adata, key, target)
        else:
            write_all(unfinished, adata, target)
    replaced = " (in place of an earlier run)" if key in before else ""
    fit = f"{genes_line(adata, key)}\n" if asked.get("orthologues") is not None else ""
    return fit + _written(out, adata, key, time.monotonic() - begin) + replaced


def _key(name: str) -> str:
    from scfm.get._slots import key_of

    return key_of(name)


def _context(pairs: Sequence[str], options: Mapping[str, ContextOption], obs_columns: Any) -> dict[str, Any]:
    """Values by name; numbers for options that are numbers, unless a column has that name."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"--context {pair!r} is not of the form name=value, such as --context assay=assay_column")
        option = options.get(name)
        found[name] = value
        if option is not None and option.is_number and value not in obs_columns:
            try:
                found[name] = float(value)
            except ValueError:
                continue
    return found


def _bytes_needed(source: Path, adata: AnnData, *, in_place: bool) -> int:
    held = bytes_of(source) if in_place else max(bytes_of(source), adata.__sizeof__())
    return held + BYTES_PER_CELL * int(adata.n_obs)


def _tell_leftovers(target: Path) -> None:
    for path in sorted(target.parent.glob(f"{target.stem}.*{PARTIAL}{SUFFIX}")):
        say(f"{path} is left over from a run that was killed, unless one is under way; it can be removed")


def _written(out: Path, adata: AnnData, key: str, seconds: float) -> str:
    from scfm.get._slots import UNS, Slots

    slots = Slots(key)
    rows = [(f'obsm["{slots.cells}"]', _shape(adata.obsm[slots.cells]), "one vector per cell")]
    meanings = ("one vector per gene", "one vector per gene and group", "cells behind each")
    rows += [
        (f'varm["{name}"]', _shape(adata.varm[name]), meaning)
        for name, meaning in zip(slots.of_genes, meanings, strict=True)
        if name in adata.varm
    ]
    rows.append((f'obs["{slots.n_tokens}"]', f"{adata.n_obs:,}", "tokens per cell"))
    rows.append((f'uns["{UNS}"]["{key}"]', "", "what was found and done"))
    return f"{out}\n{columns(rows, indent='  ')}\n{adata.n_obs:,} cells in {seconds:.1f} s"


def genes_line(adata: AnnData, key: str) -> str:
    """How the genes fitted, as the report of a result tells."""
    from scfm.get._slots import UNS

    fit = adata.uns[UNS][key]["coverage"]
    how = ", ".join(f"{name} {n:,}" for name, n in fit["how"].items())
    lines = [f"genes: {fit['n_matched']:,} of {fit['n_vars']:,} columns matched by {fit['gene_key']!r} ({how})"]
    if fit.get("count_coverage"):
        lines[0] += f", {fit['count_coverage']:.1%} of the counts"
    return "\n".join([*lines, *(f"  note: {note}" for note in fit.get("notes", ()))])


def _shape(array: Any) -> str:
    return " x ".join(f"{n:,}" for n in array.shape)


def inspect_file(
    file: Path, layer: str | None, use_raw: bool | None, model: str | None, gene_key: str | None
) -> tuple[str, bool]:
    """What a file holds, in words, and whether it can be embedded."""
    from scfm import counts, pp

    adata = counts.read(file)
    report = pp.inspect(adata, model=model, layer=layer, use_raw=use_raw, gene_key=gene_key)
    lines = [str(report), ""]
    for name in ("obs", "var"):
        held = ", ".join(map(str, getattr(adata, name).columns)) or "no columns"
        lines.append(f"{name}: {held}")
    runs = ", ".join(adata.uns.get("scfm", {}))
    if runs:
        lines.append(f"embeddings of scfm: {runs}")
    return "\n".join(lines), report.counts.where is not None
