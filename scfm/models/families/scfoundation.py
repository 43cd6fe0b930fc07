"""scFoundation: a transformer on the expressed genes with their values, and a Performer on all genes behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble, pick
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, read_tensors, require
from scfm.models.families._scfoundation_genes import GENES, N_GENES, gene_list
from scfm.tokenizers import families
from scfm.transformer import (
    CellTransformerConfig,
    DecoderSpec,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
)

WEIGHTS = "models.ckpt"
PURPOSES = {
    "cell": "cell embeddings",
    "rde": "read-depth enhancement, and cell embeddings at another depth",
    "gene": "embeddings of genes in their cell",
}
"""The weight sets of the one file."""
GENE_SET = "gene"
N_DEPTHS = 2
"""T and S: the last two rows that the decoder reads."""
DROPOUT = 0.1
OPTIONS = ("target_depth", "target_fold", "target_log_add")
BUILT = {"encoder": "transformer", "decoder": "performer"}

GENE_TABLE = "model.pos_emb.weight"
VALUES = "model.token_emb.emb.weight"
ENTER = "model.decoder_embed.weight"
ENCODER = r"model\.encoder\.transformer_encoder\.(\d+)\."
DECODER = r"model\.decoder\.performer\.net\.layers\.(\d+)\."
FIRST = "model.encoder.transformer_encoder.0."
FIRST_DECODER = "model.decoder.performer.net.layers.0."
UP = FIRST + "linear1.weight"
DECODER_UP = FIRST_DECODER + "1.fn.fn.w1.weight"
DECODER_QUERY = FIRST_DECODER + "0.fn.to_q.weight"
PROJECTION = FIRST_DECODER + "0.fn.fast_attention.projection_matrix"
NEEDED = (GENE_TABLE, VALUES, ENTER, UP, DECODER_UP, DECODER_QUERY, PROJECTION)

KEYS = (
    Key(r"model\.pos_emb\.weight", "terms.gene.table"),
    Key(r"model\.token_emb\.mlp\.(weight|bias)", r"terms.value.bins.first.\1"),
    Key(r"model\.token_emb\.mlp2\.(weight|bias)", r"terms.value.bins.second.\1"),
    Key(r"model\.token_emb\.emb\.weight", "terms.value.bins.table.weight"),
    Key(r"model\.token_emb\.emb_mask\.weight", "terms.value.bins.mask.weight"),
    Key(ENCODER + r"self_attn\.in_proj_(weight|bias)", r"encoder.layers.\1.qkv.\2"),
    Key(ENCODER + r"self_attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(ENCODER + r"linear1\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(ENCODER + r"linear2\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(ENCODER + r"(norm1|norm2)\.(weight|bias)", r"encoder.layers.\1.\2.\3"),
    Key(r"model\.encoder\.norm\.(weight|bias)", r"encoder.final_norms.0.\1"),
    Key(r"model\.decoder_embed\.(weight|bias)", r"decoder.enter.\1"),
    Key(DECODER + r"0\.norm\.(weight|bias)", r"decoder.layers.\1.norm1.\2"),
    *(
        Key(DECODER + rf"0\.fn\.to_{x}\.(weight|bias)", r"decoder.layers.\1.qkv.\2", (i, 3))
        for i, x in enumerate("qkv")
    ),
    Key(DECODER + r"0\.fn\.to_out\.(weight|bias)", r"decoder.layers.\1.out.\2"),
    Key(DECODER + r"0\.fn\.fast_attention\.projection_matrix", r"decoder.layers.\1.projection"),
    Key(DECODER + r"1\.norm\.(weight|bias)", r"decoder.layers.\1.norm2.\2"),
    Key(DECODER + r"1\.fn\.fn\.w1\.(weight|bias)", r"decoder.layers.\1.up.\2"),
    Key(DECODER + r"1\.fn\.fn\.w2\.(weight|bias)", r"decoder.layers.\1.down.\2"),
    Key(r"model\.decoder\.norm\.(weight|bias)", r"decoder.final_norms.0.\1"),
    Key(r"model\.norm\.(weight|bias)", r"decoder.final_norms.1.\1"),
    Key(r"model\.to_final\.(weight|bias)", r"heads.expression.mlp.linears.0.\1"),
)
IGNORED = {
    r"model\.token_emb\.emb_pad\.weight": "the value of padding, of which there is none",
    r"model\.decoder\.performer\.calls_since_last_redraw": "a counter of training steps; the features stay as stored",
}


def config(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], *, contextual: bool = False
) -> CellTransformerConfig:
    """The transformer of a checkpoint.

    Parameters
    ----------
    state
        Its tensors, from which all sizes are taken.
    settings
        ``heads`` of the encoder and ``bin_alpha``, which no tensor tells.
    contextual
        The decoder's states are what the model says of genes.
    """
    positions, width = state[GENE_TABLE].shape
    inner, n_heads = len(state[ENTER]), int(settings["encoder"]["heads"])
    n_features, head_dim = state[PROJECTION].shape
    decoder = StackSpec(
        n_layers=_depth(state, DECODER),
        width=inner,
        n_heads=len(state[DECODER_QUERY]) // head_dim,
        head_dim=head_dim,
        ff=len(state[DECODER_UP]),
        norm="pre",
        activation="gelu",
        final_norms=2,
        attention="performer",
        n_features=n_features,
    )
    depths = (PartSpec("token", -1), PartSpec("token", -2))
    genes = (PartSpec("max", skip_last=N_DEPTHS), PartSpec("mean", skip_last=N_DEPTHS))
    return make_config(
        encoder=StackSpec(
            n_layers=_depth(state, ENCODER),
            width=width,
            n_heads=n_heads,
            head_dim=width // n_heads,
            ff=len(state[UP]),
            final_norms=1,
            dropout=DROPOUT,
            attention_dropout=DROPOUT,
            ff_dropout=DROPOUT,
        ),
        terms={
            "gene": TermSpec("table", rows=positions),
            "value": TermSpec("bins", "values", rows=len(state[VALUES]), alpha=float(settings.get("bin_alpha", 1.0))),
        },
        # the last position is padding's
        decoder=DecoderSpec(decoder, rows=positions - 1, contextual=contextual),
        heads={"expression": HeadSpec("genes", MLPSpec((inner, 1)))},
        readouts={"all": ReadoutSpec((*depths, *genes)), "max": ReadoutSpec((PartSpec("max"),))},
        readout="all",
    )


def _depth(state: Mapping[str, Tensor], layer: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(layer, name)))


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A folder with ``models.ckpt`` and the gene list: ``checkpoint`` is ``cell`` (default), ``rde`` or ``gene``."""
    file = next((f for f in _places(path) if f.is_file()), path / WEIGHTS)
    held = read_tensors(require(file, "the weight file", FAMILY.companions), lazy=True)
    sets = {str(name): part for name, part in held.items() if isinstance(part, Mapping) and "state_dict" in part}
    if not sets:
        raise CheckpointError(
            f"{file} holds {', '.join(map(str, held)) or 'nothing'}, but a dictionary of the weight sets "
            f"{', '.join(PURPOSES)} was expected; it is not the authors' file"
        )
    name = pick([*sets], checkpoint, [n for n in PURPOSES if n in sets][:1] or [*sets], path)
    # the other weight sets stay in the file
    state = {key: tensor.clone() for key, tensor in as_state(sets[name]["state_dict"], file).items()}
    absent = [key for key in NEEDED if key not in state]
    if absent:
        raise CheckpointError(f"{file} lacks {absent[0]} in {name!r}; it is not an scFoundation model, or truncated")
    made = config(state, _settings(sets[name].get("config"), f"{file}, {name!r}"), contextual=name == GENE_SET)
    genes = gene_list(path, len(state[GENE_TABLE]) - N_DEPTHS - 1, FAMILY.companions)
    return assemble(
        Reading(
            config=made,
            state=state,
            keys=KEYS,
            ignored=IGNORED,
            tokenizer=families.scfoundation(genes),
            card=_card_of(name, path, made, genes),
            source=str(file),
        )
    )


def _places(path: Path) -> tuple[Path, ...]:
    return path / WEIGHTS, path / "models" / WEIGHTS


def _settings(stored: Any, source: str) -> dict[str, Any]:
    """The part of the stored configuration that counts, checked for what is built in here."""
    try:
        own = stored["model_config"][stored["model"]]
        settings = {**own, **stored.get("dataset_config", {}).get("rnaseq", {})}
        found = {stack: settings[stack]["module_type"] for stack in BUILT}
        int(settings["encoder"]["heads"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} has no configuration with encoder and decoder ({error!r} is missing or of another kind); it is not "
            "the authors' file"
        ) from None
    if found != BUILT:
        raise CheckpointError(
            f"{source} has an encoder of kind {found['encoder']!r} and a decoder of kind {found['decoder']!r}; only "
            f"{BUILT['encoder']!r} with {BUILT['decoder']!r} can be read, as in all that was published"
        )
    return settings


def _card_of(name: str, path: Path, made: CellTransformerConfig, genes: Sequence[str]) -> ModelCard:
    stack = made.stack_spec
    known = next((card for card in CARDS if card.checkpoint == name), None)
    if known is not None and (stack.n_layers, stack.width, len(genes)) == (12, 768, N_GENES):
        return known
    title = f"an scFoundation-like model for {PURPOSES.get(name, name)}"
    return ModelCard(f"{path.name}-{name}", "scfoundation", title, options=OPTIONS, checkpoint=name)


def _card(purpose: str, description: str) -> ModelCard:
    return ModelCard(
        name=f"scfoundation-{purpose}",
        family="scfoundation",
        title=f"scFoundation for {description}",
        parameters=119_252_285,
        context=N_GENES + N_DEPTHS,
        licence="the scFoundation License: non-commercial research only, not to be passed on",
        binding="the weights are for non-commercial research only and must not be passed on, also converted or "
        "fine-tuned (the scFoundation License of BioMap)",
        source="the SharePoint folder that model/README.md of the authors' repository biomap-research/scFoundation links "
        f"({WEIGHTS}), and that repository itself ({GENES})",
        files={WEIGHTS: None, GENES: None},
        options=OPTIONS,
        verified="tokens, hidden states, cell and gene embeddings and predicted expression against the authors' code on a "
        "small random model; parameter count; the released weights themselves were not at hand",
        data="more than 50 million human cells",
        folder="scfoundation",
        checkpoint=purpose,
    )


CARDS = tuple(_card(purpose, description) for purpose, description in PURPOSES.items())

FAMILY = Family(
    name="scfoundation",
    cards=CARDS,
    recognise=lambda path: any(file.is_file() for file in _places(path)),
    read=read,
    files=(WEIGHTS, f"models/{WEIGHTS}", GENES),
    companions=f"an scFoundation folder holds {WEIGHTS} (also as models/{WEIGHTS}) and {GENES}, the order of the genes, "
    "which the authors publish in their repository biomap-research/scFoundation",
)
