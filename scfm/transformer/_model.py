"""The one transformer: input terms, a stack of blocks, heads and read-outs on packed cells."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from scfm.errors import ConfigError
from scfm.transformer._attention import choose
from scfm.transformer._config import CellTransformerConfig
from scfm.transformer._decoder import Decoder, every_gene, keys_only
from scfm.transformer._heads import Head
from scfm.transformer._layers import MLP, Block, BranchEnd, Route, Stack, Term
from scfm.transformer._packing import PackedBatch
from scfm.transformer._past import Past
from scfm.transformer._readout import read_out, wanted_rows
from scfm.transformer._specs import HeadSpec, ReadoutSpec
from scfm.transformer._writing import embed_continued


@dataclass(frozen=True)
class HiddenStates:
    """States of the tokens of a batch.

    Parameters
    ----------
    layers
        By number: 0 after the input terms, k after block k; (T, width) each.
    final
        (T, width) after the final norms and the output map; None where a lower layer was the last wanted.
    """

    layers: dict[int, Tensor]
    final: Tensor | None


class CellTransformer(PreTrainedModel):
    """A transformer over packed cells, described by a `CellTransformerConfig`.

    Examples
    --------
    >>> import numpy as np
    >>> from scfm.transformer import CellTransformer, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config, pack
    >>> config = make_config(
    ...     encoder=StackSpec(n_layers=2, width=32, n_heads=4, head_dim=8, ff=64),
    ...     terms={"gene": TermSpec("table", rows=100)},
    ...     readouts={"mean": ReadoutSpec((PartSpec("mean"),))},
    ... )
    >>> model = CellTransformer(config).eval()
    >>> batch = pack({"ids": np.array([5, 7, 9, 1, 2])}, np.array([0, 3, 5]))
    >>> tuple(model.embed(batch).shape)
    (2, 32)
    """

    config_class = CellTransformerConfig
    config: CellTransformerConfig
    base_model_prefix = "scfm"
    main_input_name = "batch"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CellTransformerConfig) -> None:
        super().__init__(config)
        stack = config.stack_spec
        self.terms = nn.ModuleDict({name: Term(spec, stack.width) for name, spec in config.term_specs.items()})
        self.sum_norm = nn.LayerNorm(stack.width, eps=config.sum_eps) if config.sum_norm else None
        if config.domains:
            self.register_buffer("domain_mean", torch.zeros(config.domains, stack.width))
            self.register_buffer("domain_var", torch.ones(config.domains, stack.width))
        self.encoder = Stack(stack)
        output = config.output_spec
        self.output = None if output is None else MLP(output)
        decoder = config.decoder_spec
        absent = set() if decoder is None else {"gene", decoder.value} - set(self.terms)
        if absent:
            raise ConfigError(
                f"the decoder reads the input term {absent.pop()!r}, which this configuration does not have"
            )
        self.decoder = None if decoder is None else Decoder(decoder, stack.width)
        rows = config.term_specs["gene"].rows if "gene" in config.term_specs else 0
        self.heads = nn.ModuleDict({name: Head(spec, rows) for name, spec in config.head_specs.items()})
        self._chosen: dict[tuple[str | None, torch.device, torch.dtype], str] = {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' own initialisers leave weights alone that a checkpoint has already filled
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            # said by the map itself: transformers passes over modules that own no parameter, such as a block
            at_zero = isinstance(module, BranchEnd) and module.starts_at_zero
            init.normal_(module.weight, std=0.0 if at_zero else std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Term) and hasattr(module, "table"):
            init.normal_(module.table, std=std)
            if module.spec.source == "bag":
                init.zeros_(module.center)
        elif isinstance(module, Head) and module.spec.feed == "tied":
            init.zeros_(module.bias)
        elif isinstance(module, CellTransformer) and module.config.domains:
            init.zeros_(module.domain_mean)
            init.ones_(module.domain_var)
        elif isinstance(module, Block) and module.spec.attention == "performer":
            init.copy_(module.projection, _orthogonal_features(*module.projection.shape))

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.config.stack_spec.width

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.encoder.layers)

    def embed_input(self, batch: PackedBatch) -> Tensor:
        """The sum of the input terms: (T, width), hidden state 0."""
        x: Tensor | None = None
        specs = self.config.term_specs
        for name, term in self.terms.items():
            if name in (self.config.head_terms or ()) or specs[name].source == "bag":
                continue
            if specs[name].optional and specs[name].channel not in batch.channels:
                continue
            part = term(self._channel(batch, specs[name].channel))
            x = part if x is None else x + part
        dtype = next(self.parameters()).dtype
        x = torch.zeros(batch.n_tokens, self.width, dtype=dtype, device=batch.device) if x is None else x
        for name, term in self.terms.items():
            if specs[name].source == "bag":
                first, cells = batch.segments.first
                part = term.bag(batch).to(x.dtype)[cells]  # type: ignore[operator]
                start = specs[name].start
                x = x.index_add(0, first, F.pad(part, (start, self.width - start - part.shape[1])))
        if self.config.domains:
            domain = self._per_cell(batch, self.config.domain_channel).long()[batch.segments.cell]
            x = (x - self.domain_mean[domain]) / (self.domain_var[domain] + self.config.domain_eps).sqrt()
        if self.sum_norm is not None:
            x = self.sum_norm(x)
        x = F.dropout(x, self.config.sum_dropout, self.training)
        if "prompt" in batch.per_cell:
            first, cells = batch.segments.first
            x = x.index_copy(0, first, batch.per_cell["prompt"].to(x.dtype)[cells])
        return x

    def _per_cell(self, batch: PackedBatch, name: str) -> Tensor:
        if name not in batch.per_cell:
            raise ConfigError(
                f"this model needs {name!r} of each cell, which the tokens do not hold; pass context={{{name!r}: an obs "
                f"column or a value}} on tokenizing, or add an array of that name to Tokens.per_cell"
            )
        return batch.per_cell[name]

    def _channel(self, batch: PackedBatch, name: str) -> Tensor:
        if name in batch.channels:
            return batch.channels[name]
        if name == "positions":
            return batch.segments.rank
        if name in batch.per_cell:
            return batch.per_cell[name][batch.segments.cell]
        raise ConfigError(f"an input term reads the channel {name!r}; the batch holds {', '.join(batch.channels)}")

    def hidden_states(
        self,
        batch: PackedBatch,
        layers: Iterable[int] | None = None,
        *,
        inputs: Tensor | None = None,
        past: Past | None = None,
    ) -> HiddenStates:
        """Run the encoder as far as needed.

        Parameters
        ----------
        batch
            Packed cells.
        layers
            Layers to keep (0 to ``n_layers``); None: all, and the final state.
        inputs
            (T, width) hidden state 0, if it is to differ from the sum of the terms.
        past
            What the cells have had before these tokens; they are added to it. For causal attention.
        """
        wanted = set(range(self.n_layers + 1)) if layers is None else set(layers)
        outside = [k for k in wanted if not 0 <= k <= self.n_layers]
        if outside:
            raise ConfigError(f"there is no hidden layer {outside[0]}; this model has layers 0 to {self.n_layers}")
        route = self._route(batch, past)
        x = self.embed_input(batch) if inputs is None else inputs
        kept = {0: x} if 0 in wanted else {}
        for k, block in enumerate(self.encoder.layers[: max(wanted, default=self.n_layers)], start=1):
            x = self.encoder.step(block, x, route)
            if k in wanted:
                kept[k] = x
        final = self.finish(x) if layers is None or not wanted else None
        return HiddenStates(kept, final)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The final state of every token: (T, width), or the output map's width."""
        final = self.hidden_states(batch, ()).final
        if final is None:
            raise ConfigError("the encoder returned no final state")
        return final

    def decode(self, batch: PackedBatch, states: Tensor | None = None) -> Tensor:
        """States of every gene of every cell after the second stack.

        Query-only tokens are masked genes: the encoder does not see them, and the second stack not their values.

        Parameters
        ----------
        batch
            Packed cells.
        states
            (keys, width) final states of the encoder; None: computed.

        Returns
        -------
        (n, rows, width of the second stack)

        Raises
        ------
        ConfigError
            If the model has no second stack.
        """
        if self.decoder is None:
            raise ConfigError("this model has no decoder, so only the genes that are tokens of a cell have a state")
        states = self(keys_only(batch)) if states is None else states
        spec = self.decoder.spec
        gene, value = self.terms["gene"], self.terms[spec.value]
        x = every_gene(batch, states, gene, value, spec.rows)  # type: ignore[arg-type]
        out: Tensor = self.decoder(x, self._attention(batch))
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Final norms and output map."""
        x = self.encoder.finish(x)
        return x if self.output is None else self.output(x)

    def _attention(self, batch: PackedBatch) -> str:
        kind = batch.device.type
        # mixed precision hands half-precision queries to attention, whatever the weights are
        mixed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else next(self.parameters()).dtype
        wanted = (self.config._attn_implementation, batch.device, dtype)
        if wanted not in self._chosen:
            self._chosen[wanted] = choose(*wanted)
        return self._chosen[wanted]

    def _route(self, batch: PackedBatch, past: Past | None = None) -> Route:
        if past is not None and self.config.stack_spec.attention != "causal":
            raise ConfigError("only with causal attention do later tokens leave the states of earlier ones alone")
        own, projected = self.config.query_only_spec.sees_itself, self.config.query_only_spec.projected
        return Route(batch, self._attention(batch), sees_itself=own, projected=projected, past=past)

    def layer_number(self, hidden_layer: int | None) -> int | None:
        """The layer that a read-out reads: its number, or None for the final state.

        Raises
        ------
        ConfigError
            If there is no such layer.
        """
        layer = self.config.hidden_layer if hidden_layer is None else hidden_layer
        number = layer if layer >= 0 else self.n_layers + 1 + layer
        if not 0 <= number <= self.n_layers:
            raise ConfigError(
                f"hidden_layer={layer} does not exist; this model has {self.n_layers} layers, "
                f"so 0 (input) to {self.n_layers}, or -1 (last) to {-self.n_layers - 1}"
            )
        return None if number == self.n_layers else number

    def state_width(self, hidden_layer: int | None = None) -> int:
        """Length of a token's state at the layer that a read-out reads."""
        output = self.config.output_spec
        final = self.layer_number(hidden_layer) is None
        return output.widths[-1] if final and output is not None else self.width

    @property
    def decoder_rows(self) -> int:
        """Genes that the second stack reads in every cell; 0 where there is none."""
        return 0 if self.decoder is None else self.decoder.spec.rows

    def readout(self, name: str | None = None) -> ReadoutSpec:
        """A read-out by name; the default where None."""
        specs = self.config.readout_specs
        name = name or self.config.readout
        if name not in specs:
            raise ConfigError(f"this model has no pooling {name!r}; it has {', '.join(specs)}")
        return specs[name]

    def embed(self, batch: PackedBatch, pooling: str | None = None, hidden_layer: int | None = None) -> Tensor:
        """Cell vectors (n, width x parts); no layer above the one wanted is computed.

        In the last layer only the rows that the read-out wants are computed.
        """
        spec = self.readout(pooling)
        if spec.layers:
            states = torch.stack(self.states(batch, spec.layers))
            return self.pool(states.mean(0) if spec.merge == "mean" else states.sum(0), batch, spec)
        if spec.continued:
            return embed_continued(self, batch, spec, hidden_layer)[0]
        layer = self.layer_number(hidden_layer)
        depth = self.n_layers if layer is None else layer
        rows = wanted_rows(batch.segments, spec) if batch.keys is None else None
        if rows is not None and self.config.stack_spec.attention == "full" and depth > 0:
            x = self.hidden_states(batch, [depth - 1]).layers[depth - 1]
            last = self.encoder.layers[depth - 1](x, self._route(batch), rows)
            last = self.finish(last) if layer is None else last
            cells: Tensor = last.reshape(batch.n_cells, -1)
            return F.normalize(cells, dim=-1) if spec.unit else cells
        return self.pool(self.state(batch, hidden_layer), batch, spec)

    def state(self, batch: PackedBatch, hidden_layer: int | None = None) -> Tensor:
        """States of all tokens (T, width) at one layer; the last one after final norms and output map."""
        return self.states(batch, [hidden_layer])[0]

    def states(self, batch: PackedBatch, hidden_layers: Iterable[int | None]) -> list[Tensor]:
        """As `state`, for several layers in one pass."""
        numbers = [self.layer_number(layer) for layer in hidden_layers]
        deepest = [self.n_layers if number is None else number for number in numbers]
        layers = self.hidden_states(batch, deepest).layers
        return [self.finish(layers[self.n_layers]) if n is None else layers[n] for n in numbers]

    def pool(self, hidden: Tensor, batch: PackedBatch, spec: ReadoutSpec) -> Tensor:
        """Cell vectors (n, width x parts) of token states (T, width)."""
        return read_out(hidden, batch.segments, spec, batch.channels.get("values"))

    def gene_rows(self, ids: Tensor) -> Tensor:
        """Input vectors of genes, before any context: (k, width)."""
        for name in ("gene", "bag"):
            if name in self.terms:
                return self.terms[name].rows(ids)  # type: ignore[operator]
        raise ConfigError("this model has no gene table")

    def head(self, name: str, batch: PackedBatch, cells: Tensor | None = None, genes: Tensor | None = None) -> Tensor:
        """The output of a named head for a batch.

        Parameters
        ----------
        name
            Of the head.
        batch
            Packed cells.
        cells
            (n, d) cell vectors that a head on cells or pairs reads; None: its own read-out.
        genes
            (g,) ids of genes that a head on pairs or genes is asked for in every cell; None: the tokens of each cell,
            or all rows of the decoder.

        Returns
        -------
        (T, outputs) for heads on tokens and pairs, (n, g, outputs) for heads on genes and with ``genes``, (n, outputs)
        for heads on cells and positions.
        """
        if name not in self.heads:
            raise ConfigError(f"this checkpoint has no head {name!r}; it has {', '.join(self.heads) or 'none'}")
        head: Head = self.heads[name]  # type: ignore[assignment]
        spec = head.spec
        if spec.feed in ("tokens", "tied"):
            table = self.terms["gene"].table if spec.feed == "tied" else None
            x = torch.cat([self.state(batch, -1), *(v[batch.segments.cell] for v in self._context(batch, spec))], -1)
            return head(x, table=table)
        if spec.feed == "genes":
            states = self.decode(batch)
            return head(states if genes is None else states[:, genes])
        if spec.token_mlp is not None:
            positions = spec.mlp.widths[0] // spec.token_mlp.widths[-1]
            if (batch.segments.lengths != positions).any():
                raise ConfigError(
                    f"the head {name!r} reads cells of exactly {positions:,} tokens, one per position; found "
                    f"{batch.segments.lengths.min():,} to {batch.segments.max_seqlen:,}. Make the tokens with the model's "
                    "own tokenizer and take none away"
                )
            return head(self.state(batch, -1))
        if cells is None:
            cells = self.embed(batch, spec.readout, -1)
        cells = torch.cat([cells, *self._context(batch, spec)], dim=-1)
        if spec.feed == "cells":
            return head(cells)
        if genes is None:
            return head(self._gene_vectors(spec, batch.channels["ids"]), cells=cells[batch.segments.cell])
        vectors = self._gene_vectors(spec, genes)
        return torch.stack([head(vectors, cells=cell.expand(len(genes), -1)) for cell in cells])

    def _gene_vectors(self, spec: HeadSpec, ids: Tensor) -> Tensor:
        """(m, k) what a head on pairs reads of genes."""
        if spec.genes == "input":
            return self.gene_rows(ids)
        rows = F.embedding(ids.long(), self.terms["gene"].table)  # type: ignore[arg-type]
        return F.normalize(rows, dim=-1) if spec.genes == "unit" else rows

    def _context(self, batch: PackedBatch, spec: HeadSpec) -> list[Tensor]:
        """(n, width) vectors of the terms that a head joins to its input."""
        channels = {name: self.config.term_specs[name].channel for name in spec.context}
        return [self.terms[name](self._per_cell(batch, channel).long()) for name, channel in channels.items()]


def _orthogonal_features(n_features: int, head_dim: int) -> Tensor:
    """Random Performer features: orthogonal blocks, each row with the length of a Gaussian vector."""
    blocks = []
    for _ in range(math.ceil(n_features / head_dim)):
        q, _r = torch.linalg.qr(torch.randn(head_dim, head_dim))
        blocks.append(q.T)
    rows = torch.cat(blocks)[:n_features]
    return rows * torch.randn(n_features, head_dim).norm(dim=1, keepdim=True)
