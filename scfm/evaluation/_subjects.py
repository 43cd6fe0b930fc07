"""What is compared? Models, embeddings that are there already, baselines, and what is made of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfm import genes
from scfm.counts import CountBlock
from scfm.errors import ConfigError
from scfm.evaluation._baselines import Baseline, Fitted, harmony
from scfm.evaluation._cells import BLOCK_ROWS, Part
from scfm.evaluation._scores import Codes
from scfm.genes import GeneMatch
from scfm.models import FoundationModel
from scfm.models._device import peak_memory_gb
from scfm.models._stream import Job, embed_blocks

Kind = Literal["model", "embedding", "baseline", "aligned", "control"]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Cost:
    """What an embedding took.

    Parameters
    ----------
    seconds
        For the evaluated cells, fitting included; NaN for embeddings that were there.
    cells_per_second
        Cells by seconds.
    peak_memory_gb
        Highest memory of the process, or of the GPU, up to then; NaN where the system does not tell.
    device
        Where it ran.
    """

    seconds: float
    cells_per_second: float
    peak_memory_gb: float
    device: str


NO_COST = Cost(float("nan"), float("nan"), float("nan"), "")


@dataclass(frozen=True, eq=False)
class Cells:
    """The evaluated cells as the subjects see them.

    Parameters
    ----------
    parts
        With their counts, in the order of the cells.
    batch
        (n,) codes.
    counts
        (n, g) counts on the common genes.
    rows
        (n,) numbers of the cells among all cells of the data.
    seed
        Of what is random.
    """

    parts: Sequence[Part]
    batch: Codes
    counts: Any
    rows: NDArray[np.int64]
    seed: int


@dataclass(frozen=True, eq=False)
class Altered:
    """Some altered cells.

    Parameters
    ----------
    number
        Of their part.
    block
        Their counts.
    kept
        (g,) common genes of the panel; None: all.
    """

    number: int
    block: CountBlock
    kept: NDArray[np.bool_] | None


class Subject(ABC):
    """Something that gives each cell a vector.

    Parameters
    ----------
    name
        As in the report.
    kind
        What it is.
    corpus
        What it was trained on; a mapping (see `leakage`), or a word for the column instead.
    note
        What a reader should know.
    n_known
        Evaluated cells whose very counts were in the corpus, where the model can tell.
    """

    name: str
    kind: Kind
    corpus: Mapping[str, Any] | str | None = None
    note: str = ""
    n_known: int = 0

    @abstractmethod
    def embed(self, cells: Cells) -> tuple[Vectors, Cost]:
        """(n, d) vectors of the evaluated cells, and what they took."""

    @property
    def can_be_stressed(self) -> bool:
        """Whether altered cells can be embedded."""
        return False

    def stressed(self, cells: Cells, altered: Altered, made: Mapping[str, Vectors]) -> Vectors:
        """(m, d) vectors of some altered cells.

        Parameters
        ----------
        cells
            The evaluated cells.
        altered
            Counts of some of them, altered.
        made
            What the subjects before this one made of these cells.
        """
        raise ConfigError(f"{self.name} cannot embed altered cells")


class OfModel(Subject):
    """A foundation model; each part is embedded with its own genes.

    Parameters
    ----------
    name, model, kind
        What it is.
    options
        ``gene_key`` and ``orthologues`` as for `scfm.tl.embed`; ``contexts``: tokenizer options per part, a value or one
        per cell of the part; ``starts``: number of the first cell of each part; the rest goes to `Job`.
    """

    def __init__(self, name: str, model: FoundationModel, kind: Kind, **options: Any) -> None:
        self.name, self.kind, self.model = name, kind, model
        self.corpus = model.card.details.get("corpus")
        self.gene_key: str | None = options.pop("gene_key", None)
        self.orthologues: Any = options.pop("orthologues", None)
        self.contexts: Sequence[Mapping[str, Any]] = options.pop("contexts", ())
        self.starts: Sequence[int] = options.pop("starts", (0,))
        self.options = options

    def match_of(self, part: Part) -> GeneMatch:
        """Token of each column of a part."""
        if part.name not in self._known:
            var, vocabulary = part.source.var, self.model.vocabulary
            self._known[part.name] = genes.match(var, vocabulary, gene_key=self.gene_key, orthologues=self.orthologues)
        return self._known[part.name]

    def embed(self, cells: Cells) -> tuple[Vectors, Cost]:
        """Part by part."""
        begin = time.perf_counter()
        jobs = [self._job(cells, number) for number in range(len(cells.parts))]
        made = [embed_blocks(self.model, part.source.blocks(BLOCK_ROWS), job) for part, job in jobs]
        x = np.concatenate([m.cells for m in made])
        prints = [m.per_cell["fingerprint"] for m in made if "fingerprint" in m.per_cell]
        if self.model.seen is not None and prints:
            self.n_known = int(np.isin(np.concatenate(prints), self.model.seen).sum())
        return x, cost(begin, len(x), self.model.device)

    @property
    def can_be_stressed(self) -> bool:
        """Always."""
        return True

    def stressed(self, cells: Cells, altered: Altered, made: Mapping[str, Vectors]) -> Vectors:
        """By way of the tokenizer; genes outside a panel have no token."""
        part, job = self._job(cells, altered.number)
        if altered.kept is not None:
            measured = np.zeros(part.source.shape[1], dtype=bool)
            measured[part.common[altered.kept]] = True
            columns = np.where(measured, job.match.columns, -1).astype(np.int32)
            job = replace(job, match=replace(job.match, columns=columns))
        return embed_blocks(self.model, [altered.block], job).cells

    def _job(self, cells: Cells, number: int) -> tuple[Part, Job]:
        part = cells.parts[number]
        context = self.contexts[part.number] if self.contexts else {}
        here = cells.rows[part.rows] - self.starts[part.number]
        facts = {name: v[here] if np.ndim(v) else v for name, v in context.items()}
        return part, Job(match=self.match_of(part), context=facts, seed=cells.seed, **self.options)

    @cached_property
    def _known(self) -> dict[str, GeneMatch]:
        return {}


class OfArray(Subject):
    """Vectors that are there already."""

    def __init__(self, name: str, vectors: NDArray[Any], kind: Kind = "embedding") -> None:
        self.name, self.kind, self.vectors = name, kind, vectors

    def embed(self, cells: Cells) -> tuple[Vectors, Cost]:
        """Those of the evaluated cells."""
        return np.asarray(self.vectors[cells.rows], dtype=np.float32), NO_COST


class OfBaseline(Subject):
    """A baseline, fitted on the evaluated cells."""

    kind: Kind = "baseline"

    def __init__(self, baseline: Baseline) -> None:
        self.name, self.baseline = baseline.title, baseline
        self.corpus = baseline.knows
        self.fitted: Fitted | None = None

    def embed(self, cells: Cells) -> tuple[Vectors, Cost]:
        """Fit."""
        begin = time.perf_counter()
        self.fitted = self.baseline.fit(cells.counts, cells.batch, cells.seed)
        self.note = self.fitted.note
        return self.fitted.cells, cost(begin, len(self.fitted.cells), "cpu")

    @property
    def can_be_stressed(self) -> bool:
        """Where the method can project cells that it was not fitted on."""
        return self.fitted is not None and self.fitted.project is not None

    def stressed(self, cells: Cells, altered: Altered, made: Mapping[str, Vectors]) -> Vectors:
        """Projected on the axes of the unaltered cells."""
        if self.fitted is None or self.fitted.project is None:
            return super().stressed(cells, altered, made)
        return self.fitted.project(cells.parts[altered.number].shared_counts(altered.block), altered.kept)


class OfAlignment(Subject):
    """Another subject's vectors, corrected for the batch."""

    kind: Kind = "aligned"

    def __init__(self, base: Subject, base_vectors: Vectors, method: str) -> None:
        self.name, self.base, self.base_vectors, self.method = f"{base.name} + {method}", base, base_vectors, method
        self.corpus = base.corpus

    def embed(self, cells: Cells) -> tuple[Vectors, Cost]:
        """Correct."""
        begin = time.perf_counter()
        x = aligned(self.base_vectors, cells.batch, self.method, cells.seed)
        self.moved = x - self.base_vectors
        return x, cost(begin, len(x), "cpu")

    @property
    def can_be_stressed(self) -> bool:
        """Where cells can be corrected that were not there: centring, not Harmony."""
        return self.method == "center" and self.base.can_be_stressed

    def stressed(self, cells: Cells, altered: Altered, made: Mapping[str, Vectors]) -> Vectors:
        """What the base made of them, moved as the unaltered cells of the batch were."""
        rows = cells.parts[altered.number].rows
        here = rows[altered.block.start : altered.block.start + altered.block.n_cells]
        return made[self.base.name] + self.moved[here]


def aligned(x: NDArray[Any], batch: Codes, method: str, seed: int = 0) -> Vectors:
    """A corrected copy of vectors.

    Parameters
    ----------
    x
        (n, d); NaN rows stay NaN.
    batch
        (n,) codes.
    method
        ``center``: each batch's mean is subtracted, so that directions are seen from there; ``harmony``: see `harmony`.
    seed
        Of Harmony.
    """
    out = np.asarray(x, dtype=np.float32).copy()
    there = ~np.isnan(out).any(axis=1)
    if method == "harmony":
        out[there] = harmony(out[there], batch[there], seed)
        return out
    for code in np.unique(batch[there]):
        here = there & (batch == code)
        out[here] -= out[here].mean(axis=0)
    return out


def cost(begin: float, n: int, device: Any) -> Cost:
    """What was needed since ``begin`` (`time.perf_counter`) for n cells."""
    seconds = time.perf_counter() - begin
    memory = peak_memory_gb(device)
    return Cost(seconds, n / max(seconds, 1e-9), float("nan") if memory is None else memory, str(device))
