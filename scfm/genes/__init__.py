"""Which gene is this?"""

from scfm.genes._match import GeneMatch, match
from scfm.genes._report import CoverageWarning, MatchReport
from scfm.genes._table import orthologues, table
from scfm.genes._vocabulary import GeneVocabulary, PublishedRule

__all__ = [
    "CoverageWarning",
    "GeneMatch",
    "GeneVocabulary",
    "MatchReport",
    "PublishedRule",
    "match",
    "orthologues",
    "table",
]
