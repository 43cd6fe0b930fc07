"""Tokenizers of published models whose vocabulary ships with the package."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files

import numpy as np

from scfm import genes
from scfm.errors import TokenizerError
from scfm.tokenizers import families
from scfm.tokenizers._rank import RankValueTokenizer


def geneformer(stem: str, max_length: int) -> RankValueTokenizer:
    """Geneformer V1 or V2, from its shipped table."""
    table = _table(f"{stem}_vocab.tsv.xz")[1:]
    return families.geneformer(
        names=families.by_id({token: int(i) for token, i, _ in table}),
        medians={token: float(median) for token, _, median in table if median},
        aliases=dict(_table(f"{stem}_aliases.tsv.xz")[1:]),
        max_length=max_length,
    )


def nicheformer() -> RankValueTokenizer:
    """Nicheformer, from its shipped genes and technology means."""
    (_, *technologies), *rows = _table("nicheformer_vocab.tsv.xz")
    columns = np.array([[float(mean or "nan") for mean in means] for _, *means in rows]).T
    return families.nicheformer([gene for gene, *_ in rows], dict(zip(technologies, columns, strict=True)))


_RANK_VALUE: dict[str, Callable[[], RankValueTokenizer]] = {
    "geneformer-v1": partial(geneformer, "geneformer_v1", 2048),
    "geneformer-v2": partial(geneformer, "geneformer_v2", 4096),
    "nicheformer": nicheformer,
}


@cache
def rank_value(name: str) -> RankValueTokenizer:
    """The published rank-value tokenizer of a name (see `RankValueTokenizer.published`)."""
    if name not in _RANK_VALUE:
        raise TokenizerError(f"no published tokenizer {name!r} ships with scfm; there are {', '.join(_RANK_VALUE)}")
    made = _RANK_VALUE[name]()
    shown = genes.table("human").set_index("ensembl_id")["symbol"].to_dict()
    symbols = tuple(shown.get(n) or n for n in made.vocabulary.names)
    return replace(made, vocabulary=replace(made.vocabulary, symbols=symbols))


def _table(name: str) -> list[list[str]]:
    """Rows of a shipped table, the header first; none if the family has no such table."""
    path = files("scfm.tokenizers").joinpath("data", name)
    if not path.is_file():
        return []
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()
    return [line.split("\t") for line in lines]
