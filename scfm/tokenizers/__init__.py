"""What does a model see?"""

from scfm.tokenizers._base import Tokenizer
from scfm.tokenizers._context import ContextOption
from scfm.tokenizers._rank import RankValueTokenizer
from scfm.tokenizers._tokens import Tokens, concatenate

__all__ = ["ContextOption", "RankValueTokenizer", "Tokenizer", "Tokens", "concatenate"]
