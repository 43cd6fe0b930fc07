"""What was found, in a form that prints well and is plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from scfm.counts._evidence import Evidence


class CountsWarning(UserWarning):
    """Counts are used that are not plain raw counts."""


@dataclass(frozen=True)
class Kind:
    """What a matrix can hold.

    Parameters
    ----------
    name
        Short.
    meaning
        One clause.
    usable
        Whether counts can be had from it; the lower the better, None: they cannot.
    remedy
        What to do where it is not usable.
    """

    name: str
    meaning: str
    usable: int | None = None
    remedy: str = ""


_KEEP = "keep the raw counts before normalising: adata.layers['counts'] = adata.X.copy()"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("counts", "raw counts", 0),
            Kind(
                "fractional counts", "counts with fractions (ambient-corrected or pseudo-aligned), taken as they are", 1
            ),
            Kind("log1p", "log1p of normalised counts, from which the counts are computed back", 2),
            Kind("log2(x + 1)", "log2(x + 1) of normalised counts, from which the counts are computed back", 2),
            Kind("log10(x + 1)", "log10(x + 1) of normalised counts, from which the counts are computed back", 2),
            Kind("normalised", "normalised counts without a logarithm, from which the counts are computed back", 2),
            Kind("empty", "no value other than 0 in the cells looked at", 3),
            Kind(
                "log-normalised",
                "log-normalised values from which the counts cannot be had back (no scale makes whole numbers of a cell)",
                remedy=f"pass layer= or use_raw=True if the counts are elsewhere; else {_KEEP}",
            ),
            Kind(
                "normalised, not counts",
                "values normalised to one sum per cell (TPM, for example) that are no multiples of a count",
                remedy=f"pass layer= or use_raw=True if the counts are elsewhere; else {_KEEP}",
            ),
            Kind(
                "unclear",
                "values on the scale of logarithms, without whole numbers and without a common scale per cell "
                "(log-normalised and then smoothed, corrected or weighted?)",
                remedy="pass layer= or use_raw=True if the counts are elsewhere; if these are fractional counts after all, "
                "give a rounded copy: adata.layers['counts'] = adata.X.round()",
            ),
            Kind(
                "scaled",
                "negative values: scaled, regressed or batch-corrected data",
                remedy=f"counts cannot be had from it; pass layer= or use_raw=True if they are elsewhere; else {_KEEP}",
            ),
            Kind(
                "not finite",
                "NaN or infinite values",
                remedy="find out where they come from; if NaN means 'not measured', drop these genes or set them to 0",
            ),
        )
    }
)


@dataclass(frozen=True)
class Candidate:
    """One matrix that was looked at.

    Parameters
    ----------
    where
        ``"X"``, ``"raw"``, ``"layers['counts']"``.
    kind
        A key of the table of kinds.
    storage
        In words: ``"CSR on disk, float32"``.
    evidence
        In numbers.
    found
        Further findings, in words.
    """

    where: str
    kind: str
    storage: str
    evidence: Evidence
    found: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether counts can be had from it."""
        return KINDS[self.kind].usable is not None

    @property
    def remedy(self) -> str:
        """What to do where it is not usable."""
        return KINDS[self.kind].remedy

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "where": self.where,
            "kind": self.kind,
            "usable": self.usable,
            "storage": self.storage,
            "evidence": self.evidence.to_dict(),
            "found": list(self.found),
        }

    def __str__(self) -> str:
        head = f"{self.where}: {KINDS[self.kind].meaning}"
        size = f"{self.evidence.n_cells:,} cells x {self.evidence.n_columns:,} columns, {self.storage}"
        return "\n    ".join([head, size, str(self.evidence), *self.found])


@dataclass(frozen=True)
class CountReport:
    """Where the counts are, what the matrix holds and what is done with it.

    Parameters
    ----------
    where
        The matrix in use; None: none is usable.
    kind
        What it holds.
    candidates
        All matrices that were looked at.
    asked
        ``"layer='counts'"`` or the like; None: detected.
    """

    where: str | None
    kind: str | None
    candidates: tuple[Candidate, ...]
    asked: str | None = None

    @property
    def chosen(self) -> Candidate | None:
        """The matrix in use."""
        return next((c for c in self.candidates if c.where == self.where), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "where": self.where,
            "kind": self.kind,
            "asked": self.asked,
            "candidates": [c.to_dict() for c in self.candidates],
        }

    def __str__(self) -> str:
        if self.where is None:
            lines = ["no usable counts"]
        else:
            lines = [f"counts from {self.where} ({self.asked or 'detected'})"]
        lines += [f"  {'*' if c.where == self.where else '-'} {c}" for c in self.candidates]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)
