"""Whose is this folder? A run's own, a new one's, or somebody else's, which is left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scfm.errors import ConfigError
from scfm.training._config import PretrainConfig
from scfm.training._files import telling

CONFIG = "config.yaml"
FREE_TO_CHANGE = {
    ("run", "steps"),
    ("run", "epochs"),
    ("run", "num_workers"),
    ("run", "device"),
    *(
        ("output", name)
        for name in ("keep", "log_every", "evaluate_every", "tensorboard", "progress", "checkpoint_every")
    ),
}
"""Settings that a run may be resumed with in another way: how far it goes, and what does not change what is learnt."""


def claim(folder: Path, settings: PretrainConfig) -> None:
    """Write the resolved configuration, or check that the folder holds the same run."""
    import yaml

    file = folder / CONFIG
    mine = settings.to_dict()
    if file.is_file():
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = [name for name in _differences(known, mine) if name not in FREE_TO_CHANGE]
        if changed:
            shown = ", ".join(".".join(name) for name in changed[:4])
            raise ConfigError(
                f"{folder} holds a run with other settings ({shown}); nothing was changed there. Choose another output.folder, "
                "or the settings of its config.yaml to go on with it"
            )
        if known != mine:
            _write_config(file, mine)
        return
    others = sorted(p.name for p in folder.iterdir() if p.name not in (".lock", f"{CONFIG}.tmp"))
    if others:
        raise ConfigError(
            f"{folder} holds no run and is not empty ({', '.join(others[:3])}); choose a new output.folder"
        )
    _write_config(file, mine)


def _write_config(file: Path, settings: Mapping[str, Any]) -> None:
    import yaml

    with telling(file):
        partial = file.with_suffix(".yaml.tmp")
        partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        partial.replace(file)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in [*a, *(n for n in b if n not in a)]:
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, (*path, name))
        elif one != other:
            yield (*path, name)
