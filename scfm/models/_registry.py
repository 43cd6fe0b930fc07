"""Which model is this? Names, folders and hub repositories, and how each is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
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
            "here": name in BUILT_IN or _placed(card).is_dir() or _is_cached(card),
        }
        for name, card in cards().items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "name"
    return table.astype({"parameters": "Int64", "context": "Int64"})


def _placed(card: ModelCard) -> Path:
    """The folder of a model on this machine, which several that come in one file may share."""
    own = home() / card.name
    return home() / card.folder if card.folder and not own.is_dir() else own


def _is_cached(card: ModelCard) -> bool:
    if card.hub is None:
        return False
    repository, folder = card.hub
    wanted = _in_folder(folder, card.files)
    return all(isinstance(try_to_load_from_cache(repository, name), str) for name in wanted)


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
    found = _find(name_or_path, family, revision)
    model = _open(found.path, found.family, _checkpoint_of(found, checkpoint))
    if found.card is not None:
        model.card = found.card
    elif model.card.name == found.path.name and found.fetched:
        # a folder of the hub's cache is named by a commit
        model.card = replace(model.card, name=str(name_or_path))
    if model.card.binding and model.card.name not in _told:
        _told.add(model.card.name)
        log.warning("%s: %s", model.card.name, model.card.binding)
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
    found = _find(name_or_path, family, revision)
    return found.path, found.family


@dataclass(frozen=True)
class _Found:
    path: Path
    family: str | None
    card: ModelCard | None
    fetched: bool = False


def _find(name_or_path: str | Path, family: str | None, revision: str | None) -> _Found:
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    text = str(name_or_path)
    known = cards()
    path = Path(name_or_path).expanduser()
    card = known.get(text) if not path.is_dir() else None
    if card is not None:
        path = _built_in(text) if text in BUILT_IN else _placed(card)
        family = family or (card.family if card.family in FAMILIES else None)
    if path.exists():
        if revision is not None:
            raise ConfigError(f"revision={revision!r} picks a version on the model hub, but {path} is a folder here")
        return _Found(path, family, card)
    hub = card.hub if card is not None else _hub_name(text)
    if hub is not None:
        card = card or next((c for c in known.values() if c.hub == hub), None)
        return _Found(_download(*hub, revision, card), family or (card.family if card else None), card, fetched=True)
    if card is not None:
        raise CheckpointError(
            f"the weights of {text} are not on this machine, and the authors do not publish them where they could be "
            f"fetched from here. Get {_with_sizes(card)} from {card.source} (licence: {card.licence}) and put them into "
            f"{path}"
        )
    close = [n for n in known if n.startswith(text[:4].lower())] or [*known]
    raise ConfigError(
        f"no model {text!r}: it is no registered name (such as {', '.join(close[:4])}; see scfm.models.list()), "
        "no folder on this machine, and not of the form owner/repository"
    )


def _checkpoint_of(found: _Found, asked: str | None) -> str | None:
    """The weight set that is meant: of a registered name its own."""
    of_card = None if found.card is None else found.card.checkpoint
    if found.card is not None and asked is not None and of_card not in (None, asked):
        raise ConfigError(
            f"{found.card.name} is the weight set {of_card!r} of its file; leave out checkpoint={asked!r}, or load the "
            "model of that name"
        )
    own_layout = (found.path / MODEL_FILE).is_file()
    return of_card if asked is None and not own_layout else asked


def _hub_name(text: str) -> tuple[str, str] | None:
    """Repository and folder of ``owner/repository[/folder]``."""
    if text.count("/") not in (1, 2) or text.startswith((".", "/", "~")):
        return None
    owner, repository, *folder = text.split("/")
    return f"{owner}/{repository}", "".join(folder)


def _with_sizes(card: ModelCard) -> str:
    return ", ".join(f"{name} ({size:,} bytes)" if size else name for name, size in card.files.items())


def _open(path: Path, family: str | None, checkpoint: str | None) -> FoundationModel:
    if path.is_file():
        raise CheckpointError(f"{path} is a file; pass the folder that holds it and its companions")
    if (path / MODEL_FILE).is_file():
        if checkpoint is not None:
            raise CheckpointError(f"{path} holds one weight set; checkpoint={checkpoint!r} does not exist")
        return FoundationModel.from_pretrained(path)
    return (FAMILIES[family] if family else _recognise(path)).read(path, checkpoint)


def _recognise(path: Path) -> Family:
    fitting = [f for f in FAMILIES.values() if f.recognise(path)]
    if len(fitting) == 1:
        return fitting[0]
    inside = sorted(p.name for p in path.iterdir())[:10]
    layouts = "; ".join(f"{f.name}: {f.companions}" for f in FAMILIES.values())
    raise CheckpointError(
        f"{path} (with {', '.join(inside) or 'nothing in it'}) is not recognised as a model of one family; "
        f"pass family= or complete the folder. Layouts: {layouts}"
    )


def _file_names(card: ModelCard | None) -> tuple[str, ...]:
    if card is not None:
        return tuple(card.files)
    official = {name for family in FAMILIES.values() for name in family.files}
    return tuple(sorted({*official, *FoundationModel.files}))


def _in_folder(folder: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" if folder else name for name in names)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library that huggingface_hub uses, which depends on its version."""
    return tuple(import_module(name).HTTPError for name in ("httpx", "httpx2") if find_spec(name) is not None)


def _download(repository: str, folder: str, revision: str | None, card: ModelCard | None = None) -> Path:
    wanted = _in_folder(folder, _file_names(card))
    try:
        root = snapshot_download(repository, revision=revision, allow_patterns=[*wanted])
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is neither a folder on this machine nor a name on the model hub") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the model hub has no repository {repository} at revision {revision or 'main'}, and there is no folder of "
            "that name on this machine: check the name"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, *_transport_errors()) as error:
        placed = home() / (card.name if card is not None else "a-name-of-yours")
        names = _with_sizes(card) if card is not None else ", ".join(wanted)
        raise CheckpointError(
            f"{repository} is no folder on this machine, is not in the local hub cache, and could not be fetched "
            f"({type(error).__name__}). On a machine with access download {names} of its folder {folder or '.'}, put "
            f"the files into {placed} and load them by that name"
        ) from error
    path = Path(root) / folder
    if not path.is_dir():
        raise CheckpointError(f"the repository {repository} has no folder {folder} at revision {revision or 'main'}")
    return path
