"""Tools: what computes something on an AnnData and writes it there."""

from scfm.tl._embed import embed
from scfm.tl._perturb import perturb

__all__ = ["embed", "perturb"]
