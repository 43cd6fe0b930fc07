"""Single-cell foundation models as ordinary as PCA: AnnData in, embeddings out.

Every part is imported when it is first used, so that ``import scfm`` stays light.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

from scfm import _accessor, _logging  # noqa: F401

_PARTS = (
    "annotation",
    "counts",
    "errors",
    "evaluation",
    "genes",
    "get",
    "models",
    "ontology",
    "pl",
    "pp",
    "tl",
    "tokenizers",
    "training",
    "transformer",
)

__version__ = metadata.version("scfm")
__all__ = ["__version__", *_PARTS]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(_PARTS)}")


def __dir__() -> list[str]:
    return sorted(__all__)


_accessor.register()
