"""What does a model itself call the cells? For models that were trained to name them."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from tqdm.auto import tqdm

from scfm import counts, genes, models
from scfm.annotation._annotation import Annotation
from scfm.annotation._cells import Reading
from scfm.annotation._decide import UNKNOWN
from scfm.errors import ConfigError
from scfm.models._stream import BLOCK_ROWS, Job, tokenize
from scfm.tokenizers import from_obs
from scfm.tokenizers._context import resolve_context

SURE = 0.5
"""Names with a lower probability are not given."""


def named_by_model(
    adata: AnnData,
    model: models.FoundationModel,
    *,
    labels: list[str] | None = None,
    reject: bool = True,
    reading: Reading | None = None,
    progress: bool = False,
) -> Annotation:
    """Ask a model for the names of cells (`scfm.models.name_cells`); its probabilities are its own, not calibrated.

    Parameters
    ----------
    adata
        The cells, with counts somewhere.
    model
        Names cells itself.
    labels
        Only these of its names are possible.
    reject
        Whether cells whose likeliest name has a probability below one half are ``"unknown"``.
    reading
        Where counts and gene names are.
    progress
        Show a progress bar.

    Raises
    ------
    ConfigError
        If the model names no cells, or does not know a label.
    CountsError, GeneMatchError, TokenizerError
        If something does not fit.
    """
    known = models.questions(model)
    if not known:
        raise ConfigError(
            f"{model.card.name} names no cells itself, so method='prompt' cannot be used with it; pass a reference with "
            "label_key="
        )
    r = reading or Reading()
    question = "cell_type" if "cell_type" in known else known[0]
    source = counts.find(adata, layer=r.layer, use_raw=r.use_raw)
    match = genes.match(
        source.var, model.vocabulary, gene_key=r.gene_key, policy=r.gene_matching, orthologues=r.orthologues
    )
    facts = from_obs(model.tokenizer.context_options, r.context, adata.obs)
    resolve_context(model.tokenizer.context_options, facts, adata.n_obs)
    job = Job(match=match, context=facts)
    parts = []
    classes: tuple[str, ...] = ()
    with tqdm(total=adata.n_obs, desc=model.card.name, unit="cell", disable=not progress) as bar:
        for block in source.blocks(BLOCK_ROWS):
            answers = models.name_cells(model, tokenize(model, block, job), question=question)
            finest = [*answers.values()][-1]
            classes = finest.labels
            parts.append(finest.probabilities)
            bar.update(block.n_cells)
    proba = np.concatenate(parts)
    if labels is not None:
        proba, classes = _restricted(proba, classes, labels, model)
    return _annotation(proba, tuple(map(str, classes)), model, question, reject=reject)


def _restricted(
    proba: np.ndarray, classes: tuple[str, ...], labels: list[str], model: models.FoundationModel
) -> tuple[np.ndarray, tuple[str, ...]]:
    unknown = [label for label in labels if label not in classes]
    if unknown or not labels:
        raise ConfigError(
            f"labels= names {', '.join(map(repr, unknown)) or 'nothing'}, which {model.card.name} does not know; it knows "
            f"{', '.join(map(repr, classes[:10]))}"
        )
    kept = [i for i, name in enumerate(classes) if name in set(labels)]
    part = proba[:, kept]
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / part.sum(axis=1, keepdims=True), tuple(classes[i] for i in kept)


def _annotation(
    proba: np.ndarray, classes: tuple[str, ...], model: models.FoundationModel, question: str, *, reject: bool
) -> Annotation:
    empty = np.isnan(proba).any(axis=1)
    p = np.nan_to_num(proba)
    order = np.argsort(-p, axis=1, kind="stable")
    rows = np.arange(len(p))
    top, second = p[rows, order[:, 0]], p[rows, order[:, min(1, len(classes) - 1)]]
    labels = np.array(classes, dtype=object)[order[:, 0]]
    reason = np.full(len(p), "", dtype=object)
    unsure = (top < SURE) & ~empty if reject else np.zeros(len(p), bool)
    for i in np.flatnonzero(unsure):
        reason[i] = f"ambiguous between {classes[order[i, 0]]} and {classes[order[i, min(1, len(classes) - 1)]]}"
    reason[empty] = "too few genes"
    labels[unsure | empty] = UNKNOWN
    score = np.where(empty, np.nan, top).astype(np.float32)
    margin = np.where(empty, np.nan, top - second).astype(np.float32)
    facts = {"method": "prompt", "members": [model.card.name], "question": question, "calibrated": False}
    return Annotation(labels, score, margin, 1 - score, reason, proba.astype(np.float32), classes, facts)
