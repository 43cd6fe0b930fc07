"""Which model is this? Names, folders and hub repositories, and how each is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pandas as pd
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scfm.errors import CheckpointError, ConfigError
from scfm.models._card import ModelCard
from scfm.models._family import Family
from scfm.models._model import MODEL_FILE, FoundationModel
from scfm.models._reading import read_json
from scfm.models.families import FAMILIES

log = logging.getLogger("scfm")

BUILT_IN = ("scfm-mini",)
_told: set[str] = set()


def home() -> Path:
    """Where downloaded and hand-placed models live: ``$SCFM_HOME``, else ``~/.cache/scfm``."""
    return Path(os.environ.get("SCFM_HOME", "~/.cache/scfm")).expanduser()


def _built_in(name: str) -> Path:
    return Path(str(files("scfm.models").joinpath("data", name)))


def cards() -> dict[str, ModelCard]:
    """Every registered model's card, by name."""
    built_in = {
        name: ModelCard.from_dict(read_json(_built_in(name) / MODEL_FILE)["card"])
        for name in BUILT_IN
        if (_built_in(name) / MODEL_FILE).is_file()
    }
    return {**built_in, **{card.name: card for family in FAMILIES.values() for card in family.cards}}


def list() -> pd.DataFrame:
    """Every registered model.

    Returns
    -------
    One row per checkpoint: family, parameters, context (tokens), species, licence, source, what was verified, and
    whether it can be loaded at once (``here``).
    """
    rows = {
        name: {
            "family": card.family,
            "title": card.title,
            "parameters": card.parameters,
            "context": card.context,
            "species": card.species,
            "licence": card.licence,
            "source": card.source,
            "verified": card.verified,
            "here": name in BUILT_IN or (home() / name).is_dir(),
        }
        for name, card in cards().items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "name"
    return table.astype({"parameters": "Int64", "context": "Int64"})


def load(
    name_or_path: str | Path,
    family: str | None = None,
    revision: str | None = None,
    checkpoint: str | None = None,
) -> FoundationModel:
    """Open a model.

    Parameters
    ----------
    name_or_path
        A registered name (`list`), a folder in the official layout or in our own, or ``owner/repository`` of the
        model hub, with an optional subfolder behind it.
    family
        Reads a folder as this family's layout, where it cannot be recognised.
    revision
        Of the hub repository.
    checkpoint
        Weight set within a file, for families that have several.

    Returns
    -------
    FoundationModel
        On the CPU, in float32.

    Raises
    ------
    ConfigError
        If the name or the family is unknown.
    CheckpointError
        If files are missing, damaged, unsafe or do not fit together; nothing is loaded halfway.
    """
    path, family = locate(name_or_path, family, revision)
    model = _open(path, family, checkpoint)
    if model.card.name == path.name and path != Path(name_or_path).expanduser():
        # a folder of the hub's cache is named by a commit
        model.card = replace(model.card, name=str(name_or_path))
    return model


def locate(name_or_path: str | Path, family: str | None = None, revision: str | None = None) -> tuple[Path, str | None]:
    """Where a model's files are, fetched if need be, and the family to read them as (None: to be recognised).

    Parameters
    ----------
    name_or_path, family, revision
        See `load`.

    Raises
    ------
    ConfigError, CheckpointError
        See `load`.
    """
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    text = str(name_or_path)
    known = cards()
    path = Path(name_or_path).expanduser()
    if text in known and not path.is_dir():
        return _locate_registered(known[text], family, revision)
    if path.exists():
        return path, family
    if text.count("/") in (1, 2) and not text.startswith((".", "/", "~")):
        owner, repository, *folder = text.split("/")
        return _download(f"{owner}/{repository}", "".join(folder), revision), family
    close = [n for n in known if n.startswith(text[:4].lower())] or [*known]
    raise ConfigError(
        f"no model {text!r}: it is no registered name (such as {', '.join(close[:4])}; see scfm.models.list()), "
        "no folder on this machine, and not of the form owner/repository"
    )


def _locate_registered(card: ModelCard, family: str | None, revision: str | None) -> tuple[Path, str | None]:
    if card.name in BUILT_IN:
        return _built_in(card.name), None
    placed = home() / card.name
    if placed.is_dir():
        return placed, family or card.family
    if card.hub is not None:
        return _download(*card.hub, revision, card), family or card.family
    wanted = ", ".join(f"{n} ({size:,} bytes)" if size else n for n, size in card.files.items())
    raise CheckpointError(
        f"the weights of {card.name} are not on this machine, and the authors do not publish them where they could be "
        f"fetched from here. Get {wanted} from {card.source} (licence: {card.licence}) and put them into {placed}"
    )


def _open(path: Path, family: str | None, checkpoint: str | None) -> FoundationModel:
    if (path / MODEL_FILE).is_file() and family is None:
        if checkpoint is not None:
            raise CheckpointError(f"{path} holds one weight set; checkpoint={checkpoint!r} does not exist")
        model = FoundationModel.from_pretrained(path)
    else:
        model = (FAMILIES[family] if family else _recognise(path)).read(path, checkpoint)
    if model.card.binding and model.card.name not in _told:
        _told.add(model.card.name)
        log.warning("%s: %s", model.card.name, model.card.binding)
    return model


def _recognise(path: Path) -> Family:
    fitting = [f for f in FAMILIES.values() if f.recognise(path)]
    if len(fitting) == 1:
        return fitting[0]
    inside = sorted(p.name for p in path.iterdir())[:10] if path.is_dir() else [path.name]
    layouts = "; ".join(f"{f.name}: {f.companions}" for f in FAMILIES.values())
    raise CheckpointError(
        f"{path} (with {', '.join(inside) or 'nothing in it'}) is not recognised as a model of one family; "
        f"pass family= or complete the folder. Layouts: {layouts}"
    )


def _patterns(folder: str, card: ModelCard | None) -> Iterator[str]:
    prefix = f"{folder}/" if folder else ""
    names = [*card.files] if card is not None else ["*.json", "*.safetensors", "*.npz"]
    yield from (prefix + name for name in names)


def _download(repository: str, folder: str, revision: str | None, card: ModelCard | None = None) -> Path:
    patterns = [*_patterns(folder, card)]
    try:
        root = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the model hub has no repository {repository} at revision {revision or 'main'}: check the name"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        placed = home() / (card.name if card is not None else "a-name-of-yours")
        raise CheckpointError(
            f"{repository} is not in the local hub cache and could not be fetched ({type(error).__name__}). On a machine "
            f"with access download {', '.join(patterns)}, put the files into {placed} and load them by that path"
        ) from error
    path = Path(root) / folder
    if not path.is_dir():
        raise CheckpointError(f"the repository {repository} has no folder {folder} at revision {revision or 'main'}")
    return path
