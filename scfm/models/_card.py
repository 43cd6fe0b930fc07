"""What is known of a model: the card that travels with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from scfm.errors import CheckpointError


@dataclass(frozen=True)
class ModelCard:
    """Facts about a checkpoint.

    Parameters
    ----------
    name
        Registry name.
    family
        Which family reads it.
    title
        One line for people.
    parameters
        Number of parameters as published.
    context
        Tokens of the longest cell.
    species
        Species of its genes.
    licence
        Of the weights, as far as it is stated.
    binding
        What the licence asks of a user; said once on load.
    source
        Where the authors publish it.
    hub
        Repository and subfolder on the model hub, where the authors publish there.
    files
        Name and size in bytes of the files of the official layout.
    checksums
        SHA-256 of files, by name.
    options
        Tokenizer options that a user may set (``context=`` of the verbs).
    verified
        What was checked, and how.
    data
        What the model was trained on.
    details
        Anything else worth keeping.
    folder
        Where several models share files: the name of their common folder.
    checkpoint
        Which weight set of a file it is.
    """

    name: str
    family: str
    title: str = ""
    parameters: int | None = None
    context: int | None = None
    species: str = "human"
    licence: str = "not stated"
    binding: str = ""
    source: str = ""
    hub: tuple[str, str] | None = None
    files: Mapping[str, int | None] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    verified: str = ""
    data: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    checkpoint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """The inverse of `to_dict`.

        Raises
        ------
        CheckpointError
            If an entry is missing or unknown.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown or not {"name", "family"} <= set(data):
            raise CheckpointError(
                f"a model card needs name and family and has unknown entries {', '.join(unknown) or 'none'}; a newer scfm "
                "may have written it"
            )
        hub = data.get("hub")
        return cls(**{**data, "hub": tuple(hub) if hub else None, "options": tuple(data.get("options", ()))})
