"""How are models trained? Corpora, token stores, objectives and one trainer; fine-tuning on labels.

Who needs a tuned classifier (as an annotator does) calls `finetune` on labelled cells with a loaded model and keeps the
`Finetuned`: ``classes``, ``predict_proba(adata)`` (n, K), ``model`` for vectors, ``save(folder)`` and ``load(folder)``.
"""

from scfm.training import objectives
from scfm.training._architectures import ARCHITECTURES
from scfm.training._config import PretrainConfig
from scfm.training._corpus import Corpus
from scfm.training._finetune import finetune
from scfm.training._finetune_fit import FitSettings
from scfm.training._finetune_sequences import FinetunedSequences, finetune_sequences
from scfm.training._finetuned import Finetuned
from scfm.training._pretrain import Run, pretrain
from scfm.training._store import TokenStore

__all__ = [
    "ARCHITECTURES",
    "Corpus",
    "Finetuned",
    "FinetunedSequences",
    "FitSettings",
    "PretrainConfig",
    "Run",
    "TokenStore",
    "finetune",
    "finetune_sequences",
    "objectives",
    "pretrain",
]
