"""Which vectors do reference and query share? A model that embeds both, or vectors that both bring along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scfm import models
from scfm.errors import ConfigError

UNS = "scfm"
Rep = str | bool | None


@dataclass(frozen=True)
class Space:
    """Where vectors come from.

    Parameters
    ----------
    model
        Name of the model; None: vectors of unknown origin.
    slot
        In ``.obsm``, for vectors without a model; None: vectors are computed, or found by the model's name.
    width
        Their length.
    pooling, hidden_layer
        Of the model.
    """

    model: str | None
    slot: str | None
    width: int
    pooling: str | None = None
    hidden_layer: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    def __str__(self) -> str:
        return self.model or f"obsm[{self.slot!r}]"


def space_of(adata: AnnData, model: models.FoundationModel | None, use_rep: Rep) -> Space | None:
    """The space of a reference; None where no embedding is wanted.

    Parameters
    ----------
    adata
        The reference.
    model
        Embeds cells.
    use_rep
        A slot of ``.obsm``; None or False: the model's.

    Raises
    ------
    ConfigError
        If the slot is not there, or holds vectors of another model or version.
    """
    if isinstance(use_rep, str):
        facts = _facts(adata, use_rep)
        vectors = _slot(adata, use_rep)
        if facts is None:
            return Space(None, use_rep, vectors.shape[1])
        found = Space(
            str(facts["model"]), None, vectors.shape[1], *(_parameter(facts, p) for p in ("pooling", "hidden_layer"))
        )
        _same_version(facts, use_rep)
        if model is not None and model.card.name != found.model:
            raise ConfigError(
                f"obsm[{use_rep!r}] holds vectors of {found.model}, but model={model.card.name!r} was asked for; pass "
                f"model={found.model!r}, or leave out use_rep"
            )
        return found
    if model is None:
        return None
    config = model.config
    return Space(model.card.name, None, model.embedding_width(), config.readout, config.hidden_layer)


def stored_vectors(adata: AnnData, space: Space, use_rep: Rep) -> NDArray[np.floating[Any]] | None:
    """Vectors (n, d) of the space that the cells bring along; None: they are to be computed.

    Raises
    ------
    ConfigError
        If what is there belongs to another model or version, or is needed and missing.
    """
    if isinstance(use_rep, str) or space.slot is not None:
        slot = use_rep if isinstance(use_rep, str) else str(space.slot)
        vectors, facts = _slot(adata, slot), _facts(adata, slot)
        named = None if facts is None else str(facts["model"])
        if named != space.model:
            raise ConfigError(
                f"obsm[{slot!r}] holds vectors of {named or 'unknown origin'}, but the reference was embedded by {space}; "
                "embed both alike"
            )
        if facts is not None:
            _same_version(facts, slot)
    elif use_rep is False:
        return None
    else:
        found = [
            (slot, facts) for slot, facts in _runs(adata) if facts.get("model") == space.model and _alike(facts, space)
        ]
        if not found:
            return None
        slot, facts = found[0]
        _same_version(facts, slot)
        vectors = _slot(adata, slot)
    if vectors.shape[1] != space.width:
        raise ConfigError(
            f"obsm[{slot!r}] has {vectors.shape[1]} axes, but the vectors of the reference have {space.width}; embed both "
            "alike"
        )
    return vectors


def _runs(adata: AnnData) -> Iterator[tuple[str, Mapping[str, Any]]]:
    runs = adata.uns.get(UNS, {})
    for key, facts in runs.items() if isinstance(runs, Mapping) else ():
        slot = f"X_{key}"
        if slot in adata.obsm and isinstance(facts, Mapping) and "model" in facts:
            yield slot, facts


def _facts(adata: AnnData, slot: str) -> Mapping[str, Any] | None:
    return dict(_runs(adata)).get(slot)


def _slot(adata: AnnData, slot: str) -> NDArray[np.floating[Any]]:
    if slot not in adata.obsm:
        there = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise ConfigError(f"obsm holds no {slot!r}, there is {there}; embed the cells first, or leave out use_rep")
    return np.asarray(adata.obsm[slot])


def _parameter(facts: Mapping[str, Any], name: str) -> Any:
    value = facts.get("parameters", {}).get(name)
    return value.item() if isinstance(value, np.generic) else value


def _alike(facts: Mapping[str, Any], space: Space) -> bool:
    pairs = ((_parameter(facts, "pooling"), space.pooling), (_parameter(facts, "hidden_layer"), space.hidden_layer))
    return all(mine == theirs for mine, theirs in pairs)


def _same_version(facts: Mapping[str, Any], slot: str) -> None:
    here, there = version("scfm"), str(facts.get("version"))
    if here != there:
        raise ConfigError(
            f"obsm[{slot!r}] was computed by scfm {there}, this is {here}: vectors of two versions may differ; embed the "
            "cells again, or pass use_rep=False to have it done"
        )


def load_model(
    model: str | Path | models.FoundationModel | None, context: Mapping[str, Any] | None, device: str | None
) -> models.FoundationModel | None:
    """A model that is ready to embed."""
    if model is None:
        return None
    loaded = model if isinstance(model, models.FoundationModel) else models.load(model)
    return loaded.for_context(context).to(device)
