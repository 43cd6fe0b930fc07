"""Geneformer V1 and V2: BERT on genes ranked by their count against the corpus median."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, is_json_with, read_pickle, read_settings, read_tensors
from scfm.tokenizers import RankValueTokenizer, families
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

log = logging.getLogger("scfm")

PUBLISHED_SIZES: dict[int, Literal["geneformer-v1", "geneformer-v2"]] = {25426: "geneformer-v1", 20275: "geneformer-v2"}

LAYER = r"bert\.encoder\.layer\.(\d+)\."
KEYS = (
    Key(r"bert\.embeddings\.word_embeddings\.weight", "terms.gene.table"),
    Key(r"bert\.embeddings\.position_embeddings\.weight", "terms.position.table"),
    # every token is of segment 0, so its row belongs to every position
    Key(r"bert\.embeddings\.token_type_embeddings\.weight", "terms.position.table", add=lambda t: t[0]),
    Key(r"bert\.embeddings\.LayerNorm\.(weight|bias)", r"sum_norm.\1"),
    *(
        Key(LAYER + rf"attention\.self\.{name}\.(weight|bias)", r"encoder.layers.\1.qkv.\2", part=(i, 3))
        for i, name in enumerate(("query", "key", "value"))
    ),
    Key(LAYER + r"attention\.output\.dense\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"attention\.output\.LayerNorm\.(weight|bias)", r"encoder.layers.\1.norm1.\2"),
    Key(LAYER + r"intermediate\.dense\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"output\.dense\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(LAYER + r"output\.LayerNorm\.(weight|bias)", r"encoder.layers.\1.norm2.\2"),
    Key(r"cls\.predictions\.transform\.dense\.(weight|bias)", r"heads.mlm.mlp.linears.0.\1"),
    Key(r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)", r"heads.mlm.mlp.norms.0.\1"),
    Key(r"cls\.predictions\.bias", "heads.mlm.bias"),
)
CELL_HEAD = (
    Key(r"bert\.pooler\.dense\.(weight|bias)", r"heads.cell_classifier.mlp.linears.0.\1"),
    Key(r"classifier\.(weight|bias)", r"heads.cell_classifier.mlp.linears.1.\1"),
)
GENE_HEAD = (Key(r"classifier\.(weight|bias)", r"heads.gene_classifier.mlp.linears.0.\1"),)
COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
IGNORED = {
    r"bert\.embeddings\.position_ids": "a constant 0, 1, 2, ...",
    **{re.escape(copy): f"a copy of {original}" for copy, original in COPIES.items()},
}
SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
DICTIONARIES = {
    "tokens": "token_dictionary*.pkl",
    "medians": "gene_median_dictionary*.pkl",
    "aliases": "ensembl_mapping_dict*.pkl",
    "symbols": "gene_name_id_dict*.pkl",
}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def config(bert: Mapping[str, Any], heads: Mapping[str, HeadSpec], *, special_tokens: bool) -> CellTransformerConfig:
    """The transformer of a BERT configuration.

    Parameters
    ----------
    bert
        The ``config.json`` of the checkpoint.
    heads
        Outputs that the checkpoint holds.
    special_tokens
        Whether cells start with ``<cls>`` and end with ``<eos>`` (V2).
    """
    width, n_heads, eps = bert["hidden_size"], bert["num_attention_heads"], bert["layer_norm_eps"]
    trim = 1 if special_tokens else 0
    readouts = {"mean": ReadoutSpec((PartSpec("mean", skip_first=trim, skip_last=trim),))}
    if special_tokens:
        readouts["cls"] = ReadoutSpec((PartSpec("token", 0),))
    if "cell_classifier" in heads:
        readouts["first"] = ReadoutSpec((PartSpec("token", 0),))
    return make_config(
        encoder=StackSpec(
            n_layers=bert["num_hidden_layers"],
            width=width,
            n_heads=n_heads,
            head_dim=width // n_heads,
            ff=bert["intermediate_size"],
            activation=bert["hidden_act"],
            eps=eps,
            dropout=bert["hidden_dropout_prob"],
            attention_dropout=bert["attention_probs_dropout_prob"],
        ),
        terms={
            "gene": TermSpec("table", rows=bert["vocab_size"]),
            "position": TermSpec("table", "positions", rows=bert["max_position_embeddings"]),
        },
        sum_norm=True,
        sum_eps=eps,
        sum_dropout=bert["hidden_dropout_prob"],
        heads=heads,
        readouts=readouts,
        readout="cls" if special_tokens else "mean",
        # the authors' default (emb_layer -1) is the second-to-last layer
        hidden_layer=-2,
    )


def heads_of(state: Mapping[str, Tensor], bert: Mapping[str, Any]) -> dict[str, HeadSpec]:
    """The outputs that a checkpoint's tensors make up."""
    width, eps = bert["hidden_size"], bert["layer_norm_eps"]
    if "classifier.weight" not in state:
        transform = MLPSpec((width, width), end=(bert["hidden_act"], "norm"), eps=eps)
        return {"mlm": HeadSpec("tied", transform)}
    n_classes = len(state["classifier.weight"])
    if "bert.pooler.dense.weight" in state:
        mlp = MLPSpec((width, width, n_classes), between=("tanh",))
        return {"cell_classifier": HeadSpec("cells", mlp, readout="first")}
    return {"gene_classifier": HeadSpec("tokens", MLPSpec((width, n_classes)))}


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A checkpoint folder: ``config.json`` with ``model.safetensors`` or ``pytorch_model.bin``."""
    if checkpoint is not None:
        raise CheckpointError(f"a Geneformer folder holds one weight set; checkpoint={checkpoint!r} does not exist")
    bert = read_settings(path / "config.json", SETTINGS, FAMILY.companions)
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
    state = as_state(read_tensors(weights), weights)
    tokenizer = _tokenizer(path, bert["vocab_size"], bert["max_position_embeddings"])
    special_tokens = "cls" in tokenizer.vocabulary.specials
    heads = heads_of(state, bert)
    extra = {"cell_classifier": CELL_HEAD, "gene_classifier": GENE_HEAD}
    classifiers = {name: head.mlp.widths[-1] for name, head in heads.items() if name in extra}
    labels = {name: found for name, n in classifiers.items() if (found := _labels(path, name, n))}
    return assemble(
        Reading(
            config=config(bert, heads, special_tokens=special_tokens),
            state=state,
            keys=(*KEYS, *(key for name in heads for key in extra.get(name, ()))),
            ignored=IGNORED,
            copies=COPIES,
            tokenizer=tokenizer,
            card=_card_of(bert, path),
            source=str(weights),
            labels=labels,
        )
    )


def _tokenizer(path: Path, vocab_size: int, context: int) -> RankValueTokenizer:
    found = []
    for folder in _dictionary_folders(path):
        tokens = next(iter(sorted(folder.glob(DICTIONARIES["tokens"]))), None)
        if tokens is None:
            continue
        dictionary = read_pickle(tokens)
        if len(dictionary) == vocab_size:
            return _from_dictionaries(folder, {str(k): int(v) for k, v in dictionary.items()}, context)
        found.append(f"{tokens} with {len(dictionary):,} tokens")
    if vocab_size in PUBLISHED_SIZES:
        return RankValueTokenizer.published(PUBLISHED_SIZES[vocab_size])
    raise CheckpointError(
        f"{path} is a model of {vocab_size:,} tokens, but no token dictionary of that size is near it "
        f"(found: {'; '.join(found) or 'none'}). Put the authors' folder geneformer/ with its dictionaries beside it; "
        "the V1 and V2 dictionaries are not interchangeable"
    )


def _dictionary_folders(path: Path) -> Iterator[Path]:
    for base in (path, *list(path.absolute().parents)[:3]):
        yield from (base, base / "geneformer", base / "geneformer" / "gene_dictionaries_30m")


def _from_dictionaries(folder: Path, ids: dict[str, int], context: int) -> RankValueTokenizer:
    names = sorted(ids, key=ids.__getitem__)
    if [ids[name] for name in names] != list(range(len(names))):
        raise CheckpointError(f"the token ids in {folder} are not 0 to {len(names) - 1} without a gap")
    medians = {str(k): float(v) for k, v in _one(folder, "medians").items()}
    aliases = {str(k): str(v) for k, v in _one(folder, "aliases").items()}
    symbols = {str(v): str(k) for k, v in _one(folder, "symbols").items()}
    tokenizer = families.geneformer(names, medians, aliases, context)
    shown = tuple(symbols.get(name, name) for name in names)
    return replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, symbols=shown))


def _one(folder: Path, kind: str) -> dict[Any, Any]:
    pattern = DICTIONARIES[kind]
    path = next(iter(sorted(folder.glob(pattern))), folder / pattern)
    data: dict[Any, Any] = read_pickle(path)
    return data


def _labels(path: Path, head: str, n_classes: int) -> list[str] | None:
    """Class names from ``<prefix>_id_class_dict.pkl`` in the folder or the nearest parent that has one that fits."""
    other = "_gene_" if head == "cell_classifier" else "_cell_"
    for base in (path, *list(path.absolute().parents)[:3]):
        files = [file for file in sorted(base.glob("*id_class_dict.pkl")) if other not in file.name]
        fitting = [names for file in files if set(names := read_pickle(file)) == set(range(n_classes))]
        if len(fitting) > 1:
            log.warning("%s: %d class dictionaries fit, so the classes stay without names", base, len(fitting))
            return None
        if fitting:
            return [str(fitting[0][i]) for i in range(n_classes)]
    return None


def _card_of(bert: Mapping[str, Any], path: Path) -> ModelCard:
    size = (bert["num_hidden_layers"], bert["hidden_size"], bert["vocab_size"])
    named = [c for c in CARDS if c.details["size"] == size]
    exact = [c for c in named if c.hub is not None and c.hub[1] == path.name]
    if exact or named:
        return (exact or named)[0]
    return ModelCard(
        name=path.name, family="geneformer", title="a Geneformer-like model", context=bert["max_position_embeddings"]
    )


def _card(name: str, folder: str, size: tuple[int, int, int], parameters: int, **facts: Any) -> ModelCard:
    v1 = size[2] == 25426
    return ModelCard(
        **{
            "name": name,
            "family": "geneformer",
            "parameters": parameters,
            "context": 2048 if v1 else 4096,
            "licence": "Apache-2.0",
            "source": "the authors' model hub repository ctheodoris/Geneformer",
            "hub": ("ctheodoris/Geneformer", folder),
            "verified": "tokens, hidden states, embeddings and heads against the authors' code on a small random "
            "model; parameter count; the released weights themselves were not at hand",
            "data": "Genecorpus-30M (2021)" if v1 else "Genecorpus-104M (2024)",
            "details": {"size": size},
            **facts,
        }
    )


CARDS = (
    _card(
        "geneformer-v1-10m",
        "Geneformer-V1-10M",
        (6, 256, 25426),
        10_288_722,
        title="Geneformer V1, 6 layers",
        files={"config.json": None, "model.safetensors": 41_183_536},
        checksums={"model.safetensors": "a5e33a757431643b3697de7ef6127950cdc49e06e58d4266b3a3ab191b683f14"},
    ),
    _card(
        "geneformer-v1-40m",
        "gf-12L-30M-i2048",
        (12, 512, 25426),
        39_591_250,
        title="Geneformer V1, 12 layers (in the repository's history before June 2025: pass its revision)",
        files={"config.json": None, "pytorch_model.bin": 158_467_410},
        checksums={"pytorch_model.bin": "812f8d85e5ecf9d64c268f052f6ece2c1906bc4f1aecf70d5144b2598386b615"},
    ),
    _card(
        "geneformer-v2-104m",
        "Geneformer-V2-104M",
        (12, 768, 20275),
        104_386_867,
        title="Geneformer V2, 12 layers",
        files={"config.json": None, "model.safetensors": 417_571_156},
        checksums={"model.safetensors": "fff5cba29ddd8792991fa77b4872246fbe548a178cebda3775cdc72b67780e7f"},
    ),
    _card(
        "geneformer-v2-104m-clcancer",
        "Geneformer-V2-104M_CLcancer",
        (12, 768, 20275),
        104_386_867,
        title="Geneformer V2, 12 layers, continued on cancer cells",
        files={"config.json": None, "model.safetensors": 417_571_156},
        checksums={"model.safetensors": "827738139bfed4bafa9d1f3df7c6146da2e3b85f7225076adc32c6eda0ba4357"},
        data="Genecorpus-104M (2024), then about 14 million cancer cells",
    ),
    _card(
        "geneformer-v2-316m",
        "Geneformer-V2-316M",
        (18, 1152, 20275),
        316_354_867,
        title="Geneformer V2, 18 layers",
        files={"config.json": None, "model.safetensors": 1_265_455_076},
        checksums={"model.safetensors": "965ceccea81953d362081ef3843560a0e4fef88d396c28017881f1e94b1246f3"},
    ),
)


FAMILY = Family(
    name="geneformer",
    cards=CARDS,
    recognise=lambda path: is_json_with(path / "config.json", "model_type", "bert"),
    read=read,
    files=("config.json", *WEIGHTS, *DICTIONARIES.values()),
    companions="config.json and model.safetensors (or pytorch_model.bin); the published gene dictionaries come with scfm",
)
