"""``adata.scfm.embed()``: sugar on AnnData objects, without loading anndata for it.

Importing anndata takes about a second, ``import scfm`` a tenth of that. So the accessor waits: it is registered at once
where anndata is loaded already, and otherwise when it is.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

NAME = "scfm"


def register() -> None:
    """Give every AnnData object the attribute ``scfm``, now or as soon as anndata is imported."""
    if "anndata" in sys.modules:
        _register()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    """Steps aside when anndata is looked for, and registers the accessor once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "anndata":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from anndata import AnnData, register_anndata_namespace

    if not hasattr(AnnData, NAME):
        Accessor.__init__.__annotations__["adata"] = AnnData  # anndata looks at the type itself
        register_anndata_namespace(NAME)(Accessor)


class Accessor:
    """The verbs of scfm on one AnnData object.

    Parameters
    ----------
    adata
        The object.
    """

    def __init__(self, adata: AnnData) -> None:
        self._adata = adata

    def embed(self, *args: Any, **options: Any) -> Any:
        """`scfm.tl.embed` on this object."""
        from scfm import tl

        return tl.embed(self._adata, *args, **options)

    def denoise(self, *args: Any, **options: Any) -> Any:
        """`scfm.tl.denoise` on this object."""
        from scfm import tl

        return tl.denoise(self._adata, *args, **options)

    def embed_genes(self, *args: Any, **options: Any) -> Any:
        """`scfm.tl.embed_genes` on this object."""
        from scfm import tl

        return tl.embed_genes(self._adata, *args, **options)

    def nearest_genes(self, *args: Any, **options: Any) -> Any:
        """`scfm.get.nearest_genes` of this object."""
        from scfm import get

        return get.nearest_genes(self._adata, *args, **options)

    def finetune(self, *args: Any, **options: Any) -> Any:
        """`scfm.tl.finetune` on this object."""
        from scfm import tl

        return tl.finetune(self._adata, *args, **options)

    def probe_layers(self, *args: Any, **options: Any) -> Any:
        """`scfm.tl.probe_layers` on this object."""
        from scfm import tl

        return tl.probe_layers(self._adata, *args, **options)

    def embedding(self, key: str | None = None) -> Any:
        """`scfm.get.embedding` of this object."""
        from scfm import get

        return get.embedding(self._adata, key)

    def report(self, key: str | None = None) -> Any:
        """`scfm.get.report` of this object."""
        from scfm import get

        return get.report(self._adata, key)

    def inspect(self, **options: Any) -> Any:
        """`scfm.pp.inspect` of this object."""
        from scfm import pp

        return pp.inspect(self._adata, **options)
