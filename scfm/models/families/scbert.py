"""scBERT: a Performer on every gene of a fixed list with its expression level, placed by Gene2vec."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from anndata.io import read_elem
from torch import Tensor

from scfm.errors import CheckpointError
from scfm.models._card import ModelCard
from scfm.models._family import Family, Reading, assemble
from scfm.models._keys import Key
from scfm.models._model import FoundationModel
from scfm.models._reading import as_state, kind_of, read_array, read_pickle, read_tensors, require
from scfm.tokenizers import BinnedTokenizer, families
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

PRETRAINED = ("panglao_pretrain", "panglao_pretrained")
GENES = ("panglao_10000.h5ad", "panglao_human.h5ad")
GENE2VEC = "gene2vec_16906.npy"
LABELS = "label_dict"

LAYER = r"performer\.net\.layers\.(\d+)\."
VALUE_TABLE = "token_emb.weight"
GENE_TABLE = "pos_emb.emb.weight"
PROJECTION = "performer.net.layers.0.0.fn.fast_attention.projection_matrix"
QUERY = "performer.net.layers.0.0.fn.to_q.weight"
FEED_FORWARD = "performer.net.layers.0.1.fn.fn.w1.weight"

KEYS = (
    Key(r"token_emb\.weight", "terms.value.table"),
    Key(r"pos_emb\.emb\.weight", "terms.gene.table"),
    Key(LAYER + r"0\.norm\.(weight|bias)", r"encoder.layers.\1.norm1.\2"),
    *(Key(LAYER + rf"0\.fn\.to_{x}\.weight", r"encoder.layers.\1.qkv.weight", (i, 3)) for i, x in enumerate("qkv")),
    Key(LAYER + r"0\.fn\.to_out\.(weight|bias)", r"encoder.layers.\1.out.\2"),
    Key(LAYER + r"0\.fn\.fast_attention\.projection_matrix", r"encoder.layers.\1.projection"),
    Key(LAYER + r"1\.norm\.(weight|bias)", r"encoder.layers.\1.norm2.\2"),
    Key(LAYER + r"1\.fn\.fn\.w1\.(weight|bias)", r"encoder.layers.\1.up.\2"),
    Key(LAYER + r"1\.fn\.fn\.w2\.(weight|bias)", r"encoder.layers.\1.down.\2"),
    Key(r"norm\.(weight|bias)", r"encoder.final_norms.0.\1"),
    Key(r"to_out\.(weight|bias)", r"heads.level.mlp.linears.0.\1"),
    Key(r"to_out\.conv1\.(weight|bias)", r"heads.cell_classifier.token_mlp.linears.0.\1"),
    *(Key(rf"to_out\.fc{i + 1}\.(weight|bias)", rf"heads.cell_classifier.mlp.linears.{i}.\1") for i in range(3)),
)
IGNORED = {r"performer\.calls_since_last_redraw": "a counter of training steps; the random features stay as stored"}


def config(state: Mapping[str, Tensor]) -> CellTransformerConfig:
    """The transformer of a checkpoint: every size is that of a tensor."""
    rows, d = state[GENE_TABLE].shape
    n_features, head_dim = state[PROJECTION].shape
    return make_config(
        encoder=StackSpec(
            n_layers=1 + max(int(found[1]) for name in state if (found := re.match(LAYER, name))),
            width=d,
            n_heads=len(state[QUERY]) // head_dim,
            head_dim=head_dim,
            ff=len(state[FEED_FORWARD]),
            norm="pre",
            activation="gelu",
            qkv_bias=False,
            final_norms=1,
            attention="performer",
            n_features=n_features,
        ),
        terms={
            "gene": TermSpec("table", rows=rows, frozen=True),
            "value": TermSpec("table", "values", rows=len(state[VALUE_TABLE])),
        },
        heads=_heads(state, rows, d),
        readouts={
            "mean": ReadoutSpec((PartSpec("mean"),)),
            "mean_genes": ReadoutSpec((PartSpec("mean", skip_last=1),)),
            "max": ReadoutSpec((PartSpec("max"),)),
            "last": ReadoutSpec((PartSpec("token", -1),)),
        },
        readout="mean",
    )


def _heads(state: Mapping[str, Tensor], rows: int, d: int) -> dict[str, HeadSpec]:
    if "to_out.conv1.weight" not in state:
        return {"level": HeadSpec("tokens", MLPSpec((d, len(state[VALUE_TABLE]))))}
    inner = [len(state[name]) for i in (1, 2, 3) if (name := f"to_out.fc{i}.weight") in state]
    mlp = MLPSpec((rows, *inner), between=("relu",))
    return {"cell_classifier": HeadSpec("positions", mlp, token_mlp=MLPSpec((d, 1), end=("relu",)))}


def read(path: Path, checkpoint: str | None = None) -> FoundationModel:
    """A folder with the ``.pth`` files of one gene list: ``checkpoint`` is the name of one, without its ending."""
    weights = _weights(path, checkpoint)
    held = read_tensors(weights)
    state = as_state(held.get("model_state_dict", held), weights)
    absent = [name for name in (VALUE_TABLE, GENE_TABLE, PROJECTION, QUERY, FEED_FORWARD) if name not in state]
    if absent:
        raise CheckpointError(f"{weights} has no {absent[0]}; it is not an scBERT model with Gene2vec positions")
    _check_gene2vec(path / GENE2VEC, state[GENE_TABLE])
    configured = config(state)
    return assemble(
        Reading(
            config=configured,
            state=state,
            keys=KEYS,
            ignored=IGNORED,
            tokenizer=_tokenizer(path, state),
            card=_card_of(weights, configured),
            source=str(weights),
            labels=_labels(path, configured.head_specs),
        )
    )


def _weights(path: Path, checkpoint: str | None) -> Path:
    found = {file.stem: file for file in sorted(path.glob("*.pth"))}
    if checkpoint is not None and checkpoint not in found:
        raise CheckpointError(
            f"checkpoint={checkpoint!r} does not exist; {path} holds {', '.join(found) or 'no .pth file'}"
        )
    chosen = checkpoint or next((name for name in PRETRAINED if name in found), None)
    if chosen is None and len(found) > 1:
        raise CheckpointError(f"{path} holds {', '.join(found)}; pass checkpoint= with one of these names")
    if chosen is None:
        return next(iter(found.values()), None) or require(path / CARD_WEIGHTS, "the weight file", FAMILY.companions)
    return found[chosen]


def _check_gene2vec(path: Path, table: Tensor) -> None:
    """The published vectors are all but the last row of the checkpoint's own table, so they are only compared."""
    if not path.is_file():
        return
    vectors = read_array(path)
    # checkpoints of half precision differ in the third digit
    if vectors.shape != table[:-1].shape or not np.allclose(vectors, table[:-1], rtol=1e-2, atol=1e-4):
        raise CheckpointError(
            f"{path} is not the position table of the checkpoint beside it; the two are of different models. The "
            "checkpoint holds its own table: remove the file, or get the one that belongs to it"
        )


def _tokenizer(path: Path, state: Mapping[str, Tensor]) -> BinnedTokenizer:
    rows = len(state[GENE_TABLE])
    file = next((path / name for name in GENES if (path / name).is_file()), path / GENES[0])
    genes = _gene_order(require(file, "the order of the genes", FAMILY.companions))
    twice = len(genes) - len(set(genes))
    if twice or len(genes) != rows - 1:
        raise CheckpointError(
            f"{file} lists {len(genes):,} genes ({twice:,} of them repeated), but the checkpoint has positions for "
            f"{rows - 1:,} different ones; the gene list and the weights are of different models"
        )
    warn_of_order(file, genes)
    # the last two rows of the value table: the highest level, and the mask
    return families.scbert(genes, cap=len(state[VALUE_TABLE]) - 2)


def warn_of_order(file: Path, genes: Sequence[str]) -> None:
    """Say so if a list of the published length is not the published one; the weights cannot tell."""
    digest = hashlib.sha256("\n".join(genes).encode()).hexdigest()
    if len(genes) == N_GENES and digest != GENE_ORDER:
        log.warning(
            "%s: the order of its genes (SHA-256 %s...) is not the one reported of the published model (%s...); if the file "
            "is not the authors', every gene may be taken for another",
            file,
            digest[:12],
            GENE_ORDER[:12],
        )


def _gene_order(path: Path) -> list[str]:
    try:
        with h5py.File(path, "r") as file:
            return [str(name) for name in read_elem(file["var"]).index]
    except (AttributeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} is {kind_of(path)} from which no gene names can be read ({error}); it may be truncated: get it again"
        ) from error


def _labels(path: Path, heads: Mapping[str, HeadSpec]) -> dict[str, list[str]]:
    """Class names from the pickle that the authors' fine-tuning leaves, if it is there."""
    if "cell_classifier" not in heads or not (path / LABELS).is_file():
        return {}
    names = [str(name) for name in read_pickle(path / LABELS)]
    n_classes = heads["cell_classifier"].mlp.widths[-1]
    if len(names) != n_classes:
        raise CheckpointError(
            f"{path / LABELS} names {len(names)} classes, but the classifier has {n_classes}. The authors' fine-tuning "
            "overwrites this file on every run: get the one of the run that made the weights, or remove it"
        )
    return {"cell_classifier": names}


def _card_of(weights: Path, configured: CellTransformerConfig) -> ModelCard:
    stack, rows = configured.stack_spec, configured.term_specs["gene"].rows
    if (stack.n_layers, stack.width, rows) != (6, 200, N_GENES + 1):
        return ModelCard(name=weights.stem, family="scbert", title="an scBERT-like model", context=rows)
    if "level" in configured.head_specs:
        return CARD
    return replace(CARD, name=weights.stem, title="scBERT, fine-tuned", parameters=None, files={})


N_GENES = 16_906
GENE_ORDER = "4c09ba1912e184682fe5e7f32e2b443bdfb7883d0d0191551b38c6c2f155600f"
CARD_WEIGHTS = "panglao_pretrain.pth"

CARD = ModelCard(
    name="scbert",
    family="scbert",
    title="scBERT, pretrained on PanglaoDB",
    parameters=8_388_607,
    context=N_GENES + 1,
    licence="GPL-3.0 (the authors' licence file names the weights too)",
    binding="the weights are under the GPL-3.0: who passes them on, also converted or fine-tuned, does so under its terms",
    source="the links in the README of the authors' repository TencentAILabHealthcare/scBERT",
    files={CARD_WEIGHTS: None, GENES[0]: None},
    verified="tokens, hidden states, embeddings, outputs and the fine-tuned classifier against the authors' code on a "
    "small random model; the released weights themselves were not at hand",
    data="about 1.36 million human cells of PanglaoDB",
)

FAMILY = Family(
    name="scbert",
    cards=(CARD,),
    recognise=lambda path: any(path.glob("*.pth")),
    read=read,
    files=(CARD_WEIGHTS, "panglao_pretrained.pth", "finetune_best.pth", GENES[0], GENE2VEC, LABELS),
    companions=f"an scBERT folder holds {CARD_WEIGHTS} or a fine-tuned .pth file, {GENES[0]} with the order of the genes, "
    f"and {LABELS} with the class names of a fine-tuned model",
)
