"""Read what the verbs wrote."""

from scfm.get._neighbours import nearest_genes
from scfm.get._robustness import robustness
from scfm.get._slots import EmbedReport, embedding, report

__all__ = ["EmbedReport", "embedding", "nearest_genes", "report", "robustness"]
