"""Which parameters move in fine-tuning? One row per method; small adapters by peft, put in and merged again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scfm.errors import CheckpointError, ConfigError, require
from scfm.models import FoundationModel
from scfm.training._architectures import add_heads
from scfm.training._encode import tokenizer_hash
from scfm.training._sequence_network import SequenceModel, SequenceNetwork
from scfm.transformer import CellTransformer, HeadSpec


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Parameters
    ----------
    about
        One line.
    rate
        Learning rate unless another is asked for.
    needs_layers
        Whether a model without layers cannot be tuned so.
    adapter
        Kind of adapter that peft puts in; None: none.
    flat_rate
        Learning rate where there are no layers, and so a cell is a sum over thousands of vectors that all move.
    """

    about: str
    rate: float
    needs_layers: bool = False
    adapter: str | None = None
    flat_rate: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether there are steps at all."""
        return self.rate > 0


METHODS: dict[str, Method] = {
    "full": Method("every weight that cells go through", 1e-4, flat_rate=1e-5),
    "freeze": Method("the upper layers", 1e-4, needs_layers=True),
    "lora": Method("low-rank updates of the maps of each layer", 1e-3, needs_layers=True, adapter="lora"),
    "ia3": Method("one factor per unit of the maps of each layer", 3e-3, needs_layers=True, adapter="ia3"),
    "head": Method("nothing of the model: linear maps on its frozen vectors", 0.0),
}
"""By the name that a user types."""
ADAPTED = {"lora": ("qkv", "out", "up", "down"), "ia3": ("qkv", "down")}
FED_FORWARD = ("down",)


@dataclass(frozen=True)
class Tuning:
    """What moves, and how far it may.

    Parameters
    ----------
    method
        One of `METHODS`.
    n_frozen
        Layers, from below, that do not move, and with one or more the input terms too.
    rank, alpha, dropout
        Of LoRA: W + alpha / rank x B A (Hu et al. 2022, section 4.1).
    rate
        Learning rate unless another is asked for.
    """

    method: str = "lora"
    n_frozen: int = 0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rate: float = 0.0

    @classmethod
    def checked(
        cls,
        model: FoundationModel | SequenceModel,
        method: str,
        n_frozen: int | None,
        rank: int,
        alpha: float,
        dropout: float,
    ) -> Tuning:
        """For a model.

        Raises
        ------
        ConfigError
            If the method is unknown, or not possible with this model.
        MissingDependencyError
            If it needs peft, which is not installed.
        """
        if method not in METHODS:
            lines = "; ".join(f"{name!r}: {m.about}" for name, m in METHODS.items())
            raise ConfigError(f"method={method!r} is none; there are {lines}")
        n_layers = model.transformer.n_layers
        if METHODS[method].needs_layers and n_layers == 0:
            raise ConfigError(
                f"{model.card.name} has no layers that method={method!r} could change: all it has is a vector per gene. Use "
                "method='full', which moves these vectors, or method='head'"
            )
        if n_frozen is None:
            n_frozen = max(n_layers // 2, 1) if method == "freeze" else 0
        if not 0 <= n_frozen <= n_layers or (n_frozen == n_layers > 0 and method != "head"):
            raise ConfigError(
                f"n_frozen_layers={n_frozen}, but {model.card.name} has {n_layers} layers, of which at least one must be free; "
                "method='head' moves none"
            )
        if method == "freeze" and n_frozen == 0:
            raise ConfigError("method='freeze' with n_frozen_layers=0 freezes nothing; use method='full'")
        if METHODS[method].adapter is not None:
            _peft()
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise ConfigError(
                f"rank={rank}, alpha={alpha}, lora_dropout={dropout}: rank and alpha must be above 0, dropout below 1"
            )
        rate = METHODS[method].rate if n_layers else METHODS[method].flat_rate
        return cls(method, n_frozen, rank, alpha, dropout, rate)


def _peft() -> Any:
    require("peft", "adapters need peft", "train")
    import peft

    return peft


def own_copy(
    model: FoundationModel, heads: Mapping[str, HeadSpec], readout: str | None, hidden_layer: int
) -> FoundationModel:
    """A copy in float32 with new heads, whose cell vectors are by default what the heads read; the given one stays as it is."""
    copied = replace(model, transformer=deepcopy(model.transformer).float())
    if readout is not None:
        copied.config.readout = readout
    copied.config.hidden_layer = hidden_layer
    add_heads(copied, heads)
    return copied


def put_in(transformer: CellTransformer | SequenceNetwork, tuning: Tuning, heads: Iterable[str]) -> None:
    """Make ready to train: adapters are put in, and what is to stay gets no gradient."""
    transformer.requires_grad_(False)
    adapter = METHODS[tuning.method].adapter
    if adapter is not None:
        peft = _peft()
        names = adapted(transformer, adapter, tuning.n_frozen)
        if adapter == "lora":
            settings = peft.LoraConfig(
                r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=tuning.dropout, target_modules=names
            )
        else:
            fed = [name for name in names if name.endswith(FED_FORWARD)]
            settings = peft.IA3Config(target_modules=names, feedforward_modules=fed)
        peft.inject_adapter_in_model(settings, transformer)
    elif tuning.method in ("full", "freeze"):
        for parameter in _moving(transformer, tuning.n_frozen):
            parameter.requires_grad_(True)
    for name in heads:
        transformer.heads[name].requires_grad_(True)


def adapted(transformer: CellTransformer | SequenceNetwork, adapter: str, n_frozen: int) -> list[str]:
    """Names of the linear maps that adapters are put into."""
    if isinstance(transformer, SequenceNetwork):
        return transformer.adapted(adapter, n_frozen)
    blocks = range(n_frozen, transformer.n_layers)
    return [f"encoder.layers.{k}.{name}" for k in blocks for name in ADAPTED[adapter]]


def _moving(transformer: CellTransformer | SequenceNetwork, n_frozen: int) -> list[nn.Parameter]:
    if isinstance(transformer, SequenceNetwork):
        return transformer.moving(n_frozen)
    modules: list[nn.Module | None] = [*list(transformer.encoder.layers)[n_frozen:]]
    modules += [transformer.encoder.final_norms, transformer.output]
    if n_frozen == 0:
        modules += [transformer.terms, transformer.sum_norm]
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def tuned_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """Everything that moves, by name, on the host."""
    return {
        name: p.detach().to("cpu", copy=True).contiguous()
        for name, p in transformer.named_parameters()
        if p.requires_grad
    }


def fill_in(transformer: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Set what moved, strictly.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unknown or of another shape.
    """
    wanted = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise CheckpointError(f"{source} does not hold what its settings say: {odd[0]} is missing or unknown")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{source}: {name} has shape {list(tensors[name].shape)}, expected {list(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def merge(transformer: nn.Module) -> None:
    """Add adapters to the weights they belong to, and take them out."""
    for name, module in list(transformer.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()  # type: ignore[operator]
            parent, _, own = name.rpartition(".")
            setattr(transformer.get_submodule(parent), own, module.get_base_layer())  # type: ignore[operator]
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config
    transformer.requires_grad_(True).eval()


def base_hash(model: FoundationModel) -> str:
    """SHA-256 of a model's tokenizer and of all that its cells go through: names and float32 values, heads aside."""
    digest = hashlib.sha256(tokenizer_hash(model.tokenizer).encode())
    for name, tensor in sorted(model.transformer.state_dict().items()):
        if not name.startswith("heads."):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            plain = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
            digest.update(np.ascontiguousarray(plain.cpu().numpy()).tobytes())
    return digest.hexdigest()
