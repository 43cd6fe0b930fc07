"""Where are the counts?"""

from scfm.counts._block import CountBlock

__all__ = ["CountBlock"]
