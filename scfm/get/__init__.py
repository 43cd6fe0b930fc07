"""Read what the verbs wrote."""

from scfm.get._annotation import annotation
from scfm.get._layer_probes import LayerProbes, layer_probes
from scfm.get._neighbours import nearest_genes
from scfm.get._robustness import robustness
from scfm.get._slots import EmbedReport, embedding, report

__all__ = [
    "EmbedReport",
    "LayerProbes",
    "annotation",
    "embedding",
    "layer_probes",
    "nearest_genes",
    "report",
    "robustness",
]
