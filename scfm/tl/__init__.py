"""Tools: what computes something on an AnnData and writes it there."""

from scfm.tl._adapt import adapt
from scfm.tl._align import align
from scfm.tl._annotate import annotate
from scfm.tl._cell_means import average_genes
from scfm.tl._cell_sentences import cell_sentences, embed_sentences
from scfm.tl._denoise import denoise
from scfm.tl._embed import embed
from scfm.tl._embed_genes import embed_genes
from scfm.tl._embed_sequences import embed_sequences
from scfm.tl._finetune import finetune
from scfm.tl._generate import generate
from scfm.tl._perturb import perturb
from scfm.tl._probe_layers import probe_layers
from scfm.tl._recommend import Recommendation, recommend
from scfm.tl._robustness import robustness

__all__ = [
    "Recommendation",
    "adapt",
    "align",
    "annotate",
    "average_genes",
    "cell_sentences",
    "denoise",
    "embed",
    "embed_genes",
    "embed_sentences",
    "embed_sequences",
    "finetune",
    "generate",
    "perturb",
    "probe_layers",
    "recommend",
    "robustness",
]
