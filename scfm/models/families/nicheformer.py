"""Nicheformer: a transformer on genes ranked against the usual level of a technology, of dissociated and spatial cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble, pick
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import (
    as_state,
    is_json_with,
    mentions,
    read_settings,
    read_tensors,
)
from scfm.models.families._nicheformer_genes import PUBLISHED_TOKENS, tokenizer_near
from scfm.transformer import (
    CellTransformerConfig,
    HeadSpec,
    MLPSpec,
    PartSpec,
    QueryOnlySpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
)

EPS = 1e-12
N_CONTEXT = 3
PADDING = 1
"""The weights' own numbering, in which 0 masks a gene; the hub's ``vocab.json`` has the two names swapped."""
PUBLISHED_HEADS = {(512, 12): 16}
"""Attention heads by width and depth, for files that do not tell them."""
AS_TRAINED = {"autoregressive": False, "learnable_pe": True, "specie": True, "assay": True, "modality": True}
"""Settings that every published model has, and that are built in here."""

PREFIXES = ("", "nicheformer.", "backbone.")
BACKBONE = r"(?:nicheformer\.|backbone\.)?"
LAYER = BACKBONE + r"encoder\.layers\.(\d+)\."
KEYS = (
    Key(BACKBONE + r"embeddings\.weight", "terms.gene.table"),
    Key(BACKBONE + r"positional_embedding\.weight", "terms.position.table"),
    Key(LAYER + r"self_attn\.in_proj_(weight|bias)", r"encoder.layers.\1.qkv.\2"),
    Key(LAYER + r"self_attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"linear1\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"linear2\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(LAYER + r"(norm1|norm2)\.(weight|bias)", r"encoder.layers.\1.\2.\3"),
    Key(BACKBONE + r"classifier_head\.(weight|bias)", r"heads.mlm.mlp.linears.0.\1"),
)
OUTER_POOLER = r"pooler_head\..*"
IGNORED = {
    BACKBONE + r"encoder_layer\..*": "the layer that the others were copied from before training; never used",
    BACKBONE + r"cls_head\..*": "never trained and never used",
    BACKBONE + r"pos": "a constant 0, 1, 2, ...",
    r"backbone\.pooler_head\..*": "never trained and never used",
    OUTER_POOLER: "never trained and never used",
}
OPTIONS = ("species", "assay", "modality")
SPECIES = "human, mouse"


@dataclass(frozen=True)
class Found:
    """What the files of a model hold.

    Parameters
    ----------
    state
        Tensors under their own names.
    settings
        Constructor arguments of the pretrained model; ``nheads`` is the one that no shape tells.
    task
        Those of the fine-tuned model around it; empty: there is none.
    name, source
        Of the weight set, and its file.
    """

    state: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    task: Mapping[str, Any]
    name: str
    source: Path

    def __getitem__(self, key: str) -> Tensor:
        tensor = next((self.state[p + key] for p in PREFIXES if p + key in self.state), None)
        if tensor is None:
            raise CheckpointError(f"{self.source} has no {key}; it is not a Nicheformer model with learned positions")
        return tensor

    @property
    def n_layers(self) -> int:
        """Layers among the tensors."""
        return 1 + max((int(m[1]) for name in self.state if (m := re.match(LAYER, name))), default=-1)


def config(found: Found) -> CellTransformerConfig:
    """The transformer of a checkpoint: sizes from its tensors, the number of heads and dropout from its settings."""
    rows, width = found["embeddings.weight"].shape
    length = len(found["positional_embedding.weight"])
    n_heads = found.settings.get("nheads") or PUBLISHED_HEADS.get((width, found.n_layers))
    if n_heads is None:
        raise CheckpointError(
            f"{found.source} does not tell its number of attention heads; put the pretrained .ckpt that it was made from "
            "beside it"
        )
    dropout = float(found.settings.get("dropout", 0.0))
    inner = {"": PartSpec("mean", skip_first=N_CONTEXT), "_with_context": PartSpec("mean")}
    readouts = {"mean" + name: ReadoutSpec((part,)) for name, part in inner.items()}
    readouts |= {"official" + name: ReadoutSpec((part,), padded_to=length) for name, part in inner.items()}
    heads = {"mlm": HeadSpec("tokens", MLPSpec((width, len(found["classifier_head.weight"]))))}
    if found.task:
        heads[found.task["supervised_task"]], readouts["finetuned"] = _task(found, width, length)
    return make_config(
        encoder=StackSpec(
            n_layers=found.n_layers,
            width=width,
            n_heads=n_heads,
            head_dim=width // n_heads,
            ff=len(found["encoder.layers.0.linear1.weight"]),
            eps=EPS,
            dropout=dropout,
            attention_dropout=dropout,
            ff_dropout=dropout,
        ),
        terms={"gene": TermSpec("table", rows=rows), "position": TermSpec("table", "positions", rows=length)},
        sum_dropout=dropout,
        # padding sees the real tokens but not itself, and nobody sees it: only read-outs that count it need it
        query_only=QueryOnlySpec(sees_itself=False, projected=True, padding=PADDING).to_dict(),
        heads=heads,
        readouts=readouts,
        readout="mean",
    )


def _task(found: Found, width: int, length: int) -> tuple[HeadSpec, ReadoutSpec]:
    """The output of a fine-tuned model, and what it reads."""
    task = found.task
    layers = tuple(k + 1 if k >= 0 else k for k in task["extract_layers"])
    merge = task["function_layers"] if len(layers) > 1 else "mean"
    if merge not in ("mean", "sum"):
        raise CheckpointError(
            f"{found.source} joins {len(layers)} layers by {merge!r}, for which its head has no width"
        )
    inner = PartSpec("mean", skip_first=N_CONTEXT if task.get("without_context", True) else 0)
    widths = (width, width) if task.get("extractor") else (width,)
    mlp = MLPSpec((*widths, len(found["linear_head.weight"])), between=("tanh",), last_bias=False)
    transform = "softmax" if task.get("regress_distribution") else "none"
    head = HeadSpec("cells", mlp, readout="finetuned", transform=transform)  # type: ignore[arg-type]
    return head, ReadoutSpec((inner,), padded_to=length, layers=layers, merge=merge)  # type: ignore[arg-type]


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A folder with Lightning checkpoints (``*.ckpt``), or ``config.json`` and ``model.safetensors`` of the hub."""
    found = _hub(path, checkpoint) if _is_hub(path) else _lightning(path, checkpoint)
    for name, value in AS_TRAINED.items():
        if found.settings.get(name, value) != value:
            raise CheckpointError(
                f"{found.source} was made with {name} = {found.settings[name]}; only models with {name} = {value} can be "
                "read, as all that were published"
            )
    made = config(found)
    n_tokens, length = len(found["classifier_head.weight"]), len(found["positional_embedding.weight"])
    tokenizer = tokenizer_near(path, n_tokens, length)
    if found.task.get("pool") == "cls":
        tokenizer = replace(tokenizer, first=("cls",))
    keys, ignored = list(KEYS), dict(IGNORED)
    if found.task:
        head = f"heads.{found.task['supervised_task']}.mlp.linears"
        pooled = bool(found.task.get("extractor"))
        keys.append(Key(r"linear_head\.weight", f"{head}.{int(pooled)}.weight"))
        if pooled:
            keys.append(Key(r"pooler_head\.(weight|bias)", rf"{head}.0.\1"))
            del ignored[OUTER_POOLER]
    return assemble(
        Reading(
            config=made,
            state=found.state,
            keys=keys,
            ignored=ignored,
            tokenizer=tokenizer,
            card=_card_of(found, n_tokens, length),
            source=str(found.source),
        )
    )


def _is_hub(path: Path) -> bool:
    return is_json_with(path / "config.json", "model_type", "nicheformer")


def _is_lightning(path: Path) -> bool:
    return (path / "nicheformer.ckpt").is_file() or any(
        mentions(file, b"pytorch-lightning_version", b"positional_embedding") for file in path.glob("*.ckpt")
    )


def _hub(path: Path, checkpoint: str | None) -> Found:
    if checkpoint is not None:
        raise CheckpointError(f"{path} holds one weight set; checkpoint={checkpoint!r} does not exist")
    settings = read_settings(path / "config.json", ("nheads",), FAMILY.companions)
    source = path / "model.safetensors"
    return Found(as_state(read_tensors(source), source), settings, {}, path.name, source)


def _lightning(path: Path, checkpoint: str | None) -> Found:
    # the optimiser's state makes up two thirds of a file: it is left there
    files = {file.stem: file for file in sorted(path.glob("*.ckpt"))}
    opened = {name: read_tensors(file, lazy=True) for name, file in files.items()}
    incomplete = [name for name, data in opened.items() if not {"state_dict", "hyper_parameters"} <= set(data)]
    if incomplete:
        raise CheckpointError(
            f"{files[incomplete[0]]} has no state_dict and hyper_parameters; it is no Lightning checkpoint"
        )
    settings = {name: dict(data["hyper_parameters"]) for name, data in opened.items()}
    pretrained = [name for name in opened if "nheads" in settings[name]]
    name = pick([*opened], checkpoint, pretrained or [*opened], path)
    state = {key: tensor.clone() for key, tensor in as_state(opened[name]["state_dict"], files[name]).items()}
    task = settings[name] if "linear_head.weight" in state else {}
    about = settings[name] if name in pretrained or len(pretrained) != 1 else settings[pretrained[0]]
    return Found(state, about, task, name, files[name])


def _card_of(found: Found, n_tokens: int, length: int) -> ModelCard:
    size = (found.n_layers, found["embeddings.weight"].shape[1], n_tokens)
    known = next((card for card in CARDS if card.details["size"] == size and not found.task), None)
    title = f"Nicheformer, fine-tuned for {found.task['supervised_task']}" if found.task else "a Nicheformer-like model"
    own = ModelCard(
        name=found.name, family="nicheformer", title=title, context=length, options=OPTIONS, species=SPECIES
    )
    return own if known is None else known


CARDS = (
    ModelCard(
        name="nicheformer",
        family="nicheformer",
        title="Nicheformer, 12 layers",
        parameters=49_302_040,
        context=1500,
        species=SPECIES,
        licence="not verified (the code: BSD-3-Clause)",
        source="the authors' model hub repository theislab/Nicheformer, and Mendeley Data 87gm9hrgm8 (nicheformer.ckpt)",
        hub=("theislab/Nicheformer", ""),
        files={"config.json": None, "model.safetensors": None, "vocab.json": None},
        options=OPTIONS,
        verified="tokens, hidden states, embeddings and heads against the authors' code on a small random model; parameter "
        "count; the released weights themselves were not at hand",
        data="SpatialCorpus-110M: dissociated and image-based spatial cells of human and mouse",
        details={"size": (12, 512, PUBLISHED_TOKENS)},
    ),
)

FAMILY = Family(
    name="nicheformer",
    cards=CARDS,
    recognise=lambda path: _is_hub(path) or _is_lightning(path),
    read=read,
    files=("*.ckpt", "config.json", "model.safetensors", "vocab.json", "model.h5ad", "*_mean_script.npy"),
    companions="nicheformer.ckpt, or config.json, model.safetensors and vocab.json of the hub; the published genes and "
    "technology means come with scfm",
)
