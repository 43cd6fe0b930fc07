"""What does a model see?"""

from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._binned import BinnedTokenizer
from scfm.tokenizers._bins import EqualWidthBins, Log2Bins, LogValues, QuantileBins, ValueRule, quantile_bins
from scfm.tokenizers._context import ContextOption
from scfm.tokenizers._rank import RankValueTokenizer
from scfm.tokenizers._tokens import Tokens, concatenate

__all__ = [
    "BinnedTokenizer",
    "ContextOption",
    "EqualWidthBins",
    "Log2Bins",
    "LogValues",
    "QuantileBins",
    "RankValueTokenizer",
    "Tokenizer",
    "Tokens",
    "ValueRule",
    "concatenate",
    "quantile_bins",
]
