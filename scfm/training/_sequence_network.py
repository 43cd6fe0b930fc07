"""How is a sequence model seen by fine-tuning? As one more model with heads, whose tokens are letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from scfm.errors import ConfigError
from scfm.models import ModelCard
from scfm.models._fasta import read_sequences
from scfm.models._run import to_batch, to_numpy
from scfm.models._sequence_model import NOT_READ, Located, locate, states, states_of_layers
from scfm.models._sequences import POOLED, Piece, Pooling, SequenceEncoder, SequenceJob, key_of_letters
from scfm.tokenizers import Tokens
from scfm.training._finetune_cells import HeldCells
from scfm.training._index import CellIndex, Column
from scfm.transformer import HeadSpec, PackedBatch
from scfm.transformer._heads import Head

READ_TOKENS = 8192


class SequenceNetwork(nn.Module):
    """A network of transformers with heads on its sequence vectors; takes the place of a `CellTransformer` in tuning.

    Parameters
    ----------
    encoder
        With the network, in float32.
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.network: nn.Module = encoder.model
        self.heads = nn.ModuleDict()
        self._encoder = encoder
        self._layers = _layers_of(self.network)
        # asked now, before dropout makes two passes differ
        self._safe_padding = encoder.is_padding_safe(encoder.speller.ids("ACGT" * 16))

    @property
    def n_layers(self) -> int:
        """Layers that are one list in the network; 0 where there is none."""
        return 0 if self._layers is None else len(self.network.get_submodule(self._layers))  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def layer_number(self, layer: int) -> int:
        """0 (the embeddings) to the last, of a number that may be counted from the end.

        Raises
        ------
        ConfigError
            If there is no such layer.
        """
        n = self.n_layers
        if not -n - 1 <= layer <= n:
            raise ConfigError(f"there is no layer {layer}; the model has the layers 0 (embeddings) to {n}")
        return layer % (n + 1)

    def state_width(self, layer: int) -> int:
        """Width of the states."""
        return int(self.network.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def add_heads(self, specs: dict[str, HeadSpec]) -> None:
        """Heads with new weights."""
        for name, spec in specs.items():
            self.heads[name] = Head(spec, 0).to(self.device)

    def head(self, name: str, batch: PackedBatch, cells: Tensor) -> Tensor:
        """(n, outputs) of sequence vectors."""
        return self.heads[name](cells)

    def embed(self, batch: PackedBatch, pooling: str | None = None, layer: int | None = None) -> Tensor:
        """(n, d) vectors of n sequences, from the final state."""
        return self._vectors(
            batch, [pooling or self._encoder.job.pooling], lambda ids, mask: [states(self.network, ids, mask, None)]
        )[0]

    def layer_vectors(self, batch: PackedBatch, layers: Sequence[int], poolings: Sequence[str]) -> list[Tensor]:
        """(n, d) vectors by pooling and layer, from one pass; layer 0 is the embeddings."""
        return self._vectors(batch, poolings, lambda ids, mask: states_of_layers(self.network, ids, mask, layers))

    def _vectors(
        self, batch: PackedBatch, poolings: Sequence[str], read: Callable[[Tensor, Tensor], list[Tensor]]
    ) -> list[Tensor]:
        pieces = self._pieces(batch)
        lengths = np.array([len(p.ids) for p in pieces])
        groups = [np.arange(len(pieces))]
        if not self._safe_padding:
            groups = [np.flatnonzero(lengths == n) for n in np.unique(lengths)]
        found: list[list[Tensor]] = []
        for group in groups:
            some = [pieces[i] for i in group]
            ids, mask = self._encoder.padded(some, int(lengths[group].max()))
            hidden = read(ids, mask)
            found.append([_divided(*POOLED[name](x, some)) for name in poolings for x in hidden])
        back = torch.as_tensor(np.argsort(np.concatenate(groups)), device=self.device)
        return [torch.cat(parts)[back] for parts in zip(*found, strict=True)]

    def _pieces(self, batch: PackedBatch) -> list[Piece]:
        before, behind = map(len, self._encoder.around)
        ids, bounds = batch.channels["ids"].tolist(), batch.segments.bounds
        return [Piece("", tuple(ids[a:b]), before, b - a - behind, True) for a, b in pairwise(bounds)]

    # what moves

    def adapted(self, method: str, n_frozen: int) -> list[str]:
        """Names of the maps of the layers that adapters are put into.

        Raises
        ------
        ConfigError
            If there is no adapter of that kind for this network.
        """
        if method != "lora":
            raise ConfigError(f"method={method!r} is for models of cells; for sequence models there is 'lora'")
        if not getattr(self.network.config, "num_attention_heads", None):
            raise ConfigError(
                "method='lora' is for networks with attention: this one uses its weights in other ways than as maps of its "
                "states; use 'full', 'freeze' or 'head'"
            )
        return [
            f"network.{self._layers}.{k}.{name}"
            for k in range(n_frozen, self.n_layers)
            for name, module in self.network.get_submodule(f"{self._layers}.{k}").named_modules()
            if isinstance(module, nn.Linear)
        ]

    def moving(self, n_frozen: int) -> list[nn.Parameter]:
        """Parameters of the layers above ``n_frozen`` and of what follows the layers; with 0 of everything that is read."""
        skipped = tuple(part.removesuffix(".") for part in NOT_READ)
        named = {k: p for k, p in self.network.named_parameters() if not set(k.split(".")) & set(skipped)}
        if n_frozen == 0:
            return [*named.values()]
        parent, _, own = str(self._layers).rpartition(".")
        children = [name for name, _ in self.network.get_submodule(parent).named_children()]
        after = children[children.index(own) + 1 :]
        starts = [f"{self._layers}.{k}." for k in range(n_frozen, self.n_layers)]
        starts += [f"{parent}.{name}." if parent else f"{name}." for name in after]
        return [p for k, p in named.items() if k.startswith(tuple(starts))]


def _layers_of(network: nn.Module) -> str | None:
    """Name of the list of modules that holds most of the weights."""
    lists = {name: m for name, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    return max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()), default=None)


def _divided(sums: Tensor, counts: Tensor) -> Tensor:
    return sums / counts[:, None]


@dataclass(frozen=True)
class _Kept:
    """What an encoder of cells is to a batch: tokens are kept as they are."""

    keep: ClassVar[Literal["tokens"]] = "tokens"


@dataclass(frozen=True)
class _Channels:
    cell_channels: tuple[str, ...] = ()


@dataclass(eq=False)
class SequenceModel:
    """A sequence model that can be tuned: what fine-tuning asks of a `FoundationModel`.

    Parameters
    ----------
    transformer
        Its network and heads.
    found
        Its files.
    encoder
        Spells letters and cuts sequences.
    card
        Name and family.
    """

    transformer: SequenceNetwork
    found: Located
    encoder: SequenceEncoder
    card: ModelCard
    config: _Channels = field(default_factory=_Channels)

    @classmethod
    def open(
        cls,
        model: str | Path,
        pooling: str | None,
        too_long: Literal["truncate", "error"],
        max_tokens: int | None,
        *,
        device: torch.device,
        revision: str | None = None,
    ) -> SequenceModel:
        """Load a sequence model in float32; arguments as for `scfm.tl.embed_sequences`.

        Raises
        ------
        CheckpointError
            If the model is missing, incomplete, or needs code of its own.
        ConfigError
            If an argument is impossible.
        """
        if too_long not in ("truncate", "error"):
            raise ConfigError(
                f"too_long={too_long!r}: a sequence is learnt from at once, so choose 'truncate' (its beginning) or 'error'"
            )
        if pooling not in (None, *POOLED):
            raise ConfigError(f"pooling={pooling!r} is not one of {', '.join(POOLED)}")
        how: Pooling = pooling or "mean"  # type: ignore[assignment]
        found = locate(model, revision)
        encoder = SequenceEncoder(found, SequenceJob(how, None, too_long, max_tokens), device, torch.float32)
        card = ModelCard(name=found.short_name, family=str(found.config.get("model_type", "")), binding=found.binding)
        return cls(SequenceNetwork(encoder), found, encoder, card)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    def to(self, device: torch.device) -> SequenceModel:
        """Move the weights."""
        self.transformer.to(device)
        return self

    def embedding_width(self, pooling: str | None = None, layer: int | None = None) -> int:
        """Width of a sequence's vector."""
        return self.transformer.state_width(-1)

    def tokens(self, letters: dict[str, str], progress: bool = False) -> Tokens:
        """Tokens of sequences, special ones included.

        Raises
        ------
        TokenizerError
            If a sequence is empty, unknown to the model, or too long.
        """
        sequences = read_sequences(letters)
        pieces = []
        for s in tqdm(sequences, desc="tokens", unit="sequence", disable=not progress):
            pieces += self.encoder.pieces("", self.encoder.speller.ids(s.letters), s.name)
        lengths = np.array([len(p.ids) for p in pieces], dtype=np.int64)
        keys = [int(key_of_letters(s.letters)[:16], 16) for s in sequences]
        return Tokens(
            ids=np.concatenate([np.array(p.ids, dtype=np.int32) for p in pieces]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            per_cell={"n_detected": lengths.astype(np.int32), "fingerprint": np.array(keys, dtype=np.uint64)},
        )

    def over_batches(self, tokens: Tokens) -> list[NDArray[np.int64]]:
        """Numbers of the sequences of each batch: of like length, and of so many tokens."""
        order = np.argsort(-tokens.lengths, kind="stable")
        batches, start = [], 0
        while start < len(order):
            n = max(1, READ_TOKENS // int(tokens.lengths[order[start]]))
            batches.append(order[start : start + n])
            start += n
        return batches

    def embed_cells(self, tokens: Tokens, pooling: str | None = None, layer: int | None = None) -> NDArray[np.float32]:
        """(n, d) vectors of sequences."""
        out = np.zeros((len(tokens), self.embedding_width()), dtype=np.float32)
        for some in self.over_batches(tokens):
            with torch.inference_mode():
                out[some] = to_numpy(self.transformer.embed(to_batch(tokens[some], self.device), pooling))
        return out

    def vectors_of_layers(
        self, tokens: Tokens, layers: Sequence[int], poolings: Sequence[str], progress: bool = False
    ) -> dict[tuple[str, int], NDArray[np.float32]]:
        """(n, d) vectors by pooling and layer, from one pass.

        Raises
        ------
        ConfigError
            If a pooling is unknown or not possible.
        """
        for name in poolings:
            if name not in POOLED or (name == "cls" and not self.encoder.around[0]):
                raise ConfigError(f"pooling={name!r} is not possible with {self.card.name}; choose 'mean' or 'last'")
        keys = [(name, k) for name in poolings for k in layers]
        out = {key: np.zeros((len(tokens), self.embedding_width()), dtype=np.float32) for key in keys}
        with tqdm(total=len(tokens), desc=self.card.name, unit="sequence", disable=not progress) as bar:
            for some in self.over_batches(tokens):
                with torch.inference_mode():
                    found = self.transformer.layer_vectors(to_batch(tokens[some], self.device), layers, poolings)
                for key, x in zip(keys, found, strict=True):
                    out[key][some] = to_numpy(x)
                bar.update(len(some))
        return out

    def hold(self, letters: dict[str, str], groups: NDArray[np.str_] | None, progress: bool) -> HeldCells:
        """Tokens of sequences in memory, with what is known of each."""
        tokens = self.tokens(letters, progress)
        n = len(tokens)
        one = np.full(n, "all")
        index = CellIndex(
            file=np.zeros(n, dtype=np.int32),
            row=np.arange(n),
            length=tokens.lengths.astype(np.int32),
            n_genes=tokens.per_cell["n_detected"],
            fingerprint=tokens.per_cell["fingerprint"],
            columns={
                "donor": Column.of(one if groups is None else groups),
                "dataset": Column.of(one),
                "label": Column.of(one),
            },
            measured=np.zeros((1, 0), dtype=bool),
            files=("the sequences",),
        )
        return HeldCells(index, _Kept(), tokens)  # type: ignore[arg-type]
