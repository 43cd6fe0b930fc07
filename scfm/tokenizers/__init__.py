"""What does a model see?"""

from scfm.tokenizers import families
from scfm.tokenizers._bag import BagTokenizer
from scfm.tokenizers._base import Tokenizer, in_background
from scfm.tokenizers._binned import BinnedTokenizer
from scfm.tokenizers._bins import EqualWidthBins, Log2Bins, LogValues, QuantileBins, ValueRule, quantile_bins
from scfm.tokenizers._context import ContextOption, from_obs
from scfm.tokenizers._depth import ReadDepthTokenizer
from scfm.tokenizers._protein import ProteinTokenizer
from scfm.tokenizers._rank import RankValueTokenizer
from scfm.tokenizers._tokens import Tokens, concatenate

__all__ = [
    "BagTokenizer",
    "BinnedTokenizer",
    "ContextOption",
    "EqualWidthBins",
    "Log2Bins",
    "LogValues",
    "ProteinTokenizer",
    "QuantileBins",
    "RankValueTokenizer",
    "ReadDepthTokenizer",
    "Tokenizer",
    "Tokens",
    "ValueRule",
    "concatenate",
    "families",
    "from_obs",
    "in_background",
    "quantile_bins",
]
