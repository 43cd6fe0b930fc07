"""Has the model seen these cells? The corpus manifest of a model against what is known of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["seen", "same study", "unseen", "unknown", "fitted here", "no training"]
DOI = re.compile(r"10\.\d{4,9}/[^\s,;)\]]+")
STUDY = re.compile(r"([A-Z][\w'-]+) (?:et al\.?|and [A-Z][\w'-]+),? (\d{4})")


@dataclass(frozen=True)
class Dataset:
    """What is known of a set of cells.

    Parameters
    ----------
    name
        As the data call it.
    study
        Publication, as free text with a doi or "Author et al. year" in it; empty: not known.
    """

    name: str
    study: str = ""


def studies(text: str) -> frozenset[str]:
    """The publications that a text names: dois, and author with year."""
    lower = {doi.rstrip(".").lower() for doi in DOI.findall(text)}
    return frozenset(lower | {f"{author.lower()} {year}" for author, year in STUDY.findall(text)})


def leakage(corpus: Mapping[str, Any] | None, data: Dataset) -> Verdict:
    """Whether a model was trained on a data set.

    Parameters
    ----------
    corpus
        The manifest of the model's card: data sets by name, with their ``publication``; None: the model has none.
    data
        The data set.

    Returns
    -------
    ``seen``: of that name in the corpus; ``same study``: a publication in common; ``unseen``: neither, and all is known
    that is needed to say so; else ``unknown``.
    """
    if not corpus:
        return "unknown"
    if _plain(data.name) in {_plain(str(name)) for name in corpus}:
        return "seen"
    of_corpus = [studies(str((facts or {}).get("publication", ""))) for facts in corpus.values()]
    own = studies(data.study)
    if any(own & theirs for theirs in of_corpus):
        return "same study"
    return "unseen" if data.study else "unknown"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def summary(verdicts: Sequence[Verdict]) -> Verdict:
    """One word for several data sets: the worst."""
    order: tuple[Verdict, ...] = ("seen", "same study", "unknown", "fitted here", "unseen", "no training")
    return min(verdicts, key=order.index) if verdicts else "unknown"
