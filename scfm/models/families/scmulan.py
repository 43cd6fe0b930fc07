"""scMulan: a decoder that reads and writes cells as words: genes with levels, organs, cell types, tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble, pick
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, mentions, read_tensors, require
from scfm.models.families._scmulan_words import ALIASES, GENES, HINT, QUESTIONS, WORDS, read_words, tokenizer, writing
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

WEIGHTS = "ckpt_scMulan.pt"
LAYER = r"transformer\.h\.(\d+)\."
WORD_TABLE = "transformer.wte.weight"
LEVEL_TABLE = "transformer.wee.weight"
FEED_FORWARD = "transformer.h.0.mlp.c_fc.weight"

KEYS = (
    Key(r"transformer\.wte\.weight", "terms.gene.table"),
    Key(r"transformer\.wee\.weight", "terms.value.table"),
    Key(LAYER + r"ln_([12])\.(weight|bias)", r"encoder.layers.\1.norm\2.\3"),
    Key(LAYER + r"attn\.c_attn\.(weight|bias)", r"encoder.layers.\1.qkv.\2"),
    Key(LAYER + r"attn\.c_proj\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"mlp\.c_fc\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"mlp\.c_proj\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(r"transformer\.ln_f\.(weight|bias)", r"encoder.final_norms.0.\1"),
    Key(r"lm_head\.weight", "heads.word.mlp.linears.0.weight"),
    Key(r"epx_head\.weight", "heads.level.mlp.linears.0.weight"),
)


def config(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], words: Mapping[str, Any]
) -> CellTransformerConfig:
    """The transformer of a checkpoint: sizes are those of tensors, heads and biases those of its ``model_args``."""
    rows, d = state[WORD_TABLE].shape
    bias = bool(arguments["bias"])
    head = HeadSpec("tokens", MLPSpec((d, rows), last_bias=False))
    names = QUESTIONS["cell_type"][1]
    return make_config(
        encoder=StackSpec(
            n_layers=1 + max(int(found[1]) for name in state if (found := re.match(LAYER, name))),
            width=d,
            n_heads=arguments["n_head"],
            head_dim=d // arguments["n_head"],
            ff=len(state[FEED_FORWARD]),
            norm="pre",
            activation="gelu_tanh",
            qkv_bias=bias,
            bias=bias,
            norm_bias=bias,
            final_norms=1,
            attention="causal",
        ),
        terms={
            "gene": TermSpec("table", rows=rows),
            "value": TermSpec("table", "values", rows=len(state[LEVEL_TABLE])),
        },
        heads={"word": head, "level": head},
        readouts={
            "type": ReadoutSpec((PartSpec("token", -1),), continued=1, among=names),
            "prompt": ReadoutSpec((PartSpec("token", -1),)),
            "mean": ReadoutSpec((PartSpec("mean", skip_last=1),)),
            "official": ReadoutSpec((PartSpec("token", -3),), continued=3),
        },
        readout="type",
        writing=writing(words, highest=len(state[LEVEL_TABLE]) - 1).to_dict(),
    )


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A folder with the authors' checkpoint, their words, and their two tables of genes."""
    weights = _weights(path, checkpoint)
    held = read_tensors(weights)
    if not isinstance(held.get("model"), Mapping) or not isinstance(held.get("model_args"), Mapping):
        raise CheckpointError(
            f"{weights} holds {', '.join(map(str, [*held][:4])) or 'nothing'}, but a checkpoint of scMulan holds model and "
            "model_args"
        )
    state = as_state(held["model"], weights)
    absent = [name for name in (WORD_TABLE, LEVEL_TABLE, FEED_FORWARD) if name not in state]
    if absent:
        raise CheckpointError(f"{weights} has no {absent[0]}; it is not an scMulan model, or a part of one")
    words = read_words(path)
    _check(held["model_args"], state, words, weights)
    configured = config(state, held["model_args"], words)
    return assemble(
        Reading(
            config=configured,
            state=state,
            keys=KEYS,
            ignored={},
            tokenizer=tokenizer(path, words, len(state[LEVEL_TABLE]) - 1),
            card=_card_of(weights, configured),
            source=str(weights),
            labels={"word": list(words["token_set"])},
        )
    )


def _weights(path: Path, checkpoint: str | None) -> Path:
    found = {file.stem: file for file in sorted(path.glob("*.pt")) if file.name != WORDS}
    if not found:
        require(path / WEIGHTS, "the weight file", HINT)
    usual = Path(WEIGHTS).stem
    return found[pick([*found], checkpoint, [usual] if usual in found else [*found], path)]


def _check(arguments: Mapping[str, Any], state: Mapping[str, Tensor], words: Mapping[str, Any], weights: Path) -> None:
    """Settings that no tensor shows, and the words, must be those of the weights."""
    missing = [name for name in ("n_head", "bias") if name not in arguments]
    if missing:
        raise CheckpointError(f"the model_args of {weights} lack {', '.join(missing)}, which the tensors do not tell")
    if arguments.get("ele", 1) != 1:
        raise CheckpointError(
            f"{weights} has ele={arguments['ele']!r}: only models that look levels up (ele=1) are known"
        )
    rows, d = state[WORD_TABLE].shape
    if rows != len(words["token_set"]):
        raise CheckpointError(
            f"{weights} has {rows:,} words, but {WORDS} lists {len(words['token_set']):,}; the two are of different models"
        )
    if d % arguments["n_head"]:
        raise CheckpointError(f"the model_args of {weights} name {arguments['n_head']} heads, which do not divide {d}")


def _card_of(weights: Path, configured: CellTransformerConfig) -> ModelCard:
    stack, rows = configured.stack_spec, configured.term_specs["gene"].rows
    if (stack.n_layers, stack.width, rows) == (24, 1120, 2222):
        return CARD
    longest = configured.writing_spec.longest
    return ModelCard(name=weights.stem, family="scmulan", title="an scMulan-like model", context=longest)


CARD = ModelCard(
    name="scmulan",
    family="scmulan",
    title="scMulan",
    parameters=368_800_320,
    context=1550,
    licence="MIT (the authors' code; nothing separate is said of the weights)",
    source="the link in the README of the authors' repository SuperBianC/scMulan, for the weights; the other files are in "
    "its folders scMulan/utils and scMulan/reference/GeneSymbolUniform",
    files={WEIGHTS: None, WORDS: None, "total_gene_list_42117.txt": None, "GeneSymbolRef_upd0731.csv": None},
    verified="symbols, tokens, hidden states, annotation, embeddings, generated cells and losses against the authors' code "
    "on a small random model; the released weights themselves were not at hand",
    data="about 10 million human cells of seven organs (hECA)",
)

FAMILY = Family(
    name="scmulan",
    cards=(CARD,),
    recognise=lambda path: (
        any((path / name).is_file() for name in (WEIGHTS, WORDS))
        or any(mentions(file, b"epx_head.weight") for file in path.glob("*.pt"))
    ),
    read=read,
    files=(WEIGHTS, WORDS, GENES, ALIASES),
    companions=HINT,
)
