"""How are models trained? Corpora, token stores, objectives and one trainer."""

from scfm.training import objectives
from scfm.training._config import PretrainConfig
from scfm.training._corpus import Corpus
from scfm.training._pretrain import Run, pretrain
from scfm.training._store import TokenStore

__all__ = ["Corpus", "PretrainConfig", "Run", "TokenStore", "objectives", "pretrain"]
