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
    """

    names: NDArray[np.str_]
    probability: NDArray[np.float32]


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
    if logits.shape[1] != len(labels):
        raise ConfigError(f"there are {logits.shape[1]} outputs, but {len(labels)} names")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold} is no probability; it must be between 0 and 1")
    probability: NDArray[np.float32] = softmax(np.asarray(logits, dtype=np.float32), axis=1)
    best = probability.max(axis=1)
    known = best >= threshold
    names = np.where(known, np.asarray(labels, dtype=str)[probability.argmax(axis=1)], unassigned)
    return Classes(names, best)
