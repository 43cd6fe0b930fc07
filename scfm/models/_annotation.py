"""What does a model itself call a cell? By a classifier that was trained for it, or by answering a question in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError
from scfm.models._classes import Classes, name_likeliest
from scfm.models._model import FoundationModel
from scfm.models._run import to_numpy
from scfm.tokenizers import Tokens
from scfm.transformer import PackedBatch, WordRule, Writer, weigh


def name_cells(
    model: FoundationModel,
    tokens: Tokens,
    *,
    question: str = "cell_type",
    threshold: float = 0.0,
    unassigned: str = "Unassigned",
) -> dict[str, Classes]:
    """Names that a model gives to cells, without a reference and without training.

    Parameters
    ----------
    model
        Writes answers (`WritingSpec`), or has one head that classifies cells and whose classes have names.
    tokens
        Of its tokenizer.
    question
        What is asked: a question of the model (`questions`), or its classifier.
    threshold
        Cells whose likeliest name has a lower probability are called ``unassigned``, as are cells without a gene token.
    unassigned
        See ``threshold``.

    Returns
    -------
    The answers by kind, the finest last; a classifier gives one, under the name of the question. The probabilities of a
    model that writes are those of the words among all words that might come, so that they add up to less than 1 where
    it might say something else.

    Raises
    ------
    ConfigError
        If the model names no cells, or does not know the question.

    Examples
    --------
    >>> import scfm
    >>> scfm.models.questions(scfm.models.load("scfm-mini"))
    ()
    """
    known = questions(model)
    if not known:
        raise ConfigError(
            f"{model.card.name} names no cells itself: it has no classifier with names of classes, and was not trained to "
            "write them. Transfer labels from a reference instead, or fine-tune a classifier"
        )
    if question not in known:
        raise ConfigError(f"{model.card.name} cannot be asked {question!r}; it answers {', '.join(known)}")
    answers = _written(model, tokens, question) if model.config.writing else _classified(model, tokens, question)
    for _labels, probabilities in answers.values():
        if "n_detected" in tokens.per_cell:
            probabilities[np.asarray(tokens.per_cell["n_detected"]) == 0] = np.nan
    return {kind: name_likeliest(p, labels, threshold, unassigned) for kind, (labels, p) in answers.items()}


def questions(model: FoundationModel) -> tuple[str, ...]:
    """What `name_cells` may ask a model; nothing where it names no cells."""
    if model.config.writing:
        return tuple(name for name, _word, _kinds in model.config.writing_spec.questions)
    return ("cell_type",) if len(_classifiers(model)) == 1 else tuple(_classifiers(model))


Answers = dict[str, tuple[tuple[str, ...], NDArray[np.float32]]]
"""By kind: the k possible names, and their (n, k) probabilities."""


def _classifiers(model: FoundationModel) -> list[str]:
    specs = model.config.head_specs
    return [name for name in specs if specs[name].per_cell and model.heads[name].labels]


def _classified(model: FoundationModel, tokens: Tokens, question: str) -> Answers:
    classifiers = _classifiers(model)
    head = model.heads[question if question in classifiers else classifiers[0]]
    found = head.classify(tokens)
    return {question: (found.labels, found.probabilities)}


def _written(model: FoundationModel, tokens: Tokens, question: str) -> Answers:
    spec = model.config.writing_spec
    word, kinds = next((word, kinds) for name, word, kinds in spec.questions if name == question)
    ids = spec.words(*kinds)
    asked = tokens.ids.copy()
    asked[tokens.offsets[1:] - 1] = word
    choices = torch.as_tensor(ids).to(model.device)

    def compute(batch: PackedBatch) -> Tensor:
        writer = Writer(model.transformer, batch, len(kinds))
        answers = []
        for _ in kinds:
            every = weigh(writer.words(), writer.banned(repeats=True), WordRule(), spec.end)
            answers.append(every[:, choices])
            words = choices[answers[-1].argmax(dim=1)]
            writer.append(words, writer.levels(words))
        return torch.stack(answers, dim=1)

    out = np.full((len(tokens), len(kinds), len(ids)), np.nan, dtype=np.float32)
    for rows, _part, probabilities in model.over_batches(replace(tokens, ids=asked), compute):
        out[rows] = to_numpy(probabilities)
    labels = tuple(model.vocabulary.names[i] for i in ids)
    return {kind: (labels, out[:, i]) for i, kind in enumerate(kinds)}
