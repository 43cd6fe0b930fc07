"""Tokenizers of published models whose vocabulary ships with the package."""

from __future__ import annotations

import lzma
from importlib.resources import files

import numpy as np

from scfm.errors import TokenizerError
from scfm.genes import GeneVocabulary, PublishedRule
from scfm.tokenizers._rank import RankValueTokenizer

GENEFORMER_ROLES = {"<pad>": "pad", "<mask>": "mask", "<cls>": "cls", "<eos>": "eos"}

_RANK_VALUE = {
    "geneformer-v1": {"stem": "geneformer_v1", "max_length": 2048},
    "geneformer-v2": {"stem": "geneformer_v2", "max_length": 4096},
}


def rank_value(name: str) -> RankValueTokenizer:
    """The published rank-value tokenizer of a name (see `RankValueTokenizer.published`)."""
    if name not in _RANK_VALUE:
        raise TokenizerError(f"no published tokenizer {name!r} ships with scfm; there are {', '.join(_RANK_VALUE)}")
    row = _RANK_VALUE[name]
    table = _table(f"{row['stem']}_vocab.tsv.xz")
    aliases = _table(f"{row['stem']}_aliases.tsv.xz")
    names = [token for token, _, _ in sorted(table, key=lambda r: int(r[1]))]
    medians = {token: float(median) for token, _, median in table if median}
    return geneformer(names, medians, dict(aliases), int(row["max_length"]))


def geneformer(
    names: list[str], medians: dict[str, float], aliases: dict[str, str], max_length: int
) -> RankValueTokenizer:
    """The tokenizer of a Geneformer vocabulary.

    Parameters
    ----------
    names
        Token of each id.
    medians
        Non-zero median of each gene.
    aliases
        Upper-case names and the vocabulary gene they stand for.
    max_length
        Longest list of tokens, ``<cls>`` and ``<eos>`` included where the vocabulary has them.

    Raises
    ------
    TokenizerError
        If a gene has no median.
    """
    specials = {GENEFORMER_ROLES[n]: i for i, n in enumerate(names) if n in GENEFORMER_ROLES}
    missing = [n for n in names if n not in GENEFORMER_ROLES and n not in medians]
    if missing:
        raise TokenizerError(f"{len(missing)} genes of the vocabulary have no median, e.g. {', '.join(missing[:3])}")
    vocabulary = GeneVocabulary(
        names=tuple(names),
        namespace="ensembl",
        specials=specials,
        rule=PublishedRule(upper=True, aliases=aliases, duplicates="sum"),
    )
    return RankValueTokenizer(
        vocabulary=vocabulary,
        scale=np.array([medians.get(n, 1.0) for n in names]),
        max_length=max_length,
        first=("cls",) if "cls" in specials else (),
        last=("eos",) if "eos" in specials else (),
    )


def _table(name: str) -> list[list[str]]:
    """Rows of a shipped table, without its header; none if the family has no such table."""
    path = files("scfm.tokenizers").joinpath("data", name)
    if not path.is_file():
        return []
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]
