"""Which class is it? From the outputs of a classifier to names, with a place for what it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from scfm.errors import ConfigError


class Classes(NamedTuple):
    """The likeliest class of each row.

    Parameters
    ----------
    names
        (n,) its name, or that of the unassigned.
    probability
        (n,) its probability.
    labels
        Names of all k classes.
    probabilities
        (n, k) probability of each.
    """

    names: NDArray[Any]
    probability: NDArray[np.float32]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]


def name_classes(
    logits: NDArray[np.floating[Any]], labels: Sequence[str], threshold: float = 0.0, unassigned: str = "Unassigned"
) -> Classes:
    """Names of the largest outputs.

    Parameters
    ----------
    logits
        (n, k) unnormalised log-probabilities; NaN rows are unassigned.
    labels
        k names.
    threshold
        Rows whose largest probability is below it (not at it) are unassigned.
    unassigned
        What these rows are called.

    Raises
    ------
    ConfigError
        If the number of names is not that of the outputs, or the threshold is no probability.

    Examples
    --------
    >>> name_classes(np.array([[3.0, 0.0], [0.2, 0.0]]), ["T cell", "B cell"], threshold=0.6).names.tolist()
    ['T cell', 'Unassigned']
    """
    return name_likeliest(softmax(np.asarray(logits, dtype=np.float32), axis=1), labels, threshold, unassigned)


def name_likeliest(
    probabilities: NDArray[np.float32], labels: Sequence[str], threshold: float = 0.0, unassigned: str = "Unassigned"
) -> Classes:
    """As `name_classes`, from probabilities (n, k); a row adds up to less than 1 where something else may be true."""
    if probabilities.shape[1] != len(labels):
        raise ConfigError(f"there are {probabilities.shape[1]} outputs, but {len(labels)} names")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold} is no probability; it must be between 0 and 1")
    best = probabilities.max(axis=1)
    names = np.where(best >= threshold, np.asarray(labels, dtype=str)[probabilities.argmax(axis=1)], unassigned)
    return Classes(names, best, tuple(labels), probabilities)
