"""What can be asked of a training run? Plain data, checked before anything is read or written."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scfm.errors import ConfigError
from scfm.training._encode import Keep
from scfm.training._sampler import Sampling
from scfm.training.objectives import OBJECTIVES, Objective


@dataclass(frozen=True)
class CorpusConfig:
    """Which cells.

    Parameters
    ----------
    files
        Files, folders and patterns; see `Corpus.open`.
    store
        A token store to read instead of the files; it is all that is needed.
    keep
        What is kept of a cell; None: what the objective needs.
    donor_key, dataset_key, label_key, gene_key, gene_matching, layer, use_raw, context, orthologues
        See `Corpus`.
    """

    files: tuple[str, ...] = ()
    store: str | None = None
    keep: Keep | None = None
    donor_key: str | None = None
    dataset_key: str | None = None
    label_key: str | None = None
    gene_key: str | None = None
    gene_matching: Literal["resolve", "published"] = "resolve"
    layer: str | None = None
    use_raw: bool | None = None
    context: dict[str, Any] = field(default_factory=dict)
    orthologues: bool = True


@dataclass(frozen=True)
class ValidationConfig:
    """Which cells are held out.

    Parameters
    ----------
    by, share, groups
        See `split`: whole groups of cells.
    max_cells
        Most held-out cells that are scored.
    """

    by: Literal["donor", "dataset", "file"] = "donor"
    share: float = 0.1
    groups: tuple[str, ...] | None = None
    max_cells: int = 2000


@dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Parameters
    ----------
    start
        A model's name or folder, whose weights are trained further.
    fresh
        With ``start``: its architecture and tokenizer, with new weights.
    on_top
        With a ``start`` without layers, such as scfm-mini: its weights stay as they are, and ``n_layers`` attention layers
        are put on top, which begin as no change at all.
    kind
        Without ``start``: what a new model reads; see `scfm.training.ARCHITECTURES`.
    n_layers, width, n_heads, ff, dropout
        Sizes of a new model, or of layers on top, which keep the width of their start; ``ff`` None: four times the width.
    max_length
        Tokens of the longest cell.
    vocabulary
        ``"corpus"``: protein-coding genes that the corpus measures; or the name of a shipped vocabulary
        (``geneformer-v1``, ``geneformer-v2``).
    species
        Of a vocabulary from the corpus.
    attention
        Implementation; None: the fastest.
    """

    start: str | None = None
    fresh: bool = False
    on_top: bool = False
    kind: Literal["ranks", "bins", "levels", "words", "depth"] = "ranks"
    n_layers: int = 4
    width: int = 128
    n_heads: int = 4
    ff: int | None = None
    dropout: float = 0.0
    max_length: int = 1024
    vocabulary: str = "corpus"
    species: str = "human"
    attention: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """How it is trained.

    Parameters
    ----------
    steps, epochs
        Optimizer steps, or passes over the training cells; ``steps`` goes first.
    learning_rate, warmup_steps, schedule, weight_decay, clip
        AdamW; the schedule falls to 0 (``cosine``, ``linear``) or stays (``constant``).
    accumulation
        Batches per optimizer step and process.
    precision
        Of the matrix products; weights and optimizer stay in float32.
    checkpointing
        Layers are computed again in the backward pass instead of being remembered.
    compile
        The layers are compiled by torch.
    fsdp
        Weights and optimizer are shared out over the GPUs.
    num_workers
        Processes that make batches; the result does not depend on it.
    device
        ``cpu``, ``cuda``; None: the best there is.
    seed
        Of everything random.
    """

    steps: int | None = None
    epochs: float = 1.0
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulation: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    num_workers: int = 0
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class OutputConfig:
    """What is written.

    Parameters
    ----------
    folder
        Of the run; nothing else may be in it.
    checkpoint_every, keep
        Optimizer steps between checkpoints, and how many of the last ones stay.
    log_every, evaluate_every
        Optimizer steps; ``evaluate_every`` None: ten times in a run, and every 50 steps at most.
    tensorboard
        Whether to write TensorBoard files too.
    progress
        Whether to show a bar.
    name
        Of the model.
    """

    folder: str = "scfm-run"
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    evaluate_every: int | None = None
    tensorboard: bool = True
    progress: bool = True
    name: str | None = None


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Parameters
    ----------
    corpus, validation, model, sampling, run, output
        Its parts.
    objective
        ``name`` and settings of one of `scfm.training.objectives`.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "masked_genes"})
    sampling: Sampling = field(default_factory=Sampling)
    run: RunConfig = field(default_factory=RunConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        run, out = self.run, self.output
        positive = {
            "run.accumulation": run.accumulation,
            "run.learning_rate": run.learning_rate,
            "output.checkpoint_every": out.checkpoint_every,
            "output.keep": out.keep,
            "output.log_every": out.log_every,
            "validation.max_cells": self.validation.max_cells,
        }
        if run.steps is not None:
            positive["run.steps"] = run.steps
        else:
            positive["run.epochs"] = run.epochs
        for name, value in positive.items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        self.build_objective()

    @classmethod
    def build(cls, data: Mapping[str, Any]) -> PretrainConfig:
        """From plain types.

        Raises
        ------
        ConfigError
            If a key is unknown or a value is of the wrong type; the message names it.
        """
        return build(cls, data)

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
        """From a YAML file.

        Parameters
        ----------
        path
            Of the file.
        overrides
            ``a.b=value``, each replaces an entry.

        Raises
        ------
        ConfigError
            If the file is not there or no YAML, or what it says is impossible.
        """
        return cls.build(read_entries(path, overrides))

    def to_dict(self) -> dict[str, Any]:
        """As plain types, with every setting of the objective."""
        objective = {"name": self.objective["name"], **_plain(asdict(self.build_objective()))}
        return {**_plain(asdict(self)), "objective": objective}

    def build_objective(self) -> Objective:
        """The objective that is meant.

        Raises
        ------
        ConfigError
            If its name or a setting is unknown.
        """
        settings = dict(self.objective)
        name = settings.pop("name", None)
        if name not in OBJECTIVES:
            raise ConfigError(
                f"objective.name is {name!r}{_close(str(name), OBJECTIVES)}; there are {', '.join(OBJECTIVES)}"
            )
        return build(OBJECTIVES[name], settings, "objective.")


def read_entries(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of a YAML file, some of them replaced; see `PretrainConfig.read`."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no configuration {path}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected entries such as 'corpus:' and 'run:'")
    for override in overrides:
        _override(data, override)
    return data


def build(kind: type[Any], data: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass from plain types, checked entry by entry."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where.rstrip('.') or 'the configuration'} is {data!r}, expected entries with names")
    known = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for name in data:
        if name not in names:
            raise ConfigError(f"unknown entry {where}{name}{_close(str(name), names)}; there are {', '.join(names)}")
    values = {name: _value(known[name], value, f"{where}{name}") for name, value in data.items()}
    return kind(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return build(kind, value, f"{where}.") if not isinstance(value, kind) else value  # type: ignore[arg-type]
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(k for k in inner if k is not type(None)), value, where)
    if origin is Literal:
        if value not in inner:
            raise ConfigError(
                f"{where} is {value!r}{_close(str(value), map(str, inner))}; choose {', '.join(map(repr, inner))}"
            )
        return value
    if origin is tuple:
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list | tuple):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        return tuple(_value(inner[0], v, where) for v in many)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}, expected entries with names")
        return dict(value)
    if getattr(kind, "__origin__", None) is not None or kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}, expected {_NAMES.get(kind, kind.__name__)}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _close(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _override(data: dict[str, Any], text: str) -> None:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not of the form a.b=value")
    *path, last = name.strip().split(".")
    for key in path:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text!r}: {key} holds a value, not entries")
        data = inner
    data[last] = yaml.safe_load(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
