"""Is it any good? Figures that describe an embedding, from arrays alone."""

from scfm.evaluation._health import Health, health

__all__ = ["Health", "health"]
