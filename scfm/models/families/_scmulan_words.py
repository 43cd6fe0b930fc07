"""What are scMulan's words, and which genes are they? The files beside its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scfm.errors import CheckpointError
from scfm.models._reading import kind_of, read_tensors, require
from scfm.tokenizers import BinnedTokenizer, families
from scfm.transformer import WritingSpec

log = logging.getLogger("scfm")

WORDS = "meta_info.pt"
GENES = "total_gene_list*.txt"
ALIASES = "GeneSymbolRef*.csv"

HINT = (
    "an scMulan folder holds ckpt_scMulan.pt and, from the authors' repository, meta_info.pt (scMulan/utils), "
    "total_gene_list_42117.txt and GeneSymbolRef_upd0731.csv (scMulan/reference/GeneSymbolUniform)"
)
"""Where the files are published."""

END, NAME_CELL, NAME_ORGAN, MAKE_CELL = "<E>", "<PCT>", "<SPToken3>", "<SPToken1>"
KINDS = {
    "organ": "organ",
    "region": "region",
    "cell_type": "cell_type",
    "coarse_type": "MCT",
    "age": "age_bin",
    "sex": "donor_gender",
    "status": "sample_status",
    "technique": "seq_tech",
}
"""Our names of the kinds of words, in the order of the authors' prompts as far as these are known, and the authors'."""
QUESTIONS = {"cell_type": (NAME_CELL, ("coarse_type", "cell_type")), "organ": (NAME_ORGAN, ("organ", "region"))}


def read_words(path: Path) -> dict[str, Any]:
    """The contents of the authors' ``meta_info.pt``.

    Raises
    ------
    CheckpointError
        If something is missing in it, or a word is not in its list of all words.
    """
    path = require(path / WORDS, "the words of the model", HINT)
    words = read_tensors(path)
    missing = [name for name in ("token_set", "gene_set", "data_block_size", *KINDS.values()) if name not in words]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is not the meta_info of scMulan")
    known = set(words["token_set"])
    wanted = [END, NAME_CELL, NAME_ORGAN, MAKE_CELL, *words["gene_set"], *(w for k in KINDS.values() for w in words[k])]
    unknown = [word for word in wanted if word not in known]
    if unknown or len(known) != len(words["token_set"]):
        raise CheckpointError(
            f"{path}: token_set has {len(words['token_set']) - len(known)} words twice and lacks {len(unknown)} words "
            f"({', '.join(map(str, unknown[:3]))}); the file is damaged or of another release: get it again"
        )
    return words


def writing(words: Mapping[str, Any], highest: int) -> WritingSpec:
    """The kinds of words, and what asks for what."""
    index = {word: i for i, word in enumerate(words["token_set"])}
    return WritingSpec(
        word="word",
        level="level",
        start=index[MAKE_CELL],
        end=index[END],
        highest=highest,
        longest=int(words["data_block_size"]),
        kinds=tuple((ours, tuple(sorted(index[word] for word in words[theirs]))) for ours, theirs in KINDS.items()),
        questions=tuple((name, index[word], kinds) for name, (word, kinds) in QUESTIONS.items()),
    )


def tokenizer(path: Path, words: Mapping[str, Any], n_levels: int) -> BinnedTokenizer:
    """Of a folder with the list of all genes, and the table of their further symbols where it is needed.

    Raises
    ------
    CheckpointError
        If the list is missing or lacks genes of the model.
    """
    listed = _table(_one(path, GENES, "the list of all genes"), "\t", ["Approved symbol"])["Approved symbol"]
    genes = [symbol.replace("_", "-") for symbol in listed]
    absent = sorted(set(words["gene_set"]) - set(genes))
    if absent:
        raise CheckpointError(
            f"the list of all genes in {path} lacks {len(absent)} genes of the model ({', '.join(absent[:3])}); it is of "
            "another release"
        )
    return families.scmulan(words["token_set"], words["gene_set"], genes, _aliases(path), n_levels)


def _aliases(path: Path) -> dict[str, str]:
    """The one approved symbol of each alias or previous symbol that has one, as the authors unify symbols."""
    file = next(iter(sorted(path.glob(ALIASES))), None)
    if file is None:
        log.warning("%s has no %s: with gene_matching='published' no aliases are known", path, ALIASES)
        return {}
    columns = ["Alias symbol", "Previous symbol"]
    table = _table(file, ",", ["Approved symbol", "Status", *columns])
    approved = table[table["Status"] == "Approved"]
    targets: dict[str, set[str]] = {}
    for column in columns:
        for name, symbol in zip(approved[column], approved["Approved symbol"], strict=True):
            if name:
                targets.setdefault(name.replace("_", "-"), set()).add(symbol.replace("_", "-"))
    return {name: next(iter(found)) for name, found in targets.items() if len(found) == 1}


def _one(path: Path, pattern: str, what: str) -> Path:
    found = sorted(path.glob(pattern))
    return found[0] if found else require(path / pattern, what, HINT)


def _table(path: Path, separator: str, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)}, not a table ({error}); get it again") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise CheckpointError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns[:6]))}")
    return table
