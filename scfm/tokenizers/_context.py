"""What must a caller say about the cells, and did they?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfm.errors import TokenizerError


@dataclass(frozen=True)
class ContextOption:
    """A named fact about each cell that a tokenizer takes.

    Parameters
    ----------
    ids
        Accepted values, each with the vocabulary id of its token; empty: any finite number is accepted.
    default
        Value used when the caller says nothing; None: the caller must say it, unless ``optional``.
    optional
        Whether it may be left out without a default.
    """

    ids: Mapping[str, int]
    default: str | float | None = None
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the option is a number rather than one of a list."""
        return not self.ids

    def resolve(self, name: str, value: Any, n_cells: int) -> NDArray[Any]:
        """(n_cells,) values as text or float64.

        Parameters
        ----------
        name
            The option's name, for messages.
        value
            One value for all cells, or one per cell.

        Raises
        ------
        TokenizerError
            If the number of values is wrong or a value is not accepted; the message lists what is.
        """
        values = np.asarray(value if not hasattr(value, "to_numpy") else value.to_numpy())
        if values.ndim == 0:
            values = np.broadcast_to(values, (n_cells,))
        if values.shape != (n_cells,):
            raise TokenizerError(
                f"context {name!r} has shape {values.shape}, expected one value or one per cell ({n_cells})"
            )
        if self.is_number:
            return self._numbers(name, values)
        text = values.astype(str)
        unknown = sorted(set(text) - set(self.ids))
        if unknown:
            raise TokenizerError(
                f"context {name!r} holds {', '.join(map(repr, unknown[:3]))}; valid values: {', '.join(map(repr, self.ids))}"
            )
        return text

    def _numbers(self, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
        try:
            numbers = values.astype(np.float64)
        except (TypeError, ValueError):
            numbers = np.full(len(values), np.nan)
        if not np.isfinite(numbers).all():
            found = values[np.flatnonzero(~np.isfinite(numbers))[0]]
            raise TokenizerError(f"context {name!r} must be a finite number per cell, found {found!r}")
        return numbers

    def tokens(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """(n,) vocabulary id of each resolved value."""
        names, inverse = np.unique(values, return_inverse=True)
        return np.array([self.ids[str(n)] for n in names], dtype=np.int32)[inverse]


def resolve_context(
    options: Mapping[str, ContextOption], context: Mapping[str, Any], n_cells: int
) -> dict[str, NDArray[Any]]:
    """Values per cell of every option that was given or has a default.

    Raises
    ------
    TokenizerError
        If an option is unknown, missing without a default, or has a value that is not accepted.
    """
    unknown = sorted(set(context) - set(options))
    if unknown:
        known = f"it takes {', '.join(options)}" if options else "it takes none"
        raise TokenizerError(f"unknown context {', '.join(map(repr, unknown))} for this tokenizer: {known}")
    resolved = {}
    for name, option in options.items():
        value = context.get(name, option.default)
        if value is not None:
            resolved[name] = option.resolve(name, value, n_cells)
        elif not option.optional:
            valid = "a number" if option.is_number else ", ".join(map(repr, option.ids))
            raise TokenizerError(
                f"this tokenizer needs context {name!r}: pass context={{{name!r}: value or obs column}}; "
                f"valid values: {valid}"
            )
    return resolved


def from_obs(options: Mapping[str, ContextOption], context: Mapping[str, Any] | None, obs: Any) -> dict[str, Any]:
    """Context whose texts are looked up: an accepted value stands for all cells, else it names an ``obs`` column.

    Raises
    ------
    TokenizerError
        If a text is neither an accepted value nor a column of ``obs``.
    """
    found: dict[str, Any] = {}
    for name, value in (context or {}).items():
        option = options.get(name)
        if option is None or not isinstance(value, str) or value in option.ids:
            found[name] = value
        elif value in obs.columns:
            found[name] = obs[value].to_numpy()
        else:
            valid = "a number" if option.is_number else ", ".join(map(repr, option.ids))
            raise TokenizerError(
                f"context {name!r} = {value!r} is neither a column of obs ({_some(list(obs.columns))}) nor a valid value "
                f"({valid})"
            )
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "") if names else "it has none"
