"""Where are the counts?"""

from scfm.counts._block import CountBlock
from scfm.counts._evidence import Evidence
from scfm.counts._find import find, search
from scfm.counts._read import read
from scfm.counts._report import Candidate, CountReport, CountsWarning
from scfm.counts._source import CountSource

__all__ = [
    "Candidate",
    "CountBlock",
    "CountReport",
    "CountSource",
    "CountsWarning",
    "Evidence",
    "find",
    "read",
    "search",
]
