"""Tokenizers of published models whose vocabulary ships with the package."""

from __future__ import annotations

import lzma
from dataclasses import replace
from functools import cache
from importlib.resources import files

from scfm import genes
from scfm.errors import TokenizerError
from scfm.tokenizers._rank import RankValueTokenizer
from scfm.tokenizers.families import by_id, geneformer

_RANK_VALUE = {"geneformer-v1": ("geneformer_v1", 2048), "geneformer-v2": ("geneformer_v2", 4096)}


@cache
def rank_value(name: str) -> RankValueTokenizer:
    """The published rank-value tokenizer of a name (see `RankValueTokenizer.published`)."""
    if name not in _RANK_VALUE:
        raise TokenizerError(f"no published tokenizer {name!r} ships with scfm; there are {', '.join(_RANK_VALUE)}")
    stem, max_length = _RANK_VALUE[name]
    table = _table(f"{stem}_vocab.tsv.xz")
    made = geneformer(
        names=by_id({token: int(i) for token, i, _ in table}),
        medians={token: float(median) for token, _, median in table if median},
        aliases=dict(_table(f"{stem}_aliases.tsv.xz")),
        max_length=max_length,
    )
    shown = genes.table("human").set_index("ensembl_id")["symbol"].to_dict()
    symbols = tuple(shown.get(n) or n for n in made.vocabulary.names)
    return replace(made, vocabulary=replace(made.vocabulary, symbols=symbols))


def _table(name: str) -> list[list[str]]:
    """Rows of a shipped table, without its header; none if the family has no such table."""
    path = files("scfm.tokenizers").joinpath("data", name)
    if not path.is_file():
        return []
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]
