"""From a corpus to a model without layers: `scfm pretrain` with an entry ``projection``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import counts, genes
from scfm.errors import ConfigError
from scfm.genes import GeneVocabulary
from scfm.models import FoundationModel, ModelCard
from scfm.models._bag_model import BAG, EXCESS, bag_model, gene_vectors
from scfm.tokenizers import BagTokenizer
from scfm.training._config import CorpusConfig, build, read_entries
from scfm.training._corpus import Corpus
from scfm.training._files import alone_in, check_space, new_folder
from scfm.training._projection import (
    CellSet,
    Projection,
    ProjectionRecipe,
    finished,
    fit,
    random_axes,
    save_statistics,
)

log = logging.getLogger("scfm")
MODEL = "model"
BLOCK_ROWS = 4096
STATED = ("licence", "publication")
"""What the card takes over of what a file says of its source."""


@dataclass(frozen=True)
class ProjectionOutput:
    """What is written.

    Parameters
    ----------
    folder
        The model goes into ``model`` in it.
    name, title, licence
        Of the model.
    progress
        Whether to show a bar.
    """

    folder: str = "scfm-projection"
    name: str | None = None
    title: str = "Projection of all expressed genes; runs at the speed of PCA"
    licence: str = "not stated"
    progress: bool = True


@dataclass(frozen=True)
class ProjectionConfig:
    """A projection that is fitted to a corpus.

    Parameters
    ----------
    corpus, projection, output
        Its parts.
    species
        Whose protein-coding genes are the vocabulary.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    projection: ProjectionRecipe = field(default_factory=ProjectionRecipe)
    output: ProjectionOutput = field(default_factory=ProjectionOutput)
    species: str = "human"

    @classmethod
    def build(cls, data: Mapping[str, Any]) -> ProjectionConfig:
        """From plain types; an unknown key or a wrong type is a `ConfigError` that names it."""
        made: ProjectionConfig = build(cls, data)
        return made

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> ProjectionConfig:
        """From a YAML file; see `PretrainConfig.read`."""
        return cls.build(read_entries(path, overrides))


def fit_projection(config: ProjectionConfig | Mapping[str, Any], corpus: Corpus | None = None) -> FoundationModel:
    """Fit gene vectors to a corpus, and write them as a model beside the statistics that `scfm.tl.adapt` starts from.

    Parameters
    ----------
    config
        A `ProjectionConfig` or its entries as a dictionary.
    corpus
        Cells; None: those that the configuration names.

    Returns
    -------
    FoundationModel
        Also in ``model`` of the output folder.

    Raises
    ------
    ConfigError
        If the configuration is impossible or the cells are too few.
    CountsError, GeneMatchError
        If a file of the corpus cannot be used.
    OutputError
        If there is no room.
    """
    settings = config if isinstance(config, ProjectionConfig) else ProjectionConfig.build(config)
    recipe, out = settings.projection, Path(settings.output.folder).expanduser()
    source = corpus or _open(settings.corpus)
    vocabulary = coding_vocabulary(settings.species)
    with alone_in(out, "a fit"):
        check_space(out, 8 * len(vocabulary) * recipe.n_axes, "the model")
        bar = tqdm(total=source.n_cells, desc="reading", unit="cell", disable=not settings.output.progress)
        with bar:
            sets, prints = zip(*(_read(source, i, vocabulary, recipe, bar) for i in range(len(source))), strict=True)
        n_cells = [s.sample(recipe).values.shape[0] for s in sets]
        if sum(n_cells) <= recipe.n_axes or min(n_cells) < 2:
            raise ConfigError(
                f"the smallest file has {min(n_cells)} cells with {recipe.min_genes} genes, all files {sum(n_cells)}; needed "
                f"are 2 in each and more than the {recipe.n_axes} axes in all"
            )
        fitted = fit(sets, recipe)
        if len(fitted.singular) < recipe.n_axes:
            raise ConfigError(f"these cells span {len(fitted.singular)} axes only, {recipe.n_axes} were asked for")
        model = projection_model(fitted, sets, recipe, vocabulary, _card(settings, source, sets, fitted))
        model.transformer.half()
        model.seen = np.unique(np.concatenate(prints))
        with new_folder(out / MODEL) as partial:
            model.save_pretrained(partial)
            save_statistics(partial, fitted, recipe, gene_vectors(model))
    return FoundationModel.from_pretrained(out / MODEL)


def projection_model(
    fitted: Projection, sets: Sequence[CellSet], recipe: ProjectionRecipe, vocabulary: GeneVocabulary, card: ModelCard
) -> FoundationModel:
    """A fit as a model.

    Parameters
    ----------
    fitted, recipe
        What was learnt, and how.
    sets
        Cells that give the vectors their length.
    vocabulary
        Genes in the order of the fit, and the role ``"cls"``.
    card
        What is known of it.
    """
    tables = {BAG: finished(fitted, recipe, (s.sample(recipe) for s in sets))}
    if not recipe.excess_axes:
        return bag_model(tables, BagTokenizer(vocabulary, recipe.target_sum), card)
    tables[EXCESS] = random_axes(len(tables[BAG]), recipe)
    usual = np.zeros(len(vocabulary), dtype=np.float32)
    usual[np.flatnonzero(vocabulary.is_gene)] = fitted.moments.usual
    tokenizer = BagTokenizer(vocabulary, recipe.target_sum, usual, recipe.few_counts, recipe.least)
    return bag_model(tables, tokenizer, card)


def coding_vocabulary(species: str) -> GeneVocabulary:
    """Every protein-coding gene of a species by Ensembl id, and the token of the cell behind them."""
    coding = genes.protein_coding(species)
    return GeneVocabulary(
        names=(*coding["ensembl_id"], "<cls>"),
        namespace="ensembl",
        specials={"cls": len(coding)},
        species=species,
        symbols=(*coding["symbol"], "<cls>"),
    )


def log_values(x: sp.csr_matrix, target_sum: float, totals: Any = None) -> sp.csr_matrix:
    """log1p of counts (n, V) per ``target_sum`` of each row's sum, or of its true total (n,) where that is known."""
    values = x.astype(np.float64)
    total = np.asarray(values.sum(axis=1)).ravel() if totals is None else np.asarray(totals)
    values.data = np.log1p(values.data * np.repeat(target_sum / np.maximum(total, 1e-12), np.diff(values.indptr)))
    return values


def _open(settings: CorpusConfig) -> Corpus:
    if not settings.files:
        raise ConfigError("corpus.files is empty; name files, folders or patterns")
    return Corpus.open(
        settings.files,
        gene_key=settings.gene_key,
        gene_matching=settings.gene_matching,
        layer=settings.layer,
        use_raw=settings.use_raw,
        orthologues=settings.orthologues,
    )


def _read(
    corpus: Corpus, number: int, vocabulary: GeneVocabulary, recipe: ProjectionRecipe, bar: Any
) -> tuple[CellSet, NDArray[np.uint64]]:
    """The values of one file over the genes of the vocabulary, and the fingerprints of its cells."""
    source, match = corpus.source(number), corpus.match(number, vocabulary)
    n_genes = len(vocabulary) - 1
    found = np.flatnonzero(match.columns >= 0)
    join = sp.csr_matrix((np.ones(len(found)), (found, match.columns[found])), shape=(source.shape[1], n_genes))
    tokenizer = BagTokenizer(vocabulary, target_sum=recipe.target_sum)
    parts, prints = [], []
    for block in source.blocks(BLOCK_ROWS):
        x = sp.csr_matrix((block.data, block.indices, block.indptr), shape=(block.n_cells, block.n_columns))
        parts.append(log_values((x @ join).tocsr(), recipe.target_sum, block.totals))
        prints.append(tokenizer.tokenize_block(block, match).per_cell["fingerprint"])
        bar.update(block.n_cells)
    return CellSet(sp.vstack(parts).tocsr(), match.measured[:n_genes]), np.concatenate(prints)


def _card(settings: ProjectionConfig, corpus: Corpus, sets: Sequence[CellSet], fitted: Projection) -> ModelCard:
    stated = [dict(_stated(file.path)) for file in corpus.files]
    files = {
        file.name: {"n_cells": s.values.shape[0], **about}
        for file, s, about in zip(corpus.files, sets, stated, strict=True)
    }
    n_cells = sum(s.values.shape[0] for s in sets)
    n_genes = int(np.count_nonzero(fitted.axes.any(axis=1)))
    return ModelCard(
        name=settings.output.name or Path(settings.output.folder).name,
        family="scfm",
        title=settings.output.title,
        parameters=(len(coding_vocabulary(settings.species)) - 1)
        * (settings.projection.n_axes + settings.projection.excess_axes),
        species=settings.species,
        licence=settings.output.licence,
        data=f"{n_cells:,} {settings.species} cells of {len(files)} files",
        details={"recipe": asdict(settings.projection), "genes_with_a_vector": n_genes, "corpus": files},
    )


def _stated(path: Path | None) -> Iterator[tuple[str, str]]:
    """What a file says of its source in ``uns["source"]``."""
    about = counts.read(path).uns.get("source", {}) if path is not None else {}
    if isinstance(about, Mapping):
        yield from ((name, str(about[name])) for name in STATED if name in about)
