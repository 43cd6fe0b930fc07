"""How are models trained? Corpora, token stores, objectives and one trainer."""

from scfm.training import objectives
from scfm.training._corpus import Corpus
from scfm.training._store import TokenStore

__all__ = ["Corpus", "TokenStore", "objectives"]
