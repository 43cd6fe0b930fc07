"""Tools: what computes something on an AnnData and writes it there."""

from scfm.tl._embed import embed

__all__ = ["embed"]
