"""From file to file: what `scfm annotate` and `scfm annotator` do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm.cli._files import (
    add_column,
    bytes_of,
    check_space,
    checked_output,
    copy_file,
    is_h5ad,
    replacing,
    write_all,
    writing,
)
from scfm.cli._shell import columns
from scfm.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.annotation import Annotator

BYTES_PER_CELL = 1024
"""Room for the results of a cell when free space is looked at."""


def annotate_file(source: Path, out: Path, reference: Path | None, options: Mapping[str, Any]) -> str:
    """Name the cells of a file, and write them with their names.

    Parameters
    ----------
    source, out
        Input and output.
    reference
        Cells with labels or an annotator; None: the annotator that ships.
    options
        Further arguments of `scfm.tl.annotate`.

    Returns
    -------
    What to tell the user.
    """
    target = checked_output(out, source)
    from scfm import counts, tl
    from scfm.get._slots import key_of
    from scfm.tl._annotate import DEFAULT_KEY

    begin = time.monotonic()
    adata = counts.read(source)
    in_place = is_h5ad(source)
    check_space(target, bytes_of(source) + BYTES_PER_CELL * int(adata.n_obs))
    with replacing(target) as unfinished:
        if in_place:
            copy_file(source, unfinished, target)
        tl.annotate(adata, reference, **options)
        key = key_of(options["key_added"] or DEFAULT_KEY)
        if in_place:
            _add_annotation(unfinished, adata, key, target)
        else:
            write_all(unfinished, adata, target)
    return _told(out, adata, key, time.monotonic() - begin)


def _add_annotation(target: Path, adata: AnnData, key: str, out: Path) -> None:
    """Write the slots of one annotation into a copy of the input; nothing else of the file is read or touched."""
    from anndata.io import write_elem

    from scfm.get._annotation import COLUMNS, UNS, proba_slot

    with writing(target, "r+", out) as file:
        for name in (*(f"{key}_{c}" for c in COLUMNS), f"{key}_vote"):
            if name in adata.obs:
                add_column(file, adata.obs, name)
        for group in ("obsm", "uns"):
            if group not in file:
                write_elem(file, group, {})
        write_elem(file["obsm"], proba_slot(key), adata.obsm[proba_slot(key)])
        if UNS not in file["uns"]:
            write_elem(file["uns"], UNS, {})
        write_elem(file["uns"][UNS], key, adata.uns[UNS][key])


def _told(out: Path, adata: AnnData, key: str, seconds: float) -> str:
    labels = adata.obs[f"{key}_label"].value_counts()
    rows = [(str(name), f"{n:,}") for name, n in labels.items() if n]
    method = adata.uns["scfm_annotation"][key]["method"]
    slots = f'obs["{key}_label"], "_score", "_margin", "_novelty", "_reason"; obsm["{key}_proba"]'
    return f"{out}\n{columns(rows, indent='  ')}\n{adata.n_obs:,} cells by {method} in {seconds:.1f} s: {slots}"


def fit_annotator(reference: Path, out: Path, label_key: str, options: Mapping[str, Any]) -> str:
    """Fit an annotator on a file, and write it.

    Returns
    -------
    What to tell the user.
    """
    if out.suffix != ".npz":
        raise ConfigError(f"OUT is {str(out)!r}; annotators are .npz files: {out.with_suffix('.npz')}")
    from scfm.annotation import Annotator

    fitted = Annotator.fit(reference, label_key, **options)
    fitted.save(out)
    return f"{out}\n{about(fitted)}"


def about(annotator: Annotator) -> str:
    """An annotator in a few lines."""
    from scfm.tl._annotate import held_out_scores

    scores = held_out_scores(annotator).get("scores", {})
    rows = [
        ("classes", ", ".join(annotator.classes)),
        ("method", f"{annotator.method} ({', '.join(annotator.members)})"),
        ("cells", f"{annotator.about.get('n_cells', 0):,}"),
        ("genes", f"{0 if annotator.genes is None else len(annotator.genes):,}"),
        *((f"held out: {name}", f"{row['value']:.3f}") for name, row in scores.items()),
    ]
    scope = annotator.about.get("scope")
    return columns([*rows, ("scope", scope)] if scope else rows, indent="  ")
