"""What can a new model look like? A few architectures after the published ones, of any size, for any vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scfm import genes
from scfm.errors import ConfigError
from scfm.genes import GeneVocabulary
from scfm.models import FoundationModel, ModelCard
from scfm.tokenizers import (
    BinnedTokenizer,
    EqualWidthBins,
    Log2Bins,
    QuantileBins,
    RankValueTokenizer,
    ReadDepthTokenizer,
    Tokenizer,
)
from scfm.training._corpus import Corpus
from scfm.transformer import (
    CellTransformer,
    CellTransformerConfig,
    DecoderSpec,
    MLPSpec,
    PartSpec,
    QueryOnlySpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
)

if TYPE_CHECKING:
    from scfm.training._config import ModelConfig

N_BINS = 51
CAP = 5
N_LEVELS = 10
N_SOFT_BINS = 100
N_FEATURES = 64
SCALE_CELLS = 20_000
MEASURED_IN = 0.2
"""A gene of the corpus is in the vocabulary if this share of the files, and at least one, measures it."""


@dataclass(frozen=True)
class Architecture:
    """A kind of new model.

    Parameters
    ----------
    about
        One line.
    tokenizer
        Of a vocabulary, with the usual level of each gene and the sizes asked for.
    terms
        Of the transformer, made from the number of tokens and the sizes.
    specials
        Roles of the special tokens, which stand in front of the genes.
    query_only
        What happens to tokens that ask.
    attention
        Of the layers.
    decoder
        Whether a second stack reads every gene.
    """

    about: str
    tokenizer: Callable[[GeneVocabulary, NDArray[np.float64], ModelConfig], Tokenizer]
    terms: Callable[[int, ModelConfig], dict[str, TermSpec]]
    specials: tuple[str, ...] = ("pad", "mask", "cls", "eos")
    query_only: QueryOnlySpec | None = None
    attention: Literal["full", "causal"] = "full"
    decoder: bool = False


def _ranks(vocabulary: GeneVocabulary, scale: NDArray[np.float64], sizes: ModelConfig) -> Tokenizer:
    return RankValueTokenizer(vocabulary, scale, sizes.max_length, first=("cls",), last=("eos",))


def _bins(vocabulary: GeneVocabulary, scale: NDArray[np.float64], sizes: ModelConfig) -> Tokenizer:
    return BinnedTokenizer(vocabulary, QuantileBins(N_BINS), sizes.max_length, first={"cls": -2.0})


def _levels(vocabulary: GeneVocabulary, scale: NDArray[np.float64], sizes: ModelConfig) -> Tokenizer:
    return BinnedTokenizer(vocabulary, Log2Bins(CAP), sizes.max_length, first={"cls": 0.0})


def _words(vocabulary: GeneVocabulary, scale: NDArray[np.float64], sizes: ModelConfig) -> Tokenizer:
    return BinnedTokenizer(vocabulary, EqualWidthBins(N_LEVELS), sizes.max_length)


def _depths(vocabulary: GeneVocabulary, scale: NDArray[np.float64], sizes: ModelConfig) -> Tokenizer:
    return ReadDepthTokenizer(vocabulary)


def _ids(rows: int, sizes: ModelConfig) -> dict[str, TermSpec]:
    return {"gene": TermSpec("table", rows=rows), "position": TermSpec("table", "positions", rows=sizes.max_length)}


def _numbers(rows: int, sizes: ModelConfig) -> dict[str, TermSpec]:
    d = sizes.width
    return {
        "gene": TermSpec("table", rows=rows, norm=True),
        "value": TermSpec("scalar", "values", mlp=MLPSpec((1, d, d), between=("relu",), end=("norm",)), optional=True),
        "flag": TermSpec("table", "flag", rows=2, optional=True),
    }


def _looked_up(rows: int, sizes: ModelConfig) -> dict[str, TermSpec]:
    return {"gene": TermSpec("table", rows=rows), "value": TermSpec("table", "values", rows=CAP + 2)}


def _written(rows: int, sizes: ModelConfig) -> dict[str, TermSpec]:
    return {"gene": TermSpec("table", rows=rows), "value": TermSpec("table", "values", rows=N_LEVELS + 1)}


def _soft_bins(rows: int, sizes: ModelConfig) -> dict[str, TermSpec]:
    return {"gene": TermSpec("table", rows=rows), "value": TermSpec("bins", "values", rows=N_SOFT_BINS)}


ARCHITECTURES: dict[str, Architecture] = {
    "ranks": Architecture("genes ordered by count against their usual level, as in Geneformer", _ranks, _ids),
    "bins": Architecture(
        "genes with binned counts as numbers, and tokens that ask, as in scGPT",
        _bins,
        _numbers,
        query_only=QueryOnlySpec(sees_itself=True, channels={"flag": 1}),
    ),
    "levels": Architecture("expressed genes with levels of a table, as in scBERT", _levels, _looked_up),
    "words": Architecture(
        "genes with levels as words, each seeing those before it, as in scMulan",
        _words,
        _written,
        specials=("pad", "<SPToken1>", "<E>"),
        attention="causal",
    ),
    "depth": Architecture(
        "log values with the depth of the cell, and a second stack over every gene, as in scFoundation",
        _depths,
        _soft_bins,
        specials=("target_depth", "source_depth"),
        decoder=True,
    ),
}
"""By the name that a configuration uses."""


def new_model(sizes: ModelConfig, corpus: Corpus | None, name: str) -> FoundationModel:
    """An untrained model; weights from torch's generator.

    Parameters
    ----------
    sizes
        Kind, sizes and vocabulary.
    corpus
        For a vocabulary and gene levels of its own.
    name
        Of the model.

    Raises
    ------
    ConfigError
        If sizes do not fit together, or the vocabulary is unknown.
    """
    check_sizes(sizes)
    if sizes.width % sizes.n_heads:
        raise ConfigError(f"model.width {sizes.width} is no multiple of model.n_heads {sizes.n_heads}")
    kind = ARCHITECTURES[sizes.kind]
    vocabulary, scale = words(sizes, corpus, kind.specials)
    tokenizer = kind.tokenizer(vocabulary, scale, sizes)
    config = _config(kind, len(vocabulary), sizes)
    card = ModelCard(
        name=name,
        family="scfm",
        title=f"{kind.about}; {sizes.n_layers} layers of width {sizes.width}",
        context=sizes.max_length,
        species=vocabulary.species,
        licence="that of whoever trained it",
    )
    return FoundationModel(CellTransformer(config), tokenizer, card)


def check_sizes(sizes: ModelConfig) -> None:
    """Raise a `ConfigError` unless every size is 1 at least."""
    for field in ("n_layers", "width", "n_heads", "max_length"):
        if getattr(sizes, field) < 1:
            raise ConfigError(f"model.{field} is {getattr(sizes, field)}; at least 1 is needed")


def _config(kind: Architecture, rows: int, sizes: ModelConfig) -> CellTransformerConfig:
    p = sizes.dropout
    stack = StackSpec(
        n_layers=sizes.n_layers,
        width=sizes.width,
        n_heads=sizes.n_heads,
        head_dim=sizes.width // sizes.n_heads,
        ff=4 * sizes.width if sizes.ff is None else sizes.ff,
        norm="pre",
        activation="gelu",
        final_norms=1,
        attention=kind.attention,
        dropout=p,
        attention_dropout=p,
    )
    second = replace(stack, n_layers=max(sizes.n_layers // 2, 1), attention="performer", n_features=N_FEATURES)
    return make_config(
        encoder=stack,
        decoder=DecoderSpec(second, rows) if kind.decoder else None,
        terms=kind.terms(rows, sizes),
        sum_norm=not kind.decoder,
        sum_dropout=p,
        readouts={
            "mean": ReadoutSpec((PartSpec("mean", skip_first=1),)),
            "cls": ReadoutSpec((PartSpec("token", 0),)),
        },
        readout="mean",
        query_only=None if kind.query_only is None else kind.query_only.to_dict(),
    )


def reset(model: FoundationModel, name: str) -> FoundationModel:
    """The same architecture and tokenizer with new weights; fixed gene vectors stay."""
    fresh = CellTransformer(model.config)
    kept = {
        k: v for k, v in model.transformer.state_dict().items() if k not in dict(model.transformer.named_parameters())
    }
    fresh.load_state_dict(kept, strict=False)
    card = ModelCard(
        name=name, family=model.card.family, title=f"{model.card.title}, trained anew", context=model.card.context
    )
    return FoundationModel(fresh, model.tokenizer, card)


def words(
    sizes: ModelConfig, corpus: Corpus | None, specials: tuple[str, ...]
) -> tuple[GeneVocabulary, NDArray[np.float64]]:
    """The vocabulary and the usual level of each gene."""
    shipped = ("geneformer-v1", "geneformer-v2")
    if sizes.vocabulary in shipped:
        published = RankValueTokenizer.published(sizes.vocabulary)  # type: ignore[arg-type]
        return _with_specials(published.vocabulary, published.scale[0], specials)
    if sizes.vocabulary != "corpus":
        raise ConfigError(f"model.vocabulary is {sizes.vocabulary!r}; choose 'corpus', {', '.join(map(repr, shipped))}")
    if corpus is None:
        raise ConfigError("a vocabulary from the corpus needs its files; give corpus.files, or model.start")
    table = genes.protein_coding(sizes.species)
    ids = tuple(table["ensembl_id"])
    every = GeneVocabulary(ids, "ensembl", species=sizes.species, symbols=tuple(table["symbol"]))
    measured = np.stack([corpus.match(i, every).measured for i in range(len(corpus))]).mean(axis=0)
    kept = np.flatnonzero((measured > 0) & (measured >= MEASURED_IN))
    symbols = [(every.symbols or ids)[i] or ids[i] for i in kept]
    vocabulary = GeneVocabulary(tuple(ids[i] for i in kept), "ensembl", species=sizes.species, symbols=tuple(symbols))
    return _with_specials(vocabulary, usual_levels(corpus, vocabulary), specials)


def _with_specials(
    vocabulary: GeneVocabulary, scale: NDArray[np.float64], roles: tuple[str, ...]
) -> tuple[GeneVocabulary, NDArray[np.float64]]:
    """Special tokens in front; those of the vocabulary go."""
    genes_at = np.flatnonzero(vocabulary.is_gene)
    symbols = vocabulary.symbols or vocabulary.names
    out = GeneVocabulary(
        names=(*(f"<{role.strip('<>')}>" for role in roles), *(vocabulary.names[i] for i in genes_at)),
        namespace=vocabulary.namespace,
        specials={role: i for i, role in enumerate(roles)},
        species=vocabulary.species,
        symbols=(*(f"<{role.strip('<>')}>" for role in roles), *(symbols[i] for i in genes_at)),
    )
    return out, np.concatenate([np.ones(len(roles)), scale[genes_at]])


def usual_levels(corpus: Corpus, vocabulary: GeneVocabulary, max_cells: int = SCALE_CELLS) -> NDArray[np.float64]:
    """(V,) median of the non-zero counts per 10,000 of each gene, over cells spread evenly over the files.

    Parameters
    ----------
    corpus, vocabulary
        Of the cells and genes.
    max_cells
        Cells that are looked at: the first blocks of each file.
    """
    ids, values = [], []
    each = max(max_cells // len(corpus), 1)
    for number, file in enumerate(corpus.files):
        match = corpus.match(number, vocabulary)
        for block in corpus.source(number).blocks(1024, slice(0, min(each, file.n_cells))):
            totals = np.add.reduceat(np.append(block.data, 0.0), block.indptr[:-1]) * (np.diff(block.indptr) > 0)
            of_cell = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
            column = match.columns[block.indices]
            ids.append(column[column >= 0])
            values.append((block.data * 1e4 / totals[of_cell])[column >= 0].astype(np.float32))
    gene, value = np.concatenate(ids), np.concatenate(values)
    order = np.lexsort((value, gene))
    gene, value = gene[order], value[order]
    n = np.bincount(gene, minlength=len(vocabulary))
    first = np.concatenate([[0], np.cumsum(n)])[:-1]
    middle = np.minimum(first + n // 2, len(value) - 1)
    return np.where(n > 0, value[middle], 1.0).astype(np.float64)


def add_heads(model: FoundationModel, wanted: Mapping[str, object]) -> list[str]:
    """Give a model heads that it lacks, with new weights; says which."""
    known = dict(model.config.heads or {})
    new = {name: spec for name, spec in wanted.items() if name not in known}
    if new:
        model.config.heads = {**known, **{name: spec.to_dict() for name, spec in new.items()}}  # type: ignore[attr-defined]
        fresh = CellTransformer(model.config)
        state = model.transformer.state_dict()
        fresh.load_state_dict(state, strict=False)
        fresh.to(device=model.device)
        model.transformer = fresh.eval()
    return sorted(new)


def seeded(seed: int) -> None:
    """Start torch's generator, from which new weights are drawn."""
    torch.manual_seed(seed)
