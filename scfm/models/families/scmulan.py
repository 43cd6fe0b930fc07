"""scMulan: a decoder that reads and writes cells as words: genes with levels, organs, cell types, tasks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble, pick
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, kind_of, mentions, read_tensors, require
from scfm.tokenizers import BinnedTokenizer, families
from scfm.transformer import (
    CellTransformerConfig,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    WritingSpec,
    make_config,
)

log = logging.getLogger("scfm")

WEIGHTS = "ckpt_scMulan.pt"
WORDS = "meta_info.pt"
GENES = "total_gene_list*.txt"
ALIASES = "GeneSymbolRef*.csv"

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

END, NAME_CELL, NAME_ORGAN, MAKE_CELL = "<E>", "<PCT>", "<SPToken3>", "<SPToken1>"
KINDS = {
    "organ": "organ",
    "region": "region",
    "cell_type": "cell_type",
    "coarse_type": "MCT",
    "age": "age_bin",
    "sex": "donor_gender",
    "status": "sample_status",
    "technique": "seq_tech",
}
"""Our names of the kinds of words, in the order of the authors' prompts as far as these are known, and the authors'."""
QUESTIONS = {"cell_type": (NAME_CELL, ("coarse_type", "cell_type")), "organ": (NAME_ORGAN, ("organ", "region"))}


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


def writing(words: Mapping[str, Any], highest: int) -> WritingSpec:
    """The kinds of words, and what asks for what."""
    index = {word: i for i, word in enumerate(words["token_set"])}
    return WritingSpec(
        word="word",
        level="level",
        start=index[MAKE_CELL],
        end=index[END],
        highest=highest,
        longest=int(words["data_block_size"]),
        kinds=tuple((ours, tuple(sorted(index[word] for word in words[theirs]))) for ours, theirs in KINDS.items()),
        questions=tuple((name, index[word], kinds) for name, (word, kinds) in QUESTIONS.items()),
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
    words = _words(require(path / WORDS, "the words of the model", FAMILY.companions))
    _check(held["model_args"], state, words, weights)
    configured = config(state, held["model_args"], words)
    return assemble(
        Reading(
            config=configured,
            state=state,
            keys=KEYS,
            ignored={},
            tokenizer=_tokenizer(path, words, len(state[LEVEL_TABLE]) - 1),
            card=_card_of(weights, configured),
            source=str(weights),
            labels={"word": list(words["token_set"])},
        )
    )


def _weights(path: Path, checkpoint: str | None) -> Path:
    found = {file.stem: file for file in sorted(path.glob("*.pt")) if file.name != WORDS}
    if not found:
        require(path / WEIGHTS, "the weight file", FAMILY.companions)
    usual = Path(WEIGHTS).stem
    return found[pick([*found], checkpoint, [usual] if usual in found else [*found], path)]


def _words(path: Path) -> dict[str, Any]:
    words = read_tensors(path)
    missing = [name for name in ("token_set", "gene_set", "data_block_size", *KINDS.values()) if name not in words]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is not the meta_info of scMulan")
    known = set(words["token_set"])
    wanted = [END, NAME_CELL, NAME_ORGAN, MAKE_CELL, *words["gene_set"], *(w for k in KINDS.values() for w in words[k])]
    unknown = [word for word in wanted if word not in known]
    if unknown or len(known) != len(words["token_set"]):
        raise CheckpointError(
            f"{path}: token_set has {len(words['token_set']) - len(known)} words twice and lacks {len(unknown)} words "
            f"({', '.join(map(str, unknown[:3]))}); the file is damaged or of another release: get it again"
        )
    return words


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


def _tokenizer(path: Path, words: Mapping[str, Any], n_levels: int) -> BinnedTokenizer:
    listed = _table(_one(path, GENES, "the list of all genes"), "\t", ["Approved symbol"])["Approved symbol"]
    genes = [symbol.replace("_", "-") for symbol in listed]
    absent = sorted(set(words["gene_set"]) - set(genes))
    if absent:
        raise CheckpointError(
            f"the list of all genes in {path} lacks {len(absent)} genes of the model ({', '.join(absent[:3])}); it is of "
            "another release"
        )
    return families.scmulan(words["token_set"], words["gene_set"], genes, _aliases(path), n_levels)


def _aliases(path: Path) -> dict[str, str]:
    """The one approved symbol of each alias or previous symbol that has one, as the authors unify symbols."""
    file = next(iter(sorted(path.glob(ALIASES))), None)
    if file is None:
        log.warning("%s has no %s: with gene_matching='published' no aliases are known", path, ALIASES)
        return {}
    columns = ["Alias symbol", "Previous symbol"]
    table = _table(file, ",", ["Approved symbol", "Status", *columns])
    approved = table[table["Status"] == "Approved"]
    targets: dict[str, set[str]] = {}
    for column in columns:
        for name, symbol in zip(approved[column], approved["Approved symbol"], strict=True):
            if name:
                targets.setdefault(name.replace("_", "-"), set()).add(symbol.replace("_", "-"))
    return {name: next(iter(found)) for name, found in targets.items() if len(found) == 1}


def _one(path: Path, pattern: str, what: str) -> Path:
    found = sorted(path.glob(pattern))
    return found[0] if found else require(path / pattern, what, FAMILY.companions)


def _table(path: Path, separator: str, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is {kind_of(path)}, not a table ({error}); get it again") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise CheckpointError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns[:6]))}")
    return table


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
    companions=f"an scMulan folder holds {WEIGHTS} and, from the authors' repository, {WORDS} (scMulan/utils), "
    "total_gene_list_42117.txt and GeneSymbolRef_upd0731.csv (scMulan/reference/GeneSymbolUniform)",
)
