"""Read what the verbs wrote."""

from scfm.get._slots import EmbedReport, embedding, report

__all__ = ["EmbedReport", "embedding", "report"]
