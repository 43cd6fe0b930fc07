"""What does one type in a shell?"""

from scfm.cli import (  # noqa: F401  (commands enter the program on import)
    _on_annotation,
    _on_cells,
    _on_corpora,
    _on_embeddings,
    _on_genes,
    _on_models,
)
from scfm.cli._app import app

__all__ = ["app"]
