"""A loaded model: tokenizer, transformer, vocabulary and card, usable stage by stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from scfm.errors import ConfigError
from scfm.genes import GeneVocabulary
from scfm.models._card import ModelCard
from scfm.models._device import resolve_device, resolve_dtype
from scfm.models._gene_states import GeneStates, decode
from scfm.models._gene_vectors import GeneSums, GeneVectors
from scfm.models._generation import ask, fill_up, same_for_all
from scfm.models._head import Head, Heads, gene_ids, token_index
from scfm.models._keys import Key, fill
from scfm.models._reading import as_state, read_json, read_settings, read_tensors
from scfm.models._run import Budget, run, to_numpy
from scfm.models._species import with_genes
from scfm.tokenizers import Tokenizer, Tokens
from scfm.transformer import CellTransformer, CellTransformerConfig, PackedBatch, choose, embed_continued

MODEL_FILE = "scfm_model.json"
WEIGHTS_FILE = "model.safetensors"
SEEN_FILE = "seen.npy"


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
    species
        Where genes are read by fixed vectors: the species at hand, each with what gets its tokenizer and table.
    seen
        Fingerprints (uint64) of the cells it was trained on, where they are known.

    Examples
    --------
    >>> import scfm
    >>> model = scfm.models.load("scfm-mini")
    >>> model.card.name
    'scfm-mini'
    """

    files: ClassVar[tuple[str, ...]] = (
        MODEL_FILE,
        WEIGHTS_FILE,
        "config.json",
        "tokenizer.json",
        "tokenizer.npz",
        "vocabulary.json",
        SEEN_FILE,
    )
    """Our own layout."""
    transformer: CellTransformer
    tokenizer: Tokenizer
    card: ModelCard
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    species: Mapping[str, Callable[[], tuple[Tokenizer, Tensor]]] = field(default_factory=dict)
    seen: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        self.transformer.eval()

    def __repr__(self) -> str:
        return (
            f"FoundationModel({self.card.name}: {self.transformer.n_layers} layers, width {self.transformer.width}, "
            f"{self.tokenizer.n_ids:,} tokens, on {self.device}, {self.dtype})"
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
        """The outputs by name, each callable on tokens; an unknown name is a `ConfigError`."""
        return Heads({name: Head(self, name) for name in self.transformer.heads})

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> FoundationModel:
        """Move to a device, precision and attention implementation; returns itself."""
        chosen_dtype = resolve_dtype(dtype) or self.dtype
        chosen = resolve_device(device)
        if chosen.type == "mps" and chosen_dtype != torch.float32:
            raise ConfigError(f"on Apple's MPS only float32 is supported, not {chosen_dtype}; pass dtype='float32'")
        self.transformer.to(device=chosen, dtype=chosen_dtype)
        self.config._attn_implementation = choose(attn_implementation, chosen, chosen_dtype)
        return self

    def for_context(self, context: Mapping[str, Any] | None) -> FoundationModel:
        """The same model with the genes of the species that a context names; itself where that changes nothing.

        Raises
        ------
        ConfigError
            If the model has no genes of that species.
        """
        species = (context or {}).get("species")
        if not self.species or species is None or species == self.vocabulary.species:
            return self
        if not isinstance(species, str) or species not in self.species:
            raise ConfigError(
                f"context 'species' is {species!r}, but {self.card.name} has the genes of {', '.join(self.species)}; it takes "
                "one of them for all cells, because the columns of a matrix are genes of one species"
            )
        return with_genes(self, *self.species[species]())

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
        for cells, _part, states in self.over_batches(tokens, compute):
            at = token_index(tokens, cells)
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
        of_genes = GeneStates(model, hidden_layer)

        def compute(batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
            if genes is None:
                return model.embed(batch, pooling, hidden_layer), None
            if spec.continued:
                cells, hidden = embed_continued(model, batch, spec, hidden_layer)
                return cells, of_genes(batch, hidden)
            hidden = model.state(batch, hidden_layer)
            cells = model.embed(batch, pooling) if spec.layers else model.pool(hidden, batch, spec)
            return cells, of_genes(batch, hidden)

        out: NDArray[np.float32] | None = None
        has_genes = np.asarray(tokens.per_cell["n_detected"]) > 0 if "n_detected" in tokens.per_cell else None
        kept = tokens if has_genes is None or has_genes.all() else tokens[has_genes]
        rows = np.arange(len(tokens)) if has_genes is None else np.flatnonzero(has_genes)
        extra = 0 if genes is None else of_genes.extra
        for cells, part, (vectors, states) in self.over_batches(self.padded(kept, pooling), compute, budget, extra):
            if out is None:
                out = np.full((len(tokens), vectors.shape[-1]), np.nan, dtype=np.float32)
            out[rows[cells]] = to_numpy(vectors)
            if genes is not None and states is not None:
                genes.add(*of_genes.named(part, states), None if groups is None else groups[rows[cells]])
        if out is None:
            return np.full((len(tokens), self.embedding_width(pooling, hidden_layer)), np.nan, dtype=np.float32)
        return out

    def embedding_width(self, pooling: str | None = None, hidden_layer: int | None = None) -> int:
        """Length of a cell vector."""
        spec = self.transformer.readout(pooling)
        return len(spec.parts) * self.state_width(hidden_layer)

    def state_width(self, hidden_layer: int | None = None) -> int:
        """Length of a token's state at the layer that a read-out reads."""
        return self.transformer.state_width(hidden_layer)

    def decode(self, tokens: Tokens, genes: Sequence[str] | None = None) -> NDArray[np.float32]:
        """The decoder's state of genes in every cell, whether or not the cell expresses them.

        Parameters
        ----------
        tokens
            Of n cells.
        genes
            Names or symbols of g genes; None: all of the vocabulary, without special tokens.

        Returns
        -------
        (n, g, d) float32; NaN for cells without a gene token.

        Raises
        ------
        ConfigError
            If the model has no decoder.
        GeneMatchError
            If a gene is not in the vocabulary.
        """
        every = np.flatnonzero(self.vocabulary.is_gene)
        return decode(self, tokens, every if genes is None else np.array(gene_ids(self.vocabulary, genes)))

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
            too), or of the decoder over all cells where a model's decoder is made for that; ``input``: the model's
            own vector of the gene, before any context.
        hidden_layer
            As in `embed_cells`.

        Raises
        ------
        ConfigError
            If contextual vectors are asked for without tokens, or there is no such kind.
        """
        if kind not in ("contextual", "input"):
            raise ConfigError(f"kind={kind!r} is neither 'contextual' nor 'input'")
        if kind == "input":
            ids = np.arange(self.tokenizer.n_ids)
            with torch.inference_mode():
                vectors = to_numpy(self.transformer.gene_rows(torch.as_tensor(ids).to(self.device)))
            return GeneVectors(ids, vectors, np.zeros(len(ids), dtype=np.int64))
        if tokens is None:
            raise ConfigError("contextual gene vectors are averages over cells: pass tokens, or kind='input'")
        of_genes = GeneStates(self.transformer, hidden_layer)
        sums = GeneSums(self.tokenizer.n_ids, of_genes.width)
        n_genes = np.asarray(tokens.per_cell.get("n_detected", tokens.lengths))
        for _cells, part, states in self.over_batches(tokens[n_genes > 0], of_genes, extra=of_genes.extra):
            sums.add(*of_genes.named(part, states))
        return sums.finish()

    def ask(self, tokens: Tokens, genes: Sequence[str] | Tokens) -> Tokens:
        """Tokens that ask for the values of genes, for models that were trained to answer.

        A question sees the tokens of its cell and itself, and nobody sees it: answers do not depend on what else is
        asked.

        Parameters
        ----------
        tokens
            What is known of each cell.
        genes
            Names or symbols, asked of every cell; or Tokens with the genes asked of each cell.

        Raises
        ------
        ConfigError
            If the model was not trained with questions.
        GeneMatchError
            If a gene is not in the vocabulary.
        """
        if self.config.query_only is None or self.config.query_only_spec.padding is not None:
            raise ConfigError(
                f"{self.card.name} was not trained to predict genes that are not given; it cannot be asked"
            )
        if not isinstance(genes, Tokens):
            genes = same_for_all(np.array(gene_ids(self.vocabulary, genes)), len(tokens))
        return ask(tokens, genes, self.config.query_only_spec.channels)

    def generate(
        self,
        tokens: Tokens,
        genes: Sequence[str],
        *,
        cells: NDArray[np.float32] | None = None,
        head: str = "expression",
    ) -> NDArray[np.float32]:
        """Predict the values of genes from the other genes of a cell.

        Parameters
        ----------
        tokens
            What is known of n cells.
        genes
            Names or symbols of g genes; a gene that is among a cell's tokens is predicted all the same.
        cells
            (n, width) vectors that take the place of each cell's first token in the input: a prompt.
        head
            Which output answers.

        Returns
        -------
        (n, g) float32, in the unit of the tokens' values; NaN rows for cells without a gene token.
        """
        asked = self.ask(tokens, genes)
        if cells is not None:
            asked = replace(asked, per_cell={**asked.per_cell, "prompt": np.asarray(cells, dtype=np.float32)})
        answers = self.heads[head](asked)[~asked.channels["keys"], 0].reshape(len(tokens), len(genes))
        if "n_detected" in tokens.per_cell:
            answers[np.asarray(tokens.per_cell["n_detected"]) == 0] = np.nan
        return answers

    def padded(self, tokens: Tokens, pooling: str | None) -> Tokens:
        """The tokens, filled up where a read-out counts padding."""
        length, token = self.transformer.readout(pooling).padded_to, self.config.query_only_spec.padding
        return tokens if not length or token is None else fill_up(tokens, token, length)

    def over_batches(
        self, tokens: Tokens, function: Any, budget: Budget | None = None, extra: int = 0
    ) -> Iterator[Any]:
        """`run` with what this model reads, after a look whether the tokens are of its making."""
        rows = self.tokenizer.n_ids
        if tokens.n_tokens and not 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < rows:
            raise ConfigError(
                f"the tokens hold ids from {tokens.ids.min()} to {tokens.ids.max()}, but {self.card.name} knows 0 to "
                f"{rows - 1}: they are of another model; make them with model.tokenize(adata)"
            )
        for spec in self.config.term_specs.values():
            longest = int(tokens.lengths.max(initial=0))
            if spec.channel == "positions" and tokens.positions is None and longest > spec.rows:
                raise ConfigError(
                    f"a cell has {longest:,} tokens, but {self.card.name} has positions for {spec.rows:,}; "
                    "cut the cells, as model.tokenize(adata) does"
                )
        budget = Budget("auto", self.device) if budget is None else budget
        return run(tokens, function, budget, self.device, self.config.cell_channels | {"cells"}, extra)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write our own layout: config.json, model.safetensors, tokenizer and vocabulary files, card."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        state = {name: tensor.contiguous() for name, tensor in self.transformer.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors gives its file to the owner alone, whatever the user's habits are
        shutil.copymode(folder / "config.json", folder / WEIGHTS_FILE)
        self.tokenizer.save(folder)
        if self.seen is not None:
            np.save(folder / SEEN_FILE, self.seen)
        about = {"card": self.card.to_dict(), "labels": {k: list(v) for k, v in self.labels.items()}}
        (folder / MODEL_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FoundationModel:
        """Read what `save_pretrained` wrote."""
        folder = Path(folder)
        about = read_settings(folder / MODEL_FILE, ("card", "labels"))
        config = CellTransformerConfig.from_dict(read_json(folder / "config.json", "the configuration"))
        weights = folder / WEIGHTS_FILE
        transformer = fill(config, as_state(read_tensors(weights), weights), [Key("(.+)", r"\1")], {}, str(weights))[0]
        seen = np.load(folder / SEEN_FILE, allow_pickle=False) if (folder / SEEN_FILE).is_file() else None
        card = ModelCard.from_dict(about["card"])
        return cls(transformer, Tokenizer.load(folder), card, about["labels"], seen=seen)
