"""How well can one guess without looking? Predictors that are fitted on training cells and know no input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scfm.training.objectives._base import Example

PRIOR = 5.0
"""Weight, in targets, of the overall frequencies in those of a single gene."""


class Reference(ABC):
    """The best input-free guess: it may know which gene is asked for, and nothing of the cell."""

    @abstractmethod
    def fit(self, examples: Iterable[Example]) -> Reference:
        """Learn from examples of training cells; returns itself."""

    @abstractmethod
    def score(self, example: Example) -> dict[str, float]:
        """Sum of the losses of an example's targets, by term of the objective."""

    def constants(self) -> dict[str, NDArray[np.float64]]:
        """What a head would say that knows neither cell nor gene: (outputs,) logits or numbers, by term."""
        return {}


def _array(example: Example, name: str) -> NDArray[Any]:
    return example.targets[name].cpu().numpy()


class TokenFrequencies(Reference):
    """How often each class is the answer: the cross entropy of guessing by frequency.

    Parameters
    ----------
    term
        Of the objective.
    n_classes
        Number of answers.
    """

    def __init__(self, term: str, n_classes: int) -> None:
        self.term, self.counts = term, np.ones(n_classes)

    def fit(self, examples: Iterable[Example]) -> Reference:
        """Count the answers; every class starts at one."""
        for example in examples:
            self.counts += np.bincount(_array(example, "labels"), minlength=len(self.counts))
        return self

    def constants(self) -> dict[str, NDArray[np.float64]]:
        """Log frequencies."""
        return {self.term: np.log(self.counts / self.counts.sum())}

    def score(self, example: Example) -> dict[str, float]:
        """Sum of -log of the frequency of each answer."""
        costs = np.log(self.counts.sum()) - np.log(self.counts)
        return {self.term: float(costs[_array(example, "labels")].sum())}


class LevelFrequencies(Reference):
    """How often each gene has each level.

    Parameters
    ----------
    term
        Of the objective.
    n_genes, n_classes
        Sizes.
    """

    def __init__(self, term: str, n_genes: int, n_classes: int) -> None:
        self.term, self.counts = term, np.zeros((n_genes, n_classes))

    def fit(self, examples: Iterable[Example]) -> Reference:
        """Count the levels of each gene."""
        for example in examples:
            np.add.at(self.counts, (_array(example, "genes"), _array(example, "labels")), 1.0)
        return self

    def constants(self) -> dict[str, NDArray[np.float64]]:
        """Log frequencies of the levels in all genes together."""
        return {self.term: np.log(self._overall())}

    def _overall(self) -> NDArray[np.float64]:
        counts = self.counts.sum(axis=0) + 1
        return counts / counts.sum()

    def score(self, example: Example) -> dict[str, float]:
        """Sum of -log of the frequency of each level for its gene."""
        overall = self._overall()
        genes, labels = _array(example, "genes"), _array(example, "labels")
        share = (self.counts[genes, labels] + PRIOR * overall[labels]) / (self.counts[genes].sum(axis=1) + PRIOR)
        return {self.term: float(-np.log(share).sum())}


class MeanPerGene(Reference):
    """The mean value of each gene: its squared error.

    Parameters
    ----------
    terms
        Of the objective, each with the name of the labels it is about; genes stand under ``genes``.
    n_genes
        Size of the vocabulary.
    """

    def __init__(self, terms: Mapping[str, str], n_genes: int) -> None:
        self.terms = dict(terms)
        self.sums, self.counts = np.zeros(n_genes), np.zeros(n_genes)

    def fit(self, examples: Iterable[Example]) -> Reference:
        """Average the values of each gene."""
        for example in examples:
            genes = _array(example, "genes")
            np.add.at(self.sums, genes, _array(example, next(iter(self.terms.values()))).astype(np.float64))
            np.add.at(self.counts, genes, 1.0)
        return self

    def constants(self) -> dict[str, NDArray[np.float64]]:
        """The mean of all genes together."""
        return dict.fromkeys(self.terms, np.array([self._overall()]))

    def _overall(self) -> float:
        return float(self.sums.sum() / max(self.counts.sum(), 1.0))

    def score(self, example: Example) -> dict[str, float]:
        """Sum of the squared differences to the means."""
        means = (self.sums + PRIOR * self._overall()) / (self.counts + PRIOR)
        genes = _array(example, "genes")
        errors = {
            name: float(np.square(_array(example, labels) - means[genes]).sum()) for name, labels in self.terms.items()
        }
        return {name: error for name, error in errors.items() if example.counts.get(name)}


class RatePerGene(Reference):
    """How often the answer is yes for each gene: the binary cross entropy.

    Parameters
    ----------
    term
        Of the objective.
    n_genes
        Size of the vocabulary.
    """

    def __init__(self, term: str, n_genes: int) -> None:
        self.term = term
        self.yes, self.all = np.zeros(n_genes), np.zeros(n_genes)

    def fit(self, examples: Iterable[Example]) -> Reference:
        """Count the yeses of each gene."""
        for example in examples:
            genes = _array(example, "genes")
            np.add.at(self.yes, genes, _array(example, "labels").astype(np.float64))
            np.add.at(self.all, genes, 1.0)
        return self

    def constants(self) -> dict[str, NDArray[np.float64]]:
        """The logit of the rate in all genes together."""
        rate = self._overall()
        return {self.term: np.array([np.log(rate / (1 - rate))])}

    def _overall(self) -> float:
        return float((self.yes.sum() + 1) / (self.all.sum() + 2))

    def score(self, example: Example) -> dict[str, float]:
        """Sum of -log of the probability of each answer."""
        genes, labels = _array(example, "genes"), _array(example, "labels").astype(bool)
        p = (self.yes[genes] + PRIOR * self._overall()) / (self.all[genes] + PRIOR)
        return {self.term: float(-np.log(np.where(labels, p, 1 - p)).sum())}


class Chance(Reference):
    """One of ``choices`` equally likely answers, given with each example.

    Parameters
    ----------
    term
        Of the objective; ``targets["choices"]`` holds how many answers each target has.
    """

    def __init__(self, term: str) -> None:
        self.term = term

    def fit(self, examples: Iterable[Example]) -> Reference:
        """There is nothing to learn."""
        return self

    def score(self, example: Example) -> dict[str, float]:
        """Sum of the logarithms of the numbers of choices."""
        return {self.term: float(np.log(_array(example, "choices")).sum())}
