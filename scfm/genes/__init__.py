"""Which gene is this?"""

from scfm.genes._match import GeneMatch, match
from scfm.genes._report import CoverageWarning, MatchReport
from scfm.genes._table import orthologues, protein_coding, table
from scfm.genes._vocabulary import GeneVocabulary, PublishedRule

__all__ = [
    "CoverageWarning",
    "GeneMatch",
    "GeneVocabulary",
    "MatchReport",
    "PublishedRule",
    "match",
    "orthologues",
    "protein_coding",
    "table",
]
