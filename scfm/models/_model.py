"""A loaded model: tokenizer, transformer, vocabulary and card, usable stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import CheckpointError, ConfigError, GeneMatchError
from scfm.genes import GeneVocabulary
from scfm.models._card import ModelCard
from scfm.models._reading import read_json
from scfm.models._run import Budget, run, to_numpy
from scfm.tokenizers import Tokenizer, Tokens
from scfm.transformer import CellTransformer, CellTransformerConfig, PackedBatch, choose

MODEL_FILE = "scfm_model.json"


@dataclass(frozen=True)
class GeneVectors:
    """Vectors of genes.

    Parameters
    ----------
    ids
        (g,) vocabulary ids, ascending.
    vectors
        (g, d) float32.
    n_cells
        (g,) cells behind each vector; 0 for input vectors.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    n_cells: NDArray[np.int64]


class GeneSums:
    """Running sums of contextual gene vectors, over the cells in which a gene is a token.

    Parameters
    ----------
    n_ids
        Size of the vocabulary.
    width
        Length of a token's state.
    """

    def __init__(self, n_ids: int, width: int) -> None:
        self.shape = (n_ids, width)
        self.sums: dict[int, NDArray[np.float64]] = {}
        self.counts: dict[int, NDArray[np.int64]] = {}

    def add(self, tokens: Tokens, hidden: Tensor, groups: NDArray[np.integer[Any]] | None = None) -> None:
        """Add the states (T, d) of tokens; ``groups`` (n,) is each cell's group, -1 for none."""
        n_ids = self.shape[0]
        codes = np.zeros(len(tokens), dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
        of_token = np.repeat(codes, tokens.lengths)
        pairs, back = np.unique(of_token * n_ids + tokens.ids, return_inverse=True)
        index = torch.as_tensor(back).to(hidden.device)
        sums = torch.zeros(len(pairs), hidden.shape[-1], device=hidden.device).index_add(0, index, hidden.float())
        counts = np.bincount(back, minlength=len(pairs))
        values = to_numpy(sums)
        for group in np.unique(codes[codes >= 0]).tolist():
            here = pairs // n_ids == group
            ids = pairs[here] % n_ids
            self.sums.setdefault(group, np.zeros(self.shape))[ids] += values[here]
            self.counts.setdefault(group, np.zeros(n_ids, dtype=np.int64))[ids] += counts[here]

    def merge(self, other: GeneSums) -> None:
        """Add what was collected elsewhere."""
        for group, sums in other.sums.items():
            self.sums.setdefault(group, np.zeros(self.shape))[:] += sums
            self.counts.setdefault(group, np.zeros(self.shape[0], dtype=np.int64))[:] += other.counts[group]

    def finish(self, group: int = 0) -> GeneVectors:
        """Means of the genes that occurred in a group."""
        if group not in self.sums:
            return GeneVectors(np.zeros(0, np.int64), np.zeros((0, self.shape[1]), np.float32), np.zeros(0, np.int64))
        counts = self.counts[group]
        ids = np.flatnonzero(counts)
        vectors = self.sums[group][ids] / counts[ids, None]
        return GeneVectors(ids, vectors.astype(np.float32), counts[ids])


@dataclass(eq=False)
class FoundationModel:
    """A model that is ready to use.

    Parameters
    ----------
    transformer
        The network.
    tokenizer
        Makes tokens of counts.
    card
        What is known of it.
    labels
        Names of the outputs of heads, where the checkpoint tells them.
    notes
        What was noticed on reading: ignored tensors with reasons.

    Examples
    --------
    >>> import scfm
    >>> model = scfm.models.load("scfm-mini")
    >>> model.card.name
    'scfm-mini'
    """

    transformer: CellTransformer
    tokenizer: Tokenizer
    card: ModelCard
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.transformer.eval()

    def __repr__(self) -> str:
        return (
            f"FoundationModel({self.card.name}: {self.transformer.n_layers} layers, width {self.transformer.width}, "
            f"{len(self.vocabulary):,} tokens, on {self.device}, {self.dtype})"
        )

    @property
    def config(self) -> CellTransformerConfig:
        """The network's configuration."""
        return self.transformer.config

    @property
    def vocabulary(self) -> GeneVocabulary:
        """The tokens the model knows."""
        return self.tokenizer.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.transformer.parameters()).dtype

    @property
    def heads(self) -> dict[str, Head]:
        """The outputs by name, each callable on tokens."""
        return {name: Head(self, name) for name in self.transformer.heads}

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> FoundationModel:
        """Move to a device, precision and attention implementation; returns itself."""
        chosen_dtype = resolve_dtype(dtype) or self.dtype
        chosen = resolve_device(device, self.device)
        if chosen.type == "mps" and chosen_dtype != torch.float32:
            raise ConfigError(f"on Apple's MPS only float32 is supported, not {chosen_dtype}; pass dtype='float32'")
        self.transformer.to(device=chosen, dtype=chosen_dtype)
        self.config._attn_implementation = choose(attn_implementation, chosen, chosen_dtype)
        return self

    def tokenize(self, adata: Any, **options: Any) -> Tokens:
        """Tokens of the cells of an AnnData or file; see `scfm.tokenizers.Tokenizer`."""
        return self.tokenizer(adata, **options)

    def hidden_states(self, tokens: Tokens, layers: Iterable[int] | None = None) -> dict[int, NDArray[np.float32]]:
        """States of every token.

        Parameters
        ----------
        tokens
            Of this model's tokenizer.
        layers
            0 (after the input terms) to ``n_layers``; -1: the final state, after final norms and output map.
            None: all of them.

        Returns
        -------
        (T, width) float32 per layer, in the order of ``tokens``.
        """
        n = self.transformer.n_layers
        wanted = [*range(n + 1), -1] if layers is None else list(layers)
        inner = [k for k in wanted if k != -1]

        def compute(batch: PackedBatch) -> dict[int, Tensor]:
            if -1 not in wanted:
                return self.transformer.hidden_states(batch, inner).layers
            states = self.transformer.hidden_states(batch)
            kept = {k: states.layers[k] for k in inner}
            return kept if states.final is None else {**kept, -1: states.final}

        out: dict[int, NDArray[np.float32]] = {}
        for cells, _part, states in self._run(tokens, compute):
            at = _token_index(tokens, cells)
            for k, x in states.items():
                if k not in out:
                    out[k] = np.full((tokens.n_tokens, x.shape[-1]), np.nan, dtype=np.float32)
                out[k][at] = to_numpy(x)
        return out

    def embed_cells(
        self,
        tokens: Tokens,
        pooling: str | None = None,
        hidden_layer: int | None = None,
        *,
        batch_tokens: int | Literal["auto"] = "auto",
        genes: GeneSums | None = None,
    ) -> NDArray[np.float32]:
        """One vector per cell.

        Parameters
        ----------
        tokens
            Of this model's tokenizer.
        pooling
            A read-out of the model (``model.config.readouts``); None: its default.
        hidden_layer
            0 to ``n_layers``, negative from the last; None: the model's default.
        batch_tokens
            Tokens per batch.
        genes
            Collects contextual gene vectors of the same pass.

        Returns
        -------
        (n, d) float32; NaN rows for cells without a gene token.
        """
        budget = Budget(batch_tokens, self.device)
        return self.embed_block(tokens, budget, pooling, hidden_layer, genes)

    def embed_block(
        self,
        tokens: Tokens,
        budget: Budget,
        pooling: str | None = None,
        hidden_layer: int | None = None,
        genes: GeneSums | None = None,
        groups: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.float32]:
        """As `embed_cells`, with a budget that is shared between blocks, and the group of each cell for ``genes``."""
        model = self.transformer
        spec = model.readout(pooling)

        def compute(batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
            if genes is None:
                return model.embed(batch, pooling, hidden_layer), None
            hidden = model.state(batch, hidden_layer)
            return model.pool(hidden, batch, spec), hidden

        out: NDArray[np.float32] | None = None
        has_genes = np.asarray(tokens.per_cell["n_detected"]) > 0 if "n_detected" in tokens.per_cell else None
        kept = tokens if has_genes is None or has_genes.all() else tokens[has_genes]
        rows = np.arange(len(tokens)) if has_genes is None else np.flatnonzero(has_genes)
        for cells, part, (vectors, hidden) in run(kept, compute, budget, self.device):
            if out is None:
                out = np.full((len(tokens), vectors.shape[-1]), np.nan, dtype=np.float32)
            out[rows[cells]] = to_numpy(vectors)
            if genes is not None and hidden is not None:
                genes.add(part, hidden, None if groups is None else groups[rows[cells]])
        if out is None:
            return np.full((len(tokens), self.embedding_width(pooling, hidden_layer)), np.nan, dtype=np.float32)
        return out

    def embedding_width(self, pooling: str | None = None, hidden_layer: int | None = None) -> int:
        """Length of a cell vector."""
        spec = self.transformer.readout(pooling)
        return len(spec.parts) * self.state_width(hidden_layer)

    def state_width(self, hidden_layer: int | None = None) -> int:
        """Length of a token's state at the layer that a read-out reads."""
        output = self.config.output_spec
        final = self.transformer.layer_number(hidden_layer) is None
        return output.widths[-1] if final and output is not None else self.transformer.width

    def embed_genes(
        self,
        tokens: Tokens | None = None,
        kind: Literal["contextual", "input"] = "contextual",
        hidden_layer: int | None = None,
    ) -> GeneVectors:
        """Gene vectors.

        Parameters
        ----------
        tokens
            Cells to average over, for ``contextual``.
        kind
            ``contextual``: the mean state of the gene's token over the cells that have it (special tokens
            too); ``input``: the model's own vector of the gene, before any context.
        hidden_layer
            As in `embed_cells`.

        Raises
        ------
        ConfigError
            If contextual vectors are asked for without tokens.
        """
        if kind == "input":
            ids = np.arange(len(self.vocabulary))
            with torch.inference_mode():
                vectors = to_numpy(self.transformer.gene_rows(torch.as_tensor(ids).to(self.device)))
            return GeneVectors(ids, vectors, np.zeros(len(ids), dtype=np.int64))
        if tokens is None:
            raise ConfigError("contextual gene vectors are averages over cells: pass tokens, or kind='input'")
        sums = GeneSums(len(self.vocabulary), self.state_width(hidden_layer))
        for _cells, part, hidden in self._run(tokens, lambda b: self.transformer.state(b, hidden_layer)):
            sums.add(part, hidden)
        return sums.finish()

    def _run(self, tokens: Tokens, function: Any) -> Iterator[Any]:
        return run(tokens, function, Budget("auto", self.device), self.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write our own layout: config.json, model.safetensors, tokenizer and vocabulary files, card."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.transformer.save_pretrained(folder)
        self.tokenizer.save(folder)
        about = {"card": self.card.to_dict(), "labels": {k: list(v) for k, v in self.labels.items()}}
        (folder / MODEL_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FoundationModel:
        """Read what `save_pretrained` wrote."""
        folder = Path(folder)
        about = read_json(folder / MODEL_FILE)
        transformer, report = CellTransformer.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        wrong = {what: sorted(names) for what, names in report.items() if names and what.endswith("_keys")}
        if wrong:
            raise CheckpointError(f"{folder / 'model.safetensors'} does not fit its config.json: {wrong}")
        return cls(transformer, Tokenizer.load(folder), ModelCard.from_dict(about["card"]), about["labels"])


@dataclass(frozen=True)
class Head:
    """One output of a model, callable on tokens."""

    model: FoundationModel
    name: str

    @property
    def labels(self) -> Sequence[str] | None:
        """Names of its outputs, where the checkpoint tells them."""
        return self.model.labels.get(self.name)

    def __call__(self, tokens: Tokens, cells: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The output for every token (T, k) or every cell (n, k).

        Parameters
        ----------
        tokens
            Of the model's tokenizer.
        cells
            (n, d) cell vectors, for a head on pairs of cell and gene; None: from its own read-out.
        """
        model, spec = self.model.transformer, self.model.config.head_specs[self.name]
        per_cell = spec.feed == "cells"
        out: NDArray[np.float32] | None = None

        for rows, _part, batch in run(tokens, lambda b: b, Budget("auto", self.model.device), self.model.device):
            given = None if cells is None else torch.as_tensor(cells[rows]).to(self.model.device)
            with torch.inference_mode():
                result = to_numpy(model.head(self.name, batch, given))
            if out is None:
                n = len(tokens) if per_cell else tokens.n_tokens
                out = np.full((n, result.shape[-1]), np.nan, dtype=np.float32)
            out[rows if per_cell else _token_index(tokens, rows)] = result
        if out is None:
            raise ConfigError("there are no tokens to apply a head to")
        return out


def _token_index(tokens: Tokens, cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T',) places on the packed axis of the tokens of some cells."""
    return np.concatenate([np.arange(tokens.offsets[c], tokens.offsets[c + 1]) for c in cells])


def resolve_device(device: str | torch.device | None, current: torch.device | None = None) -> torch.device:
    """The device asked for, or the best one at hand.

    Raises
    ------
    ConfigError
        If the device is not there.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    chosen = torch.device(device)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(chosen.type, True)
    if not there:
        raise ConfigError(
            f"device={str(device)!r} was asked for, but torch {torch.__version__} sees no such device here"
        )
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by name.

    Raises
    ------
    ConfigError
        If the name is not a floating precision.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise ConfigError(f"dtype={dtype!r} is not one of {', '.join(names)}")
    return names[dtype]


def gene_ids(vocabulary: GeneVocabulary, genes: Sequence[str]) -> list[int]:
    """Vocabulary ids of genes by name or symbol.

    Raises
    ------
    GeneMatchError
        If a gene is not in the vocabulary.
    """
    by_symbol = {s: i for i, s in enumerate(vocabulary.symbols or ()) if s}
    found = [vocabulary.index.get(g, by_symbol.get(g)) for g in genes]
    unknown = [g for g, i in zip(genes, found, strict=True) if i is None]
    if unknown:
        raise GeneMatchError(f"{len(unknown)} genes are not in the vocabulary: {', '.join(unknown[:5])}")
    return [i for i in found if i is not None]
