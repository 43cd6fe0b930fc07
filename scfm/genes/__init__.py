"""Which gene is this?"""

from scfm.genes._vocabulary import GeneVocabulary, PublishedRule

__all__ = ["GeneVocabulary", "PublishedRule"]
