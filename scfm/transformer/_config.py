"""What can the one transformer be? Its switches, as plain data: every published system is one `CellTransformerConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from scfm.errors import ConfigError
from scfm.transformer._specs import (
    DecoderSpec,
    HeadSpec,
    MLPSpec,
    QueryOnlySpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    WritingSpec,
)

PASSED_THROUGH = frozenset(
    {
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "torch_dtype",
        "use_cache",
    }
)
"""Settings that transformers itself passes to, or writes into, a configuration."""


class CellTransformerConfig(PreTrainedConfig):
    """Configuration of `CellTransformer`: named input terms, a stack, heads and read-outs.

    Parameters
    ----------
    encoder
        The `StackSpec`.
    terms
        Input terms by name, summed in the order of their names (JSON keeps no other). A term that feeds heads
        only is in ``head_terms``.
    sum_norm, sum_eps, sum_dropout
        Layer norm and dropout after the sum.
    domains, domain_eps, domain_channel
        Number of domains with their own standardisation (no weights) after the sum (0: none), and the array of the
        batch that holds each cell's domain.
    query_only
        `QueryOnlySpec` of tokens that are no keys; None: the model was not trained with such tokens.
    output
        `MLPSpec` between the last layer and the read-out.
    decoder
        `DecoderSpec` of a second stack over every gene; None: there is none.
    heads, readouts
        By name; ``readout`` names the default, ``hidden_layer`` the layer it reads
        (negative: from the last).
    head_terms
        Names of terms that are not part of the sum.
    """

    model_type = "scfm"
    encoder: dict[str, Any] | None = None
    terms: dict[str, Any] | None = None
    sum_norm: bool = False
    sum_eps: float = 1e-5
    sum_dropout: float = 0.0
    domains: int = 0
    domain_eps: float = 6.1e-5
    domain_channel: str = "domain"
    query_only: dict[str, Any] | None = None
    writing: dict[str, Any] | None = None
    output: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None
    readouts: dict[str, Any] | None = None
    readout: str = "mean"
    hidden_layer: int = -1
    head_terms: list[str] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - PASSED_THROUGH)
        if unknown:
            known = sorted(set(CellTransformerConfig.__annotations__))
            raise ConfigError(f"the configuration has no setting {unknown[0]!r}; it has {', '.join(known)}")
        super().__post_init__(**kwargs)

    @property
    def stack_spec(self) -> StackSpec:
        """The encoder."""
        if self.encoder is None:
            raise ConfigError("the configuration has no encoder")
        return StackSpec.build(self.encoder)

    @property
    def term_specs(self) -> dict[str, TermSpec]:
        """Input terms by name."""
        return {name: TermSpec.build(t) for name, t in sorted((self.terms or {}).items())}

    @property
    def head_specs(self) -> dict[str, HeadSpec]:
        """Heads by name."""
        return {name: HeadSpec.build(h) for name, h in sorted((self.heads or {}).items())}

    @property
    def readout_specs(self) -> dict[str, ReadoutSpec]:
        """Read-outs by name."""
        return {name: ReadoutSpec.build(r) for name, r in sorted((self.readouts or {}).items())}

    @property
    def query_only_spec(self) -> QueryOnlySpec:
        """What happens to tokens that are no keys."""
        return QueryOnlySpec.build(self.query_only or {})

    @property
    def writing_spec(self) -> WritingSpec:
        """How it writes cells.

        Raises
        ------
        ConfigError
            If it does not.
        """
        if self.writing is None:
            raise ConfigError("this model does not write cells word by word")
        return WritingSpec.build(self.writing)

    @property
    def cell_channels(self) -> frozenset[str]:
        """Names under which the model looks for arrays per cell."""
        domain = {self.domain_channel} if self.domains else set()
        return frozenset({"prompt", *domain, *(t.channel for t in self.term_specs.values())})

    @property
    def output_spec(self) -> MLPSpec | None:
        """The map between the last layer and the read-out."""
        return None if self.output is None else MLPSpec.build(self.output)

    @property
    def decoder_spec(self) -> DecoderSpec | None:
        """The second stack."""
        return None if self.decoder is None else DecoderSpec.build(self.decoder)


def make_config(
    *,
    encoder: StackSpec,
    terms: Mapping[str, TermSpec],
    readouts: Mapping[str, ReadoutSpec],
    heads: Mapping[str, HeadSpec] | None = None,
    output: MLPSpec | None = None,
    decoder: DecoderSpec | None = None,
    **settings: Any,
) -> CellTransformerConfig:
    """A `CellTransformerConfig` from its parts.

    Examples
    --------
    >>> from scfm.transformer import StackSpec, TermSpec, ReadoutSpec, PartSpec, make_config
    >>> config = make_config(
    ...     encoder=StackSpec(n_layers=2, width=32, n_heads=4, head_dim=8, ff=64),
    ...     terms={"gene": TermSpec("table", rows=100)},
    ...     readouts={"mean": ReadoutSpec((PartSpec("mean"),))},
    ... )
    >>> config.stack_spec.width
    32
    """
    return CellTransformerConfig(
        encoder=encoder.to_dict(),
        terms={k: t.to_dict() for k, t in terms.items()},
        readouts={k: r.to_dict() for k, r in readouts.items()},
        heads={k: h.to_dict() for k, h in (heads or {}).items()},
        output=None if output is None else output.to_dict(),
        decoder=None if decoder is None else decoder.to_dict(),
        **settings,
    )
