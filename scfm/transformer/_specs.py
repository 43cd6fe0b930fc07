"""What are the parts of a transformer made of? Small frozen dataclasses that are stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from scfm.errors import ConfigError

STEPS = ("relu", "gelu", "gelu_tanh", "leaky_relu", "tanh", "sigmoid", "norm", "dropout")
"""What an `MLPSpec` may do between and after its linear maps."""


@dataclass(frozen=True)
class Spec:
    """A part of the configuration: built from, and turned into, plain JSON types."""

    @classmethod
    def build(cls, data: Mapping[str, Any] | Spec) -> Self:
        """From a mapping.

        Raises
        ------
        ConfigError
            If a key is unknown.
        """
        if isinstance(data, Spec):
            data = data.to_dict()
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"{cls.__name__} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ConfigError(
                f"{type(self).__name__}.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
            )


@dataclass(frozen=True)
class MLPSpec(Spec):
    """Linear maps with steps between them and after the last.

    Parameters
    ----------
    widths
        Input width, inner widths, output width: one linear map per neighbouring pair.
    between, end
        Steps after every linear map but the last, and after the last (see `STEPS`).
    bias, last_bias
        Whether the linear maps, and the last one, have a bias.
    eps
        Of the norms among the steps.
    dropout
        Probability of the dropout steps.
    slope
        Of the leaky ReLU.
    """

    widths: tuple[int, ...]
    between: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    bias: bool = True
    last_bias: bool = True
    eps: float = 1e-5
    dropout: float = 0.0
    slope: float = 0.01

    def __post_init__(self) -> None:
        for name in ("widths", "between", "end"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = [s for s in (*self.between, *self.end) if s not in STEPS]
        if unknown:
            raise ConfigError(f"unknown step {unknown[0]!r}; an MLP may use {', '.join(STEPS)}")
        if len(self.widths) < 2:
            raise ConfigError(f"an MLP needs at least an input and an output width, not {self.widths}")


@dataclass(frozen=True)
class TermSpec(Spec):
    """One summand of a token's input vector.

    Parameters
    ----------
    source
        ``table``: a row of a look-up table; ``scalar``: an MLP on a number;
        ``bins``: a number softly spread over learned bins; ``bag``: a weighted sum of table rows
        over a further list of genes, added to the first token of the cell.
    channel
        Which array of the batch feeds it: ``ids``, ``values``, ``positions`` or an extra channel; of a ``bag``, which
        list of genes.
    rows, width
        Of the table (width: the transformer's where None).
    frozen
        The table is a buffer: fixed vectors that are not trained.
    unit
        Rows are brought to unit length first.
    mlp
        Applied to the row, or to the number.
    norm, eps
        A layer norm after it.
    scale
        Factor of this term alone.
    clip
        Numbers are cut at this maximum (``scalar``).
    alpha
        Weight of the first activation in ``bins``.
    optional
        Tokens may lack the term: id -1 or value NaN.
    start
        First column of the token's vector that a ``bag`` is added to.
    """

    source: Literal["table", "scalar", "bins", "bag"]
    channel: str = "ids"
    rows: int = 0
    width: int | None = None
    frozen: bool = False
    unit: bool = False
    mlp: MLPSpec | None = None
    norm: bool = False
    eps: float = 1e-5
    scale: float = 1.0
    clip: float | None = None
    alpha: float = 1.0
    optional: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        self._one_of("source", ("table", "scalar", "bins", "bag"))
        if self.mlp is not None:
            object.__setattr__(self, "mlp", MLPSpec.build(self.mlp))
        if self.source == "scalar" and self.mlp is None:
            raise ConfigError("an input term with source='scalar' needs an mlp that starts at width 1")


@dataclass(frozen=True)
class StackSpec(Spec):
    """A stack of transformer blocks.

    Parameters
    ----------
    n_layers, width, n_heads, head_dim, ff
        Sizes; ``n_heads * head_dim`` need not equal ``width``.
    norm
        ``post``: after each residual sum; ``pre``: before each branch.
    activation
        ``relu``, ``gelu`` (exact) or ``gelu_tanh``.
    eps
        Of every norm of the stack.
    qkv_bias, bias, norm_bias
        Biases of the query/key/value maps, of the other maps, and of the norms.
    final_norms
        Norms after the last layer.
    attention
        ``full`` or ``causal`` softmax, or ``performer`` (FAVOR+, linear in length).
    n_features
        Random features of the Performer.
    zero_residual
        Both branches start at zero, so that an untrained pre-norm stack is the identity.
    dropout
        Probability after each branch; ``attention_dropout`` on the weights, ``ff_dropout`` inside.
    """

    n_layers: int
    width: int
    n_heads: int
    head_dim: int
    ff: int
    norm: Literal["pre", "post"] = "post"
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    eps: float = 1e-5
    qkv_bias: bool = True
    bias: bool = True
    norm_bias: bool = True
    final_norms: int = 0
    attention: Literal["full", "causal", "performer"] = "full"
    n_features: int = 0
    zero_residual: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    ff_dropout: float = 0.0

    def __post_init__(self) -> None:
        self._one_of("norm", ("pre", "post"))
        self._one_of("activation", ("relu", "gelu", "gelu_tanh"))
        self._one_of("attention", ("full", "causal", "performer"))
        if self.attention == "performer" and self.n_features < 1:
            raise ConfigError("attention='performer' needs n_features, the number of rows of its projection")


@dataclass(frozen=True)
class DecoderSpec(Spec):
    """A second stack that reads every gene of a cell, expressed or not.

    A gene that is a token of the cell enters as the encoder's final state of it, any other as a value term of 0; the
    input term ``gene`` is added to all, and a linear map brings them to the stack's own width.

    Parameters
    ----------
    stack
        Its blocks.
    rows
        Tokens of the vocabulary that it reads in every cell: those with the ids below this.
    value
        Name of the input term whose vector of 0 stands for a gene that is no token of the cell.
    contextual
        Its states, rather than the encoder's, are what the model says of a gene in a cell.
    """

    stack: StackSpec
    rows: int
    value: str = "value"
    contextual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", StackSpec.build(self.stack))


@dataclass(frozen=True)
class HeadSpec(Spec):
    """A named output.

    Parameters
    ----------
    feed
        What it reads. ``tokens``: each token's hidden state; ``cells``: each cell's vector, made by
        ``readout``; ``tied``: tokens, times the transposed table of the input term ``gene``, plus a
        bias; ``pairs``: a gene vector and a cell vector, as an inner product; ``positions``: each token's
        state through ``token_mlp``, then all of a cell side by side; ``genes``: the decoder's state of every gene.
    mlp
        The map (of the gene vector for ``pairs``; for ``positions`` its input width says how many tokens a cell has).
    readout
        Which read-out makes the cell vector.
    outputs
        ``pairs``: one bilinear form per name, in this order; True where it has a bias.
    cell_width
        ``pairs``: width of the cell vector.
    context
        Input terms whose vectors are joined to the hidden state or the cell vector.
    transform
        Function of the output: ``sigmoid``, ``softmax`` over the outputs, or none.
    token_mlp
        ``positions``: the map of each token's state.
    joint
        ``pairs``: the map of cell vector and mapped gene vector side by side, in place of the inner product.
    genes
        ``pairs``: what ``mlp`` reads of a gene. ``input``: its finished input term; ``table``: its row of the table as
        it is; ``unit``: that row brought to unit length.
    gene_first
        The gene vector stands before the cell vector in ``joint``.
    """

    feed: Literal["tokens", "cells", "tied", "pairs", "positions", "genes"]
    mlp: MLPSpec
    readout: str | None = None
    outputs: tuple[tuple[str, bool], ...] = ()
    cell_width: int = 0
    context: tuple[str, ...] = ()
    transform: Literal["none", "sigmoid", "softmax"] = "none"
    token_mlp: MLPSpec | None = None
    joint: MLPSpec | None = None
    genes: Literal["input", "table", "unit"] = "input"
    gene_first: bool = False

    def __post_init__(self) -> None:
        self._one_of("feed", ("tokens", "cells", "tied", "pairs", "positions", "genes"))
        self._one_of("transform", ("none", "sigmoid", "softmax"))
        object.__setattr__(self, "mlp", MLPSpec.build(self.mlp))
        object.__setattr__(self, "context", tuple(self.context))
        object.__setattr__(self, "outputs", tuple((name, bias) for name, bias in self.outputs))
        if (self.token_mlp is not None) != (self.feed == "positions"):
            raise ConfigError(
                "a head with feed='positions' needs token_mlp, the map of each token, and no other head has it"
            )
        if self.token_mlp is not None:
            object.__setattr__(self, "token_mlp", MLPSpec.build(self.token_mlp))
        self._one_of("genes", ("input", "table", "unit"))
        if self.joint is not None:
            object.__setattr__(self, "joint", MLPSpec.build(self.joint))

    @property
    def per_cell(self) -> bool:
        """Whether the output is one row per cell rather than per token."""
        return self.feed in ("cells", "positions", "genes")


@dataclass(frozen=True)
class PartSpec(Spec):
    """One vector drawn from a cell's tokens.

    Parameters
    ----------
    kind
        ``token``: the one at ``index`` (negative: from the end); ``mean`` or ``max`` over all but
        the first ``skip_first`` and the last ``skip_last``; ``weighted``: the sum of states times
        token values (0 where a token has none).
    """

    kind: Literal["token", "mean", "max", "weighted"]
    index: int = 0
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        self._one_of("kind", ("token", "mean", "max", "weighted"))


@dataclass(frozen=True)
class ReadoutSpec(Spec):
    """How hidden states become one vector per cell.

    Parameters
    ----------
    parts
        Vectors side by side.
    unit
        Whether the whole is brought to unit length.
    padded_to
        Cells are first filled up to this number of tokens with padding that nobody sees, and that counts like any
        other token (`QueryOnlySpec`); 0: not at all.
    layers
        Hidden layers that are read together (negative: from the last), in place of the one that is asked for.
    merge
        ``mean`` or ``sum`` over these layers.
    continued
        Cells are first continued by up to this number of words, each the likeliest one (`WritingSpec`); the word that
        ends a cell is the last.
    among
        Kinds of words that may continue them; empty: all words.
    """

    parts: tuple[PartSpec, ...]
    unit: bool = False
    padded_to: int = 0
    layers: tuple[int, ...] = ()
    merge: Literal["mean", "sum"] = "mean"
    continued: int = 0
    among: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._one_of("merge", ("mean", "sum"))
        object.__setattr__(self, "parts", tuple(PartSpec.build(p) for p in self.parts))
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "among", tuple(self.among))


@dataclass(frozen=True)
class QueryOnlySpec(Spec):
    """What happens to tokens that nobody sees: genes to be predicted, or padding that is to be reproduced.

    Parameters
    ----------
    sees_itself
        Whether such a token sees itself beside the keys of its cell.
    projected
        Whether its context passes the output map of the attention.
    channels
        What it holds in further channels of the batch, where the other tokens hold nothing (-1).
    padding
        Vocabulary id of the padding token; None: such tokens are genes to be predicted.
    """

    sees_itself: bool = True
    projected: bool = True
    channels: dict[str, int] = field(default_factory=dict)
    padding: int | None = None


@dataclass(frozen=True)
class WritingSpec(Spec):
    """A model whose tokens are words, which names cells, and makes new ones, by writing what comes next.

    Parameters
    ----------
    word, level
        Heads on tokens: one output per word that may come next, and the level that each word would have.
    start, end
        Words after which a cell's genes are written, and which ends a cell.
    highest
        Highest level; words that are no genes have level 0.
    longest
        Words of the longest cell.
    kinds
        Words by kind, in the order in which a prompt names them.
    questions
        By name: the word that asks, and the kinds of the words that answer, one after the other.
    """

    word: str
    level: str
    start: int
    end: int
    highest: int
    longest: int
    kinds: tuple[tuple[str, tuple[int, ...]], ...] = ()
    questions: tuple[tuple[str, int, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple((name, tuple(ids)) for name, ids in self.kinds))
        object.__setattr__(self, "questions", tuple((name, word, tuple(kinds)) for name, word, kinds in self.questions))

    def words(self, *kinds: str) -> tuple[int, ...]:
        """Ids of the words of some kinds, ascending."""
        known = dict(self.kinds)
        return tuple(sorted({word for kind in kinds for word in known[kind]}))
