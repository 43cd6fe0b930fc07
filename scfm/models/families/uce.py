"""UCE: a transformer on proteins drawn by expression and written along the chromosomes, for any species."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble, pick
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, read_json, read_tensors
from scfm.models.families._uce_genes import PROTEINS, TABLE, species_in
from scfm.transformer import (
    CellTransformerConfig,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
)

N_DRAWS = 1024
PUBLISHED_HEADS = {1280: 20}
"""Attention heads by width: the weights do not tell them."""
DROPOUT = 0.05
STEPS = ("norm", "gelu", "dropout")
FEED_FORWARD = "transformer_encoder.layers.0.linear1.weight"
NEEDED = ("pos_encoder.pe", "encoder.0.weight", FEED_FORWARD, "decoder.0.0.weight", "binary_decoder.0.0.weight")

LAYER = r"transformer_encoder\.layers\.(\d+)\."


def _mlp(source: str, ours: str) -> tuple[Key, ...]:
    """Blocks of linear map and norm, and a last linear map."""
    return (
        Key(rf"{source}\.(\d+)\.0\.(weight|bias)", rf"{ours}.linears.\1.\2"),
        Key(rf"{source}\.(\d+)\.1\.(weight|bias)", rf"{ours}.norms.\1.\2"),
        Key(rf"{source}\.(\d+)\.(weight|bias)", rf"{ours}.linears.\1.\2"),
    )


KEYS = (
    Key(r"pe_embedding\.weight", "terms.gene.table"),
    Key(r"encoder\.0\.(weight|bias)", r"terms.gene.mlp.linears.0.\1"),
    Key(r"encoder\.2\.(weight|bias)", r"terms.gene.mlp.norms.0.\1"),
    Key(r"pos_encoder\.pe", "terms.position.table"),
    Key(LAYER + r"self_attn\.in_proj_(weight|bias)", r"encoder.layers.\1.qkv.\2"),
    Key(LAYER + r"self_attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"linear1\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"linear2\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(LAYER + r"(norm1|norm2)\.(weight|bias)", r"encoder.layers.\1.\2.\3"),
    *_mlp("decoder", "output"),
    *_mlp("binary_decoder", "heads.expressed.joint"),
    Key(r"gene_embedding_layer\.0\.(weight|bias)", r"heads.expressed.mlp.linears.0.\1"),
    Key(r"gene_embedding_layer\.2\.(weight|bias)", r"heads.expressed.mlp.norms.0.\1"),
)


def config(state: Mapping[str, Tensor], n_heads: int) -> CellTransformerConfig:
    """The transformer of a checkpoint: everything but the number of heads is in the shapes.

    Parameters
    ----------
    state
        Tensors, with the token table of one species.
    n_heads
        Attention heads.
    """
    (rows, t), d = state[TABLE].shape, len(state["encoder.0.weight"])
    encode = MLPSpec((t, d), end=("gelu", "norm"))
    return make_config(
        encoder=StackSpec(
            n_layers=_n_layers(state),
            width=d,
            n_heads=n_heads,
            head_dim=d // n_heads,
            ff=len(state[FEED_FORWARD]),
            dropout=DROPOUT,
            attention_dropout=DROPOUT,
            ff_dropout=DROPOUT,
        ),
        terms={
            "gene": TermSpec("table", rows=rows, width=t, frozen=True, unit=True, mlp=encode, scale=sqrt(d)),
            "position": TermSpec("table", "positions", rows=len(state["pos_encoder.pe"]), frozen=True),
        },
        sum_dropout=DROPOUT,
        output=MLPSpec(_widths(state, "decoder"), between=STEPS, dropout=DROPOUT),
        heads={
            "expressed": HeadSpec(
                "pairs",
                encode,
                readout="cls",
                joint=MLPSpec(_widths(state, "binary_decoder"), between=STEPS, dropout=DROPOUT),
                genes="unit",
            )
        },
        readouts={"cls": ReadoutSpec((PartSpec("token", 0),), unit=True)},
        readout="cls",
    )


def _n_layers(state: Mapping[str, Tensor]) -> int:
    return 1 + max((int(found[1]) for name in state if (found := re.match(LAYER, name))), default=-1)


def _widths(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Input width and output widths of a chain of linear maps."""
    found = {int(m[1]): w for key, w in state.items() if (m := re.fullmatch(rf"{name}\.(\d+)(\.0)?\.weight", key))}
    linears = [found[k] for k in sorted(found)]
    return (linears[0].shape[1], *(len(w) for w in linears))


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A folder of model files: the weights (``*.torch``), the protein tables and the tables of species."""
    folder = _model_files(path)
    weights = _weights(folder, checkpoint)
    settings = _settings(path, folder)
    data = read_tensors(weights, lazy=True)
    # the token table is gathered by the species: it is up to 3 GB
    state = as_state({k: v for k, v in data.items() if not k.endswith(TABLE)}, weights)
    state = {name: tensor.clone() for name, tensor in state.items()}
    species = species_in(folder, weights, int(settings.get("sample_size", N_DRAWS)))
    if not species:
        raise CheckpointError(
            f"{folder / 'protein_embeddings'} holds none of the protein tables {', '.join(PROTEINS.values())} "
            f"(.gene_symbol_to_embedding_ESM2.pt). {FAMILY.companions}"
        )
    tokenizer, table = next(iter(species.values()))()
    state[TABLE] = table
    absent = [name for name in NEEDED if name not in state]
    if absent:
        raise CheckpointError(f"{weights} has no {absent[0]}; it is not a UCE model")
    width = len(state["encoder.0.weight"])
    n_heads = settings.get("nhead", PUBLISHED_HEADS.get(width))
    if n_heads is None:
        raise CheckpointError(
            f"{weights} has the width {width}, for which the number of attention heads is not known; put a config.json "
            'with {"nhead": ...} beside it'
        )
    model = assemble(
        Reading(
            config=config(state, n_heads),
            state=state,
            keys=KEYS,
            ignored={},
            tokenizer=tokenizer,
            card=_card_of(weights, _n_layers(state), width),
            source=str(weights),
        )
    )
    return replace(model, species=species)


def _model_files(path: Path) -> Path:
    return path / "model_files" if (path / "model_files").is_dir() else path


def _candidates(folder: Path) -> dict[str, Path]:
    """Files that may be weights, by their names without suffix."""
    files = {file.stem: file for file in sorted(folder.glob("*.torch"))}
    return {name: file for name, file in files.items() if not name.endswith(("all_tokens", "_pe_tokens"))}


def _weights(folder: Path, checkpoint: str | None) -> Path:
    files = _candidates(folder)
    return files[pick([*files], checkpoint, [*files], folder)]


def _settings(path: Path, folder: Path) -> dict[str, Any]:
    """What a ``config.json`` in or beside the folder says; official releases have none."""
    for file in (folder / "config.json", path / "config.json", path.parent / "config.json"):
        if file.is_file():
            settings = read_json(file)
            if isinstance(settings, dict) and "nhead" in settings:
                return settings
    return {}


def _card_of(weights: Path, n_layers: int, width: int) -> ModelCard:
    known = next((card for card in CARDS if card.details["size"] == (n_layers, width)), None)
    return known or ModelCard(
        name=weights.stem, family="uce", title="a UCE-like model", species=SPECIES, options=("species",)
    )


SPECIES = "human, mouse, frog, zebrafish, mouse lemur, pig, two macaques; others by their proteins"


def _card(name: str, n_layers: int, file: str, figshare: int, parameters: int) -> ModelCard:
    return ModelCard(
        name=name,
        family="uce",
        title=f"UCE, {n_layers} layers",
        parameters=parameters,
        context=1536,
        species=SPECIES,
        licence="not verified (the code: MIT; copies of the weights name MIT or CC-BY-NC-ND)",
        source=f"figshare article 24320806 (file {figshare}; companions 42706558, 42706555, 42715213), linked from the "
        "authors' repository snap-stanford/UCE",
        files={file: None, "species_chrom.csv": None, "species_offsets.pkl": None, "protein_embeddings": None},
        options=("species",),
        verified="sentences, hidden states, embeddings, the expression head and gradients against the authors' code on a "
        "small random model; parameter count; the released weights themselves were not at hand",
        data="36 million cells of more than 300 data sets and eight species",
        details={"size": (n_layers, 1280)},
    )


CARDS = (
    _card("uce-4l", 4, "4layer_model.torch", 42706576, 104_100_097),
    _card("uce-33l", 33, "33l_8ep_1024t_1280.torch", 43423236, 674_745_857),
)

FAMILY = Family(
    name="uce",
    cards=CARDS,
    recognise=lambda path: (
        (_model_files(path) / "species_offsets.pkl").is_file() and bool(_candidates(_model_files(path)))
    ),
    read=read,
    files=("*.torch", "config.json", "*.csv", "*_offsets.pkl", "*.gene_symbol_to_embedding_ESM2.pt"),
    companions="The weights (4layer_model.torch or 33l_8ep_1024t_1280.torch), species_chrom.csv, species_offsets.pkl and the "
    "folder protein_embeddings (unpacked from protein_embeddings.tar.gz), all of figshare article 24320806",
)
