"""Is this model, on this machine, what it was when it was published and tested?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scfm.counts import CountBlock
from scfm.genes import GeneMatch, MatchReport
from scfm.models._card import ModelCard
from scfm.models._model import FoundationModel
from scfm.models._recorded import recorded
from scfm.models._registry import cards, load, locate
from scfm.tokenizers import Tokens

N_CELLS = 8
MOST_GENES = 512
SEED = 0


@dataclass(frozen=True)
class Limits:
    """How far two computations of the same vectors may be apart.

    Parameters
    ----------
    difference
        Largest difference, relative to the largest value.
    cosine
        Smallest cosine of a cell's two vectors.
    """

    difference: float
    cosine: float


LIMITS = {
    torch.float32: Limits(1e-4, 0.99999),
    torch.bfloat16: Limits(0.2, 0.999),
    torch.float16: Limits(0.05, 0.9999),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    what
        In a few words.
    outcome
        ``pass``, ``fail``, or ``skip`` where there is nothing to compare with.
    found
        What was found.
    """

    what: str
    outcome: Literal["pass", "fail", "skip"]
    found: str


@dataclass(frozen=True)
class Verification:
    """What was looked at; prints as one line per check.

    Parameters
    ----------
    model
        Name.
    checks
        In the order in which they were made.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.outcome != "fail" for check in self.checks)

    def __str__(self) -> str:
        width = max((len(check.what) for check in self.checks), default=0)
        lines = [f"{check.outcome.upper():4}  {check.what:{width}}  {check.found}" for check in self.checks]
        n_failed = sum(check.outcome == "fail" for check in self.checks)
        end = f"{self.model}: {n_failed} of {len(self.checks)} checks FAILED" if n_failed else f"{self.model}: verified"
        return "\n".join([*lines, end])

    __repr__ = __str__


def verify(
    name_or_path: str | Path,
    family: str | None = None,
    revision: str | None = None,
    checkpoint: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> Verification:
    """Check the files of a model, its tokens, and its numbers on this device.

    Parameters
    ----------
    name_or_path, family, revision, checkpoint
        See `load`.
    device, dtype, attn_implementation
        What is compared with the CPU, float32 and attention written out.

    Raises
    ------
    ConfigError, CheckpointError
        If the model cannot be loaded.
    """
    path, _family = locate(name_or_path, family, revision)
    model = load(name_or_path, family, revision, checkpoint)
    asked = cards().get(str(name_or_path))
    checks = (
        *check_files(path, asked or model.card, by_name=asked is not None),
        *check_tokens(model),
        check_numbers(model, device, dtype, attn_implementation),
    )
    return Verification(model.card.name, checks)


def check_files(path: Path, card: ModelCard, *, by_name: bool = True) -> Iterator[Check]:
    """SHA-256 of the files whose sums the card knows.

    Parameters
    ----------
    path
        Folder of the model.
    card
        With the published sums.
    by_name
        Whether the registered model was asked for; other files in a folder may be a fine-tuned model of the same size.
    """
    if not card.checksums:
        yield Check("files", "skip", f"no checksums are known for {card.name}")
    for name, expected in card.checksums.items():
        what = f"file {name}"
        if not (path / name).is_file():
            yield Check(what, "skip", f"not in {path}; the model was read from another file")
            continue
        found = sha256(path / name)
        if found == expected:
            yield Check(what, "pass", f"SHA-256 {found[:12]}... as published")
        elif by_name:
            yield Check(what, "fail", f"SHA-256 {found[:12]}..., published is {expected[:12]}...; fetch the file again")
        else:
            yield Check(what, "skip", f"not the file published as {card.name} (fine-tuned?)")


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tokens(model: FoundationModel) -> Iterator[Check]:
    """Tokens of recorded cells."""
    records = recorded(model.card.family)
    if not records:
        yield Check("tokens", "skip", f"no tokens are recorded for the family {model.card.family}")
    for record in records:
        wrong = record.difference(model.tokenizer)
        size = f"{len(record.tokens)} cells, {record.tokens.n_tokens} tokens"
        found = wrong or f"{size}: equal to those of {record.origin}"
        yield Check(f"tokens {record.name}", "fail" if wrong else "pass", found)


def check_numbers(
    model: FoundationModel,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> Check:
    """Vectors of made-up cells here against those of the CPU in float32 with attention written out.

    The model ends on the device in the precision that was asked for.
    """
    tokens = made_up_tokens(model)
    model.to("cpu", "float32", "eager")
    reference = model.embed_cells(tokens)
    model.to(device, dtype, attn_implementation)
    ours = model.embed_cells(tokens)
    limits = LIMITS[model.dtype]
    difference, cosine = distance(ours, reference)
    # written so that NaN fails
    good = difference <= limits.difference and cosine >= limits.cosine
    attention = str(model.config._attn_implementation).removeprefix("packed_")
    where = f"{model.device}, {str(model.dtype).removeprefix('torch.')}, {attention}"
    return Check(
        f"numbers on {where}",
        "pass" if good else "fail",
        f"against CPU float32 eager: largest difference {difference:.1e} of the scale (limit {limits.difference:.0e}), "
        f"smallest cosine {cosine:.6f} (limit {limits.cosine})",
    )


def distance(ours: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Largest difference relative to the reference's scale, and smallest cosine of two rows.

    Parameters
    ----------
    ours, reference
        (n, d)
    """
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    scale = max(float(np.abs(b).max()), 1e-12)
    cosines = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return float(np.abs(a - b).max()) / scale, float(cosines.min())


def made_up_tokens(model: FoundationModel) -> Tokens:
    """Tokens of a few made-up cells of different sizes, with genes of the model."""
    rng = np.random.default_rng(SEED)
    ids = np.flatnonzero(model.vocabulary.is_gene).astype(np.int32)
    most = min(MOST_GENES, len(ids))
    sizes = np.unique(np.linspace(max(1, most // 8), most, N_CELLS).astype(int))
    columns = [np.sort(rng.choice(len(ids), size, replace=False)) for size in sizes]
    block = CountBlock(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(columns).astype(np.int32),
        rng.geometric(0.3, sizes.sum()).astype(np.float32),
        len(ids),
    )
    match = GeneMatch(ids, "sum", MatchReport(vocabulary_size=len(model.vocabulary)))
    options = model.tokenizer.context_options.items()
    needed = {n: next(iter(o.ids), 1.0) for n, o in options if o.default is None and not o.optional}
    return model.tokenizer.tokenize_block(block, match, context=needed, seed=SEED)
