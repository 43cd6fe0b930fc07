"""How does each published system tokenize? One function per family, from its vocabulary to a tokenizer.

The functions take what a checkpoint's own files hold as plain lists, dicts and arrays; reading those files is
the models' business. The constants that the files do not hold are written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.errors import TokenizerError
from scfm.genes import GeneVocabulary, PublishedRule
from scfm.tokenizers._binned import BinnedTokenizer
from scfm.tokenizers._bins import EqualWidthBins, Log2Bins, QuantileBins
from scfm.tokenizers._context import ContextOption
from scfm.tokenizers._depth import ReadDepthTokenizer
from scfm.tokenizers._protein import ProteinTokenizer
from scfm.tokenizers._rank import RankValueTokenizer

_ROLES = {"<pad>": "pad", "<mask>": "mask", "<cls>": "cls", "<eos>": "eos", "<eoc>": "eoc"}

NICHEFORMER_GENES_FROM = 30
NICHEFORMER_MODALITIES = {"dissociated": 3, "spatial": 4}
NICHEFORMER_SPECIES = {"human": 5, "Homo sapiens": 5, "mouse": 6, "Mus musculus": 6}
NICHEFORMER_ASSAYS = {
    "MERFISH": 7,
    "merfish": 7,
    "CosMx": 8,
    "cosmx": 8,
    "NanoString digital spatial profiling": 8,
    "Xenium": 9,
    "xenium": 9,
    "10x 5' v2": 10,
    "10x 3' v3": 11,
    "10x 3' v2": 12,
    "10x 5' v1": 13,
    "10x 3' v1": 14,
    "10x 3' transcription profiling": 15,
    "10x transcription profiling": 15,
    "10x 5' transcription profiling": 16,
    "CITE-seq": 17,
    "Smart-seq v4": 18,
}
_NICHEFORMER_SPATIAL = {7: "merfish", 8: "cosmx", 9: "xenium"}


def geneformer(
    names: Sequence[str], medians: Mapping[str, float], aliases: Mapping[str, str], max_length: int
) -> RankValueTokenizer:
    """Geneformer V1 and V2.

    Parameters
    ----------
    names
        Token of each id.
    medians
        Non-zero median of each gene.
    aliases
        Upper-case names and the vocabulary gene they stand for; others are ignored.
    max_length
        Longest list of tokens, ``<cls>`` and ``<eos>`` included where the vocabulary has them.

    Raises
    ------
    TokenizerError
        If a gene has no median.
    """
    specials = {_ROLES[n]: i for i, n in enumerate(names) if n in _ROLES}
    missing = [n for n in names if n not in _ROLES and n not in medians]
    if missing:
        raise TokenizerError(f"{len(missing)} genes of the vocabulary have no median, e.g. {', '.join(missing[:3])}")
    tokens = set(names)
    known = {alias: gene for alias, gene in aliases.items() if gene in tokens and alias != gene}
    return RankValueTokenizer(
        vocabulary=GeneVocabulary(
            names=tuple(names),
            namespace="ensembl",
            specials=specials,
            rule=PublishedRule(upper=True, aliases=known, duplicates="sum"),
        ),
        scale=np.array([float(medians.get(n, 1.0)) for n in names]),
        max_length=max_length,
        first=("cls",) if "cls" in specials else (),
        last=("eos",) if "eos" in specials else (),
    )


def nicheformer(
    genes: Sequence[str],
    means: Mapping[str, NDArray[np.floating[Any]]],
    max_length: int = 1500,
    orthologues: Mapping[str, str] | None = None,
) -> RankValueTokenizer:
    """Nicheformer.

    Parameters
    ----------
    genes
        Gene ids in the order of ``model.h5ad``.
    means
        (G,) technology means by name: ``"dissociated"``, ``"merfish"``, ``"cosmx"``, ``"xenium"``, as
        published (NaN = never measured).
    max_length
        Longest list of tokens, the three context tokens included.
    orthologues
        Human id of each mouse id, for the published matching rule.
    """
    wanted = ("dissociated", *_NICHEFORMER_SPATIAL.values())
    missing = [n for n in wanted if n not in means]
    if missing:
        raise TokenizerError(f"the means of {', '.join(missing)} are missing; given: {', '.join(means)}")
    context_names = {"<mask>": 0, "<pad>": 1, "<cls>": 2, "dissociated": 3, "spatial": 4, "human": 5, "mouse": 6}
    assay_names: dict[int, str] = {}
    for name, i in NICHEFORMER_ASSAYS.items():
        assay_names.setdefault(i, name)
    heads = {i: n for n, i in context_names.items()} | assay_names
    specials = {heads.get(i, f"reserved {i}"): i for i in range(NICHEFORMER_GENES_FROM)}
    rows = {assay: wanted.index(_NICHEFORMER_SPATIAL.get(i, "dissociated")) for assay, i in NICHEFORMER_ASSAYS.items()}
    scale = np.ones((len(wanted), NICHEFORMER_GENES_FROM + len(genes)))
    for row, name in enumerate(wanted):
        scale[row, NICHEFORMER_GENES_FROM:] = technology_scale(means[name])
    return RankValueTokenizer(
        vocabulary=GeneVocabulary(
            names=(*specials, *genes),
            namespace="ensembl",
            specials={_ROLES.get(n, n): i for n, i in specials.items()},
            rule=PublishedRule(aliases=dict(orthologues or {}), duplicates="sum"),
        ),
        scale=scale,
        max_length=max_length,
        arithmetic="division",
        total="matched",
        context={
            "species": ContextOption(NICHEFORMER_SPECIES),
            "assay": ContextOption(NICHEFORMER_ASSAYS),
            "modality": ContextOption(NICHEFORMER_MODALITIES),
        },
        scale_by="assay",
        scale_rows=rows,
    )


def technology_scale(means: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The divisor that Nicheformer was trained with: means rounded half up; unmeasured or zero becomes 1."""
    rounded = np.floor(np.nan_to_num(np.asarray(means, dtype=np.float64)) + 0.5)
    return np.where(rounded == 0, 1.0, rounded)


def scgpt(
    tokens: Mapping[str, int],
    max_length: int | None = 1200,
    n_bins: int = 51,
    cls_value: float = -2.0,
) -> BinnedTokenizer:
    """scGPT, zero-shot by default.

    Parameters
    ----------
    tokens
        Id of each token; ``<pad>``, ``<cls>`` and ``<eoc>`` are appended in that order where they are missing.
    max_length
        Longest list of tokens, ``<cls>`` included.
    n_bins
        Bins, the one of the zeros included.
    cls_value
        Value of ``<cls>``: -2 in zero-shot use, 0 in fine-tuning.
    """
    names = by_id(tokens)
    names += [n for n in ("<pad>", "<cls>", "<eoc>") if n not in tokens]
    return BinnedTokenizer(
        vocabulary=GeneVocabulary(
            names=tuple(names),
            namespace="symbol",
            specials={_ROLES[n]: i for i, n in enumerate(names) if n in _ROLES},
            rule=PublishedRule(duplicates="keep"),
        ),
        bins=QuantileBins(n_bins),
        max_length=max_length,
        first={"cls": cls_value},
    )


def scbert(genes: Sequence[str], cap: int = 5) -> BinnedTokenizer:
    """scBERT: every gene of the list with its level, expressed or not, and a closing token of level 0.

    Parameters
    ----------
    genes
        Symbols in the order of the reference.
    cap
        Highest level.
    """
    return BinnedTokenizer(
        vocabulary=GeneVocabulary(
            names=(*genes, "<cls>"),
            namespace="symbol",
            specials={"cls": len(genes)},
            rule=PublishedRule(duplicates="first"),
        ),
        bins=Log2Bins(cap),
        zeros="all",
        last={"cls": 0.0},
    )


def scmulan(
    words: Sequence[str],
    genes: Sequence[str],
    listed: Sequence[str],
    aliases: Mapping[str, str],
    n_levels: int = 10,
) -> BinnedTokenizer:
    """ScMulan's annotation prompt: expressed genes, the last of the list first, and ``<PCT>``.

    Parameters
    ----------
    words
        All words of the model in the order of their ids.
    genes
        The words that are genes.
    listed
        All genes whose counts make up the total of a cell; those that are no words come after the words
        in the vocabulary (``n_words``).
    aliases
        Further symbols with the listed gene they stand for: only those with a single candidate.
    n_levels
        Expression levels.
    """
    are_genes = set(genes)
    background = [g for g in listed if g not in are_genes]
    return BinnedTokenizer(
        vocabulary=GeneVocabulary(
            names=(*words, *background),
            namespace="symbol",
            specials={w: i for i, w in enumerate(words) if w not in are_genes},
            rule=PublishedRule(aliases=dict(aliases), duplicates="mean"),
        ),
        bins=EqualWidthBins(n_levels),
        order="reversed",
        last={"<PCT>": 0.0},
        n_words=len(words),
    )


def scfoundation(genes: Sequence[str]) -> ReadDepthTokenizer:
    """scFoundation: the gene list, then T at id G and S at id G + 1."""
    return ReadDepthTokenizer(
        vocabulary=GeneVocabulary(
            names=(*genes, "<T>", "<S>"),
            namespace="symbol",
            specials={"target_depth": len(genes), "source_depth": len(genes) + 1},
            rule=PublishedRule(duplicates="sum"),
        )
    )


def uce(
    genes: Mapping[str, int],
    chromosomes: Mapping[str, int],
    chromosome_of: Mapping[str, str],
    start_of: Mapping[str, int],
    species: str = "human",
    n_draws: int = 1024,
) -> ProteinTokenizer:
    """UCE, for one species.

    Parameters
    ----------
    genes
        Upper-case symbol of each gene and its row in the token table.
    chromosomes
        Each chromosome of the species and its row in the token table.
    chromosome_of, start_of
        Chromosome and start of each gene.
    species
        Species of the genes.
    n_draws
        Genes drawn per cell.

    Raises
    ------
    TokenizerError
        If a gene has no chromosome or start.
    """
    missing = [g for g in genes if g not in start_of or chromosome_of.get(g) not in chromosomes]
    if missing:
        raise TokenizerError(f"{len(missing)} genes have no chromosome or start, e.g. {', '.join(missing[:3])}")
    fixed = {"pad": 0, "chromosome_start": 1, "chromosome_end": 2, "cls": 3}
    labels = sorted(chromosomes, key=chromosomes.__getitem__)
    specials = fixed | {f"chromosome {c}": len(fixed) + i for i, c in enumerate(labels)}
    n_specials = len(specials)
    names = (*(f"<{role}>" for role in specials), *genes)
    chromosome = np.full(len(names), -1, dtype=np.int32)
    start = np.zeros(len(names), dtype=np.int64)
    chromosome[n_specials:] = [specials[f"chromosome {chromosome_of[g]}"] for g in genes]
    start[n_specials:] = [start_of[g] for g in genes]
    return ProteinTokenizer(
        vocabulary=GeneVocabulary(
            names=names,
            namespace="symbol",
            specials=specials,
            species=species,
            rule=PublishedRule(upper=True, duplicates="keep"),
        ),
        chromosome=chromosome,
        start=start,
        rows=np.array([*fixed.values(), *(chromosomes[c] for c in labels), *genes.values()], dtype=np.int64),
        n_draws=n_draws,
    )


def by_id(tokens: Mapping[str, int]) -> list[str]:
    """Token names in the order of their ids.

    Raises
    ------
    TokenizerError
        If the ids are not 0 ... n - 1.
    """
    names = sorted(tokens, key=lambda n: int(tokens[n]))
    if [int(tokens[n]) for n in names] != list(range(len(names))):
        raise TokenizerError(
            f"token ids must be 0 ... {len(names) - 1} without gaps, found up to {max(map(int, tokens.values()))}"
        )
    return names
