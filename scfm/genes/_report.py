"""How well do the genes of the data fit a model?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from scfm.genes._vocabulary import Duplicates

LOW_COVERAGE = 0.5
DUPLICATES = {"sum": "summed", "keep": "kept apart", "first": "only the first used", "mean": "averaged"}
Policy = Literal["resolve", "published"]


def counted(n: int, noun: str) -> str:
    """``"1 column"``, ``"2 columns"``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


class CoverageWarning(UserWarning):
    """Less than half of the counts belongs to genes that the model knows."""


@dataclass(frozen=True)
class MatchReport:
    """What `match` found; ``print`` it, or take `to_dict`.

    Parameters
    ----------
    policy
        The rules that were followed.
    gene_key
        Column of ``var`` that was used; ``"var_names"`` for the index.
    namespace
        What the names of the data are.
    species
        Species of the data as far as it is known, else ``"unknown"``.
    vocabulary_species, vocabulary_namespace
        The same of the vocabulary.
    vocabulary_size
        Tokens of the vocabulary, special ones included.
    n_vocabulary_genes
        Genes of the vocabulary.
    n_vars
        Columns of the data.
    n_matched
        Columns that have a token.
    n_genes
        Vocabulary genes with at least one column.
    n_duplicates
        Columns beyond the first of their vocabulary gene.
    duplicates
        What happens to them.
    duplicate_names
        A few vocabulary genes with several columns, each with their names in the data.
    how
        Number of matched columns by the way they were recognised.
    unmatched
        The first few names without a token.
    notes
        What a user should know, one sentence each.
    counts_matched, counts_total
        Sum of the counts of matched and of all columns, once known (see `with_counts`).
    """

    policy: Policy = "resolve"
    gene_key: str = "var_names"
    namespace: Literal["ensembl", "symbol", "mixed", "unknown"] = "unknown"
    species: str = "unknown"
    vocabulary_species: str = "unknown"
    vocabulary_namespace: Literal["ensembl", "symbol"] = "symbol"
    vocabulary_size: int = 0
    n_vocabulary_genes: int = 0
    n_vars: int = 0
    n_matched: int = 0
    n_genes: int = 0
    n_duplicates: int = 0
    duplicates: Duplicates = "sum"
    duplicate_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    how: Mapping[str, int] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counts_matched: float | None = None
    counts_total: float | None = None

    @property
    def gene_coverage(self) -> float:
        """Share of the vocabulary's genes that the data measures."""
        return self.n_genes / self.n_vocabulary_genes if self.n_vocabulary_genes else 0.0

    @property
    def count_coverage(self) -> float | None:
        """Share of the counts that belongs to matched columns; None before `with_counts` and for empty data."""
        if self.counts_matched is None or not self.counts_total:
            return None
        return self.counts_matched / self.counts_total

    def with_counts(self, matched: float, total: float) -> MatchReport:
        """The report completed by the counts of matched columns and of all columns.

        Warns
        -----
        CoverageWarning
            Less than half of the counts is matched.
        """
        report = replace(self, counts_matched=float(matched), counts_total=float(total))
        share = report.count_coverage
        if share is not None and share < LOW_COVERAGE:
            names = ", ".join(map(repr, self.unmatched[:5]))
            warnings.warn(
                f"only {share:.1%} of the counts belong to genes of the model ({self.n_matched:,} of {self.n_vars:,} "
                f"columns matched by {self.gene_key!r}; without a token are {names}, ...). Results may be poor: check "
                "the species, choose another column with gene_key=, and see print(report)",
                CoverageWarning,
                stacklevel=2,
            )
        return report

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types (dict, list, str, int, float, None)."""
        plain = asdict(self)
        plain["duplicate_names"] = {gene: list(names) for gene, names in self.duplicate_names.items()}
        plain["how"] = dict(self.how)
        plain["unmatched"] = list(self.unmatched)
        plain["notes"] = list(self.notes)
        return plain

    def __str__(self) -> str:
        lines = [
            f"genes matched by {self.gene_key!r} (policy {self.policy!r}): {self.n_matched:,} of {self.n_vars:,} columns, "
            f"{self.n_genes:,} of {self.n_vocabulary_genes:,} vocabulary genes ({self.gene_coverage:.1%})",
            f"  data: {self.species}, {self.namespace} names; "
            f"vocabulary: {self.vocabulary_species}, {self.vocabulary_namespace} names",
        ]
        if self.how:
            lines.append("  how: " + ", ".join(f"{label} {n:,}" for label, n in self.how.items()))
        if self.count_coverage is not None:
            lines.append(f"  counts: {self.count_coverage:.1%} of {self.counts_total:,.0f} belong to matched columns")
        if self.n_duplicates:
            shown = "; ".join(f"{gene} <- {', '.join(names)}" for gene, names in self.duplicate_names.items())
            lines.append(
                f"  several columns of one gene: {counted(self.n_duplicates, 'more column')} than genes, {DUPLICATES[self.duplicates]} ({shown})"
            )
        if self.unmatched:
            n = self.n_vars - self.n_matched
            lines.append(
                f"  without a token: {counted(n, 'column')} ({', '.join(self.unmatched)}{', ...' if n > len(self.unmatched) else ''})"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
