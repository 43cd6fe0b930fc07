"""scGPT: a transformer on genes with binned expression, read at its <cls> token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, read_json, read_settings, read_tensors
from scfm.tokenizers import BinnedTokenizer, ContextOption, families
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

VALUE_CLIP = 512.0
DOMAIN_EPS = 6.1e-5
PUBLISHED_SIZE = 60_697

# genes to be generated see the perceived ones and themselves, and their context skips the output map;
# row 1 of the flag table marks them, row 0 is not used
GENERATED = QueryOnlySpec(sees_itself=True, projected=False, channels={"flag": 1})

LAYER = r"transformer_encoder\.layers\.(\d+)\."
QKV = r"self_attn\.(?:_impl\.)?(?:Wqkv\.|in_proj_)(weight|bias)"
GENE_TABLE = "encoder.embedding.weight"
BATCH_TABLE = "batch_encoder.embedding.weight"
FEED_FORWARD = "transformer_encoder.layers.0.linear1.weight"
FC = {"0": 0, "2": 1, "4": 2}


def _expression_head(source: str, ours: str) -> list[Key]:
    return [
        Key(rf"decoder\.{source}\.{theirs}\.(weight|bias)", rf"heads.{ours}.mlp.linears.{i}.\1")
        for theirs, i in FC.items()
    ]


def _classifier(source: str, ours: str, depth: int) -> list[Key]:
    keys = [Key(rf"{source}\.out_layer\.(weight|bias)", rf"heads.{ours}.mlp.linears.{depth}.\1")]
    for j in range(depth):
        keys.append(Key(rf"{source}\._decoder\.{3 * j}\.(weight|bias)", rf"heads.{ours}.mlp.linears.{j}.\1"))
        keys.append(Key(rf"{source}\._decoder\.{3 * j + 2}\.(weight|bias)", rf"heads.{ours}.mlp.norms.{j}.\1"))
    return keys


KEYS = (
    Key(r"encoder\.embedding\.weight", "terms.gene.table"),
    Key(r"encoder\.enc_norm\.(weight|bias)", r"terms.gene.norm.\1"),
    Key(r"value_encoder\.linear1\.(weight|bias)", r"terms.value.mlp.linears.0.\1"),
    Key(r"value_encoder\.linear2\.(weight|bias)", r"terms.value.mlp.linears.1.\1"),
    Key(r"value_encoder\.norm\.(weight|bias)", r"terms.value.mlp.norms.0.\1"),
    Key(r"flag_encoder\.weight", "terms.flag.table"),
    Key(r"pert_encoder\.weight", "terms.flag.table"),
    Key(r"batch_encoder\.embedding\.weight", "terms.batch.table"),
    Key(r"batch_encoder\.enc_norm\.(weight|bias)", r"terms.batch.norm.\1"),
    Key(LAYER + QKV, r"encoder.layers.\1.qkv.\2"),
    Key(LAYER + r"self_attn\.(?:_impl\.)?out_proj\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"linear1\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"linear2\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(LAYER + r"(norm1|norm2)\.(weight|bias)", r"encoder.layers.\1.\2.\3"),
    *_expression_head("fc", "expression"),
    *_expression_head("zero_logit", "nonzero"),
    *_expression_head(r"coeff_decoder\.fc", "coefficient"),
    *_expression_head(r"bias_decoder\.fc", "offset"),
    Key(r"mvc_decoder\.gene2query\.(weight|bias)", r"heads.mvc.mlp.linears.0.\1"),
    Key(r"mvc_decoder\.W\.weight", "heads.mvc.forms.value.weight"),
    Key(r"mvc_decoder\.W_zero_logit\.(weight|bias)", r"heads.mvc.forms.nonzero.\1"),
)
IGNORED = {r"dsbn\.bns\.\d+\.num_batches_tracked": "a counter of training steps"}


def config(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> CellTransformerConfig:
    """The transformer of a checkpoint: sizes from its tensors, head number and dropout from ``args.json``.

    Which heads and terms there are is told by the keys.
    """
    rows, d = state[GENE_TABLE].shape
    p = float(args.get("dropout", 0.0))
    terms = {
        "gene": TermSpec("table", rows=rows, norm=True),
        "value": TermSpec(
            "scalar",
            "values",
            mlp=MLPSpec((1, d, d), between=("relu",), end=("norm", "dropout"), dropout=p),
            clip=VALUE_CLIP,
            optional=True,
        ),
    }
    flag = state.get("flag_encoder.weight", state.get("pert_encoder.weight"))
    if flag is not None:
        terms["flag"] = TermSpec("table", "flag", rows=len(flag), optional=True)
    context: tuple[str, ...] = ()
    if BATCH_TABLE in state:
        context = ("batch",)
        terms["batch"] = TermSpec("table", "batch", rows=len(state[BATCH_TABLE]), norm=True)
    return make_config(
        encoder=StackSpec(
            n_layers=_n_layers(state),
            width=d,
            n_heads=args["nheads"],
            head_dim=d // args["nheads"],
            ff=len(state[FEED_FORWARD]),
            dropout=p,
            attention_dropout=p,
            ff_dropout=p,
        ),
        terms=terms,
        head_terms=list(context),
        heads=_heads(state, d, context),
        readouts={
            "cls": ReadoutSpec((PartSpec("token", 0),), unit=True),
            "cls_raw": ReadoutSpec((PartSpec("token", 0),)),
            "mean": ReadoutSpec((PartSpec("mean", skip_first=1),)),
        },
        readout="cls",
        domains=_n_domains(state),
        domain_eps=DOMAIN_EPS,
        domain_channel="batch",
        query_only=GENERATED.to_dict() if "flag_encoder.weight" in state else None,
    )


def _n_layers(state: Mapping[str, Tensor]) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(LAYER, name)))


def _heads(state: Mapping[str, Tensor], d: int, context: tuple[str, ...]) -> dict[str, HeadSpec]:
    joined = d * (1 + len(context))
    heads: dict[str, HeadSpec] = {}
    for source, ours, transform in (
        ("fc", "expression", "none"),
        ("zero_logit", "nonzero", "sigmoid"),
        ("coeff_decoder.fc", "coefficient", "none"),
        ("bias_decoder.fc", "offset", "none"),
    ):
        if f"decoder.{source}.0.weight" in state:
            mlp = MLPSpec((joined, d, d, 1), between=("leaky_relu",))
            heads[ours] = HeadSpec("tokens", mlp, context=context, transform=transform)  # type: ignore[arg-type]
    for source, ours, activation in _CLASSIFIERS:
        if f"{source}.out_layer.weight" in state:
            widths = (d,) * (1 + _depth(state, source)) + (len(state[f"{source}.out_layer.weight"]),)
            heads[ours] = HeadSpec("cells", MLPSpec(widths, between=(activation, "norm")), readout="cls_raw")
    if "mvc_decoder.W.weight" in state:
        forms: tuple[tuple[str, bool], ...] = (("value", False),)
        if "mvc_decoder.W_zero_logit.weight" in state:
            forms += (("nonzero", True),)
        mlp = MLPSpec((d, d), end=("sigmoid",))
        heads["mvc"] = HeadSpec("pairs", mlp, "cls_raw", forms, cell_width=joined, context=context)
    return heads


_CLASSIFIERS = (
    ("cls_decoder", "cell_classifier", "relu"),
    ("grad_reverse_discriminator", "batch_discriminator", "leaky_relu"),
)


def _depth(state: Mapping[str, Tensor], source: str) -> int:
    return sum(k.startswith(f"{source}._decoder.") and k.endswith(".weight") for k in state) // 2


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A checkpoint folder: ``args.json``, ``vocab.json``, ``best_model.pt``."""
    if checkpoint is not None:
        raise CheckpointError(f"an scGPT folder holds one weight set; checkpoint={checkpoint!r} does not exist")
    args = read_settings(path / "args.json", ("nheads",), FAMILY.companions)
    weights = path / "best_model.pt"
    state = as_state(read_tensors(weights), weights)
    absent = [name for name in (GENE_TABLE, FEED_FORWARD) if name not in state]
    if absent:
        raise CheckpointError(f"{weights} has no {absent[0]}; it is not an scGPT model")
    sizes = {"embsize": state[GENE_TABLE].shape[1], "d_hid": len(state[FEED_FORWARD]), "nlayers": _n_layers(state)}
    for name, size in sizes.items():
        if args.get(name, size) != size:
            raise CheckpointError(
                f"{path / 'args.json'} says {name} = {args[name]}, but best_model.pt has {size}; the two files are of "
                "different models"
            )
    tokenizer = _tokenizer(path, args, state)
    keys = [*KEYS, *_domain_keys(state)]
    for source, ours, _activation in _CLASSIFIERS:
        keys += _classifier(source, ours, _depth(state, source))
    return assemble(
        Reading(
            config=config(args, state),
            state=_stack_domains(state),
            keys=keys,
            ignored=IGNORED,
            tokenizer=tokenizer,
            card=_card_of(path, len(tokenizer.vocabulary)),
            source=str(weights),
        )
    )


def _domain_keys(state: Mapping[str, Tensor]) -> list[Key]:
    n = _n_domains(state)
    return [Key(rf"dsbn\.bns\.{b}\.running_(mean|var)", r"domain_\1", part=(b, n)) for b in range(n)]


def _stack_domains(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v[None] if k.startswith("dsbn.") and "running" in k else v for k, v in state.items()}


def _tokenizer(path: Path, args: Mapping[str, Any], state: Mapping[str, Tensor]) -> BinnedTokenizer:
    rows = len(state[GENE_TABLE])
    ids: dict[str, int] = read_json(path / "vocab.json", "the vocabulary", FAMILY.companions)
    names = sorted(ids, key=ids.__getitem__)
    if [ids[n] for n in names] != [*range(len(names))]:
        raise CheckpointError(f"{path / 'vocab.json'}: the ids are not 0 to {len(names) - 1} without a gap")
    # the authors give <cls> the value of padding
    cls_value = float(args.get("pad_value", -2))
    max_length, n_bins = args.get("max_seq_len", 1200), args.get("n_bins", 51)
    tokenizer = families.scgpt(ids, max_length=max_length, n_bins=n_bins, cls_value=cls_value)
    if len(tokenizer.vocabulary) != rows:
        raise CheckpointError(
            f"{path / 'vocab.json'} lists {len(tokenizer.vocabulary):,} tokens, but the gene table of best_model.pt has "
            f"{rows:,} rows; the two files are of different releases"
        )
    return replace(tokenizer, context=_batches(state))


def _batches(state: Mapping[str, Tensor]) -> dict[str, ContextOption]:
    """The sequencing batch of each cell, by number: its name is not in the files."""
    n_domains = _n_domains(state)
    n = len(state.get(BATCH_TABLE, ())) or n_domains
    return {"batch": ContextOption({str(i): i for i in range(n)}, optional=not n_domains)} if n else {}


def _n_domains(state: Mapping[str, Tensor]) -> int:
    return sum(name.startswith("dsbn.") and name.endswith(".running_mean") for name in state)


def _card_of(path: Path, n_tokens: int) -> ModelCard:
    known = next((c for c in CARDS if path.name in c.details["folders"]), None)
    if known is not None and n_tokens == PUBLISHED_SIZE:
        return known
    return ModelCard(name=path.name, family="scgpt", title="an scGPT-like model")


def _card(name: str, folders: tuple[str, ...], drive: str, data: str) -> ModelCard:
    return ModelCard(
        name=name,
        family="scgpt",
        title=f"scGPT, {data}",
        parameters=51_330_049,
        context=1200,
        licence="MIT (the repository's; none is stated for the weights)",
        source=f"the authors' Google Drive folder {drive}, linked from their repository bowang-lab/scGPT",
        files={"args.json": None, "vocab.json": None, "best_model.pt": None},
        verified="tokens, hidden states, embeddings, heads and the generative pass against the authors' code on a small "
        "random model; parameter count; the released weights themselves were not at hand",
        data=data,
        details={"folders": folders},
    )


CARDS = (
    _card("scgpt-human", ("scGPT_human", "whole-human"), "1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y", "33 million human cells"),
    _card("scgpt-cp", ("scGPT_CP",), "1_GROJTzXiAV8HB4imruOTk6PEGuNOcgB", "whole-human, continued with cell types"),
    _card("scgpt-brain", ("scGPT_brain", "brain"), "1vf1ijfQSk7rGdDGpBntR5bi5g6gNt-Gx", "13.2 million brain cells"),
    _card("scgpt-blood", ("scGPT_blood", "blood"), "1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU", "10.3 million blood cells"),
    _card("scgpt-heart", ("scGPT_heart", "heart"), "1GcgXrd7apn6y4Ze_iSCncskX3UsWPY2r", "1.8 million heart cells"),
    _card("scgpt-lung", ("scGPT_lung", "lung"), "16A1DJ30PT6bodt4bWLa4hpS7gbWZQFBG", "2.1 million lung cells"),
    _card("scgpt-kidney", ("scGPT_kidney", "kidney"), "1S-1AR65DF120kNFpEbWCvRHPhpkGK3kK", "814,000 kidney cells"),
    _card(
        "scgpt-pancancer",
        ("scGPT_pancancer", "pan-cancer"),
        "13QzLHilYUd0v3HTwa_9n4G4yEF-hdkqa",
        "5.7 million cancer cells",
    ),
)

FAMILY = Family(
    name="scgpt",
    cards=CARDS,
    recognise=lambda path: (path / "args.json").is_file() and (path / "best_model.pt").is_file(),
    read=read,
    files=("args.json", "vocab.json", "best_model.pt"),
    companions="An scGPT folder holds args.json, vocab.json and best_model.pt of one release.",
)
