"""What does a model see?"""

from scfm.tokenizers._tokens import Tokens, concatenate

__all__ = ["Tokens", "concatenate"]
