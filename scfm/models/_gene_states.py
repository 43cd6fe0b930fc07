"""What does a model say of a gene in a cell? The state of its token, or what a decoder makes of every gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfm.errors import ConfigError
from scfm.models._generation import same_for_all
from scfm.models._run import to_numpy
from scfm.tokenizers import Tokens
from scfm.transformer import CellTransformer, PackedBatch

if TYPE_CHECKING:
    from scfm.models._model import FoundationModel


@dataclass(frozen=True)
class GeneStates:
    """Where contextual vectors of genes come from: a layer of the encoder, or a decoder that is made for it.

    Parameters
    ----------
    transformer
        The network.
    hidden_layer
        Of the encoder; None: the model's default, which is the decoder where its configuration says so.
    """

    transformer: CellTransformer
    hidden_layer: int | None = None

    @property
    def decoded(self) -> bool:
        """Whether they are states of the decoder."""
        spec = self.transformer.config.decoder_spec
        return spec is not None and spec.contextual and self.hidden_layer is None

    @property
    def extra(self) -> int:
        """Tokens that a cell needs beside its own."""
        return self.transformer.decoder_rows if self.decoded else 0

    @property
    def width(self) -> int:
        """Length of a vector."""
        decoder = self.transformer.decoder
        if decoder is not None and self.decoded:
            return decoder.spec.stack.width
        return self.transformer.state_width(self.hidden_layer)

    def __call__(self, batch: PackedBatch, hidden: Tensor | None = None) -> Tensor:
        """States of the tokens (T, d), or of all genes (n, rows, d); ``hidden`` are the encoder's, if they are known."""
        if self.decoded:
            return self.transformer.decode(batch, hidden)
        return self.transformer.state(batch, self.hidden_layer) if hidden is None else hidden

    def named(self, tokens: Tokens, states: Tensor) -> tuple[Tokens, Tensor]:
        """States end to end (m, d), with tokens that say of which gene each is."""
        if not self.decoded:
            return tokens, states
        return same_for_all(np.arange(states.shape[1]), len(states)), states.flatten(0, 1)


def decode(model: FoundationModel, tokens: Tokens, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """The decoder's states (n, g, d) of genes by id in every cell; NaN for cells without a gene token.

    Raises
    ------
    ConfigError
        If the model has no decoder.
    """
    decoder = model.transformer.decoder
    if decoder is None:
        raise ConfigError(f"{model.card.name} has no decoder, so only the genes that are tokens of a cell have a state")
    out = np.full((len(tokens), len(ids), decoder.spec.stack.width), np.nan, dtype=np.float32)
    n_genes = np.asarray(tokens.per_cell.get("n_detected", tokens.lengths))
    kept = np.flatnonzero(n_genes)
    wanted = torch.as_tensor(np.asarray(ids, dtype=np.int64)).to(model.device)

    def compute(batch: PackedBatch) -> Tensor:
        return model.transformer.decode(batch)[:, wanted]

    for cells, _part, states in model.over_batches(tokens[kept], compute, extra=decoder.spec.rows):
        out[kept[cells]] = to_numpy(states)
    return out
