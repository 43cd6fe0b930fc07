"""Which sequence model is this? Where its files are, whether transformers runs it natively, and how it spells letters."""

from __future__ import annotations

import hashlib
import inspect
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from scfm.errors import CheckpointError, ConfigError, TokenizerError
from scfm.models._card import ModelCard
from scfm.models._reading import DAMAGED, _reason, read_json
from scfm.models._registry import _download, home

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
COMPANIONS = ("*.json", "*.txt", "*.model")
NOT_READ = ("pooler.", "contact_head.", "lm_head.", "cls.")
"""Parts of a model that play no role for its hidden states."""
BUFFERS = ("position_ids", "inv_freq")
SHIFTED_POSITIONS = ("esm", "roberta", "xlm-roberta", "camembert", "longformer")
"""Models whose positions begin behind the padding id."""
NOT_A_LIMIT = 10**9
OWN_CODE = {
    "nucleotide-transformer-v2": "a gated feed-forward layer, which the native ESM class lacks",
    "ntv3": "a U-Net of its own",
    "dnabert-2": "MosaicBERT: ALiBi and a gated feed-forward layer",
    "dnabert-s": "MosaicBERT: ALiBi and a gated feed-forward layer",
    "hyenadna": "long convolutions",
    "caduceus": "bidirectional Mamba, with CUDA kernels of mamba_ssm",
    "evo": "StripedHyena, with flash-attn on a GPU",
    "gpn": "convolutions; the authors' package gpn registers them",
    "lucaone": "an encoder of nucleotides and proteins",
}
"""What is known to need code of its authors."""
BINDING = {
    "nucleotide-transformer": "the authors' licence (CC-BY-NC-SA-4.0) allows non-commercial use only, under the same terms",
    "ntv3": "the authors' licence (CC-BY-NC-SA-4.0) allows non-commercial use only, under the same terms",
}
"""What licences ask of a user, by a word of the name."""
LETTERS = "ACGT"
UNREADABLE = (*DAMAGED, OSError, ImportError, SafetensorError, zipfile.BadZipFile)
"""What transformers raises on files that it cannot read."""


@dataclass(frozen=True)
class Located:
    """A sequence model's files.

    Parameters
    ----------
    name
        As it was asked for.
    folder
        Where the files are.
    config
        Its config.json.
    own_code
        Whether code of the repository is to be run.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    own_code: bool = False

    @property
    def short_name(self) -> str:
        """Last part of the name."""
        return self.name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def binding(self) -> str:
        """What the licence asks of a user; empty where nothing is known of it."""
        return next((text for word, text in BINDING.items() if word in self.name.lower()), "")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all files that play a role: the cache is keyed by content, not by name."""
        digest = hashlib.sha256()
        files = {f for pattern in (*WEIGHTS, *COMPANIONS, "*.py") for f in self.folder.glob(pattern)}
        for file in sorted(files):
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()


def locate(model: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Located:
    """Find a sequence model's files, fetched if need be, and see whether transformers runs it without foreign code.

    Parameters
    ----------
    model
        A folder, or ``owner/repository`` of the model hub.
    revision
        Of the repository.
    trust_remote_code
        Run code that comes with the model; of a repository only at a fixed revision.

    Raises
    ------
    CheckpointError
        If files are missing, or the model needs code of its own.
    ConfigError
        If the name is no folder and no repository, or foreign code is asked for without a revision.
    """
    name = str(model)
    path = next((p for p in (Path(name).expanduser(), home() / name.rsplit("/", 1)[-1]) if p.is_dir()), None)
    if path is not None and revision is not None:
        raise ConfigError(f"revision={revision!r} picks a version on the model hub, but {path} is a folder here")
    if path is None and trust_remote_code and revision is None:
        raise ConfigError(
            f"trust_remote_code=True runs what {name} holds on the day; fix it with revision=<commit> and read the code first"
        )
    if path is None:
        path = _fetched(name, revision, own_code=trust_remote_code)
    config = read_json(path / "config.json", "the configuration", "A folder of a transformers model has one.")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / 'config.json'} is not the configuration of a model")
    reason = _why_not_native(name, config)
    if reason and not trust_remote_code:
        raise CheckpointError(
            f"{name} is not run by transformers itself: {reason}. It needs code of its authors, which is executed only with "
            "trust_remote_code=True (and revision=<commit> for a hub repository), after you have read it"
        )
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise CheckpointError(f"{path} holds no weights; expected model.safetensors or pytorch_model.bin")
    return Located(name, path, config, own_code=bool(reason))


def _fetched(name: str, revision: str | None, *, own_code: bool) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(
            f"no sequence model {name!r}: it is no folder on this machine, and not of the form owner/repository, such as "
            "facebook/esm2_t33_650M_UR50D"
        )
    wanted = (*COMPANIONS, *(("*.py",) if own_code else ()))
    for weights in WEIGHTS:
        files = dict.fromkeys((*wanted, weights))
        card = ModelCard(name=name.rsplit("/", 1)[-1], family="sequence", files=files)
        path = _download(name, "", revision, card)
        if next(path.glob(weights), None):
            break
    return path


def _why_not_native(name: str, config: dict[str, Any]) -> str:
    """Why transformers' own classes do not run a model; empty where they do."""
    kind = config.get("model_type")
    known = next((why for word, why in OWN_CODE.items() if word in f"{name} {kind}".lower()), "")
    if config.get("auto_map"):
        return known or f"its config.json names classes of its own ({', '.join(map(str, config['auto_map'].values()))})"
    if config.get("add_bias_fnn") is False:
        return OWN_CODE["nucleotide-transformer-v2"]
    if kind not in CONFIG_MAPPING:
        return known or f"model_type {kind!r} is not one of its architectures"
    if config.get("is_encoder_decoder"):
        return "it is an encoder with a decoder, of which no vector per sequence is defined"
    return ""


def load_network(found: Located, device: torch.device, dtype: torch.dtype) -> Any:
    """The network, with every weight that its hidden states depend on.

    Raises
    ------
    CheckpointError
        If weights are missing, of another shape, or of parts that the architecture does not have.
    """
    said, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            str(found.folder), dtype=dtype, output_loading_info=True, trust_remote_code=found.own_code
        )
    except UNREADABLE as error:
        raise CheckpointError(f"{found.folder} cannot be loaded as a transformers model: {_reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(said)
        if bars:
            transformers_logging.enable_progress_bar()
    prefix = f"{model.base_model_prefix}."
    children = {name for name, _ in model.named_children()}
    strange = [k for k in info["unexpected_keys"] if k.removeprefix(prefix).split(".")[0] in children]
    problems = {
        "missing": _that_matter(info["missing_keys"]),
        "of another shape": [str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"]],
        "unknown to its architecture": _that_matter(strange),
    }
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(
                f"{found.folder}: {len(keys)} weights are {what} ({', '.join(sorted(keys)[:3])}); the vectors would be those "
                "of another model. Is the file complete, and does config.json belong to it?"
            )
    return model.to(device).eval()


def _that_matter(keys: Iterable[str]) -> list[str]:
    return [k for k in keys if not any(f".{part}" in f".{k}" for part in NOT_READ) and not k.endswith(BUFFERS)]


@dataclass(frozen=True)
class Speller:
    """Turns letters into the ids that a model was trained with.

    Parameters
    ----------
    tokenizer
        Of transformers.
    name
        Of the model, for messages.
    n_ids
        Ids that the network has vectors for.
    """

    tokenizer: Any
    name: str
    n_ids: int

    @classmethod
    def of(cls, found: Located, n_ids: int) -> Speller:
        """The tokenizer that comes with a model.

        Raises
        ------
        CheckpointError
            If there is none.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(found.folder), trust_remote_code=found.own_code)
        except UNREADABLE as error:
            raise CheckpointError(f"{found.folder} holds no tokenizer that can be read: {_reason(error)}") from error
        return cls(tokenizer, found.short_name, n_ids)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Id of each token."""
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def words(self) -> list[str]:
        """Tokens that are no special ones."""
        special = set(self.tokenizer.all_special_tokens)
        return [token for token in self.vocabulary if token not in special]

    @cached_property
    def k(self) -> int:
        """Length of overlapping words that the text is to be cut into (DNABERT), 1: single letters; 0: it is not cut."""
        lengths = {len(w) for w in self.words if set(w) <= set(LETTERS)}
        whole = max(lengths, default=0)
        tokens = self.tokenizer.tokenize("ACGT" * 4)
        if self._unknown not in tokens:
            return 0
        n_words = sum(len(w) == whole and set(w) <= set(LETTERS) for w in self.words)
        return whole if whole > 1 and n_words == len(LETTERS) ** whole else 1

    @cached_property
    def is_dna(self) -> bool:
        """Whether words are made of nucleotides only."""
        return bool(self.words) and all(set(w.upper()) <= set("ACGTUN") for w in self.words if w.isalpha())

    @cached_property
    def _unknown(self) -> str:
        return str(self.tokenizer.unk_token)

    @cached_property
    def lower(self) -> bool:
        """Whether the model reads lower-case letters."""
        return "a" in self.vocabulary and "A" not in self.vocabulary

    def text(self, letters: str) -> str:
        """Upper-case letters as the tokenizer expects them: in its case, RNA as DNA, cut into words."""
        if self.is_dna and "U" not in self.vocabulary:
            letters = letters.replace("U", "T")
        if self.lower:
            letters = letters.lower()
        if self.k == 0:
            return letters
        return " ".join(letters[i : i + self.k] for i in range(max(1, len(letters) - self.k + 1)))

    def ids(self, letters: str) -> list[int]:
        """Ids of the letters, without special tokens.

        Raises
        ------
        TokenizerError
            If most of them are unknown to the model.
        CheckpointError
            If the tokenizer has more ids than the network.
        """
        found: list[int] = self.tokenizer(self.text(letters), add_special_tokens=False, verbose=False)["input_ids"]
        if not found or max(found) >= self.n_ids:
            raise CheckpointError(
                f"{self.name}: the tokenizer gives ids up to {max(found, default=-1)}, but the network knows {self.n_ids}; they "
                "do not belong together"
            )
        if 2 * self.n_unknown(found) > len(found):
            kind = "nucleotides" if self.is_dna else "amino acids"
            raise TokenizerError(
                f"{self.name} reads {kind}, but {self.n_unknown(found):,} of {len(found):,} tokens of a sequence "
                f"({letters[:20]}...) are unknown to it"
            )
        return found

    def n_unknown(self, ids: list[int]) -> int:
        """How many ids stand for what the model does not know."""
        return ids.count(self.tokenizer.unk_token_id) if self.tokenizer.unk_token_id is not None else 0

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Special tokens before and behind a sequence; those that the network has no vector for are left out."""
        probe = self.text("ACGT" * 8)
        whole = self.tokenizer(probe)["input_ids"]
        body = self.tokenizer(probe, add_special_tokens=False)["input_ids"]
        starts = [i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body]
        if not starts:
            raise CheckpointError(f"{self.name}: the tokenizer changes a sequence when it adds special tokens")
        before, behind = whole[: starts[0]], whole[starts[0] + len(body) :]
        return tuple(i for i in before if i < self.n_ids), tuple(i for i in behind if i < self.n_ids)

    @property
    def pad(self) -> int:
        """Id that batches are filled up with."""
        return self.tokenizer.pad_token_id or 0


def longest(found: Located, speller: Speller) -> int | None:
    """Tokens, special ones included, that a model was made for; None where neither model nor tokenizer tells."""
    config = found.config
    limits = []
    positions = config.get("max_position_embeddings")
    if positions:
        shift = (config.get("pad_token_id") or 0) + 1 if config.get("model_type") in SHIFTED_POSITIONS else 0
        limits.append(int(positions) - shift)
    if speller.tokenizer.model_max_length and speller.tokenizer.model_max_length < NOT_A_LIMIT:
        limits.append(int(speller.tokenizer.model_max_length))
    return min(limits, default=None)


def can_be_longer(found: Located) -> bool:
    """Whether positions are computed, so that sequences beyond the trained length are possible."""
    return bool(found.config.get("position_embedding_type", "") == "rotary" or "rope_parameters" in found.config)


def states(model: Any, ids: Tensor, mask: Tensor, hidden_layer: int | None) -> Tensor:
    """Hidden states (B, L, d) of padded ids (B, L): of the last layer, or of layer 0 (embeddings) to n."""
    if hidden_layer is not None:
        return states_of_layers(model, ids, mask, [hidden_layer])[0]
    out = _output(model, ids, mask)
    state = getattr(out, "last_hidden_state", None)
    return out[0] if state is None else state


def states_of_layers(model: Any, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The same of several layers, from one pass.

    Raises
    ------
    ConfigError
        If the model has no such layer, or gives its final state only.
    """
    found = getattr(_output(model, ids, mask, output_hidden_states=True), "hidden_states", None)
    if not found:
        raise ConfigError(f"hidden_layer={layers[0]}, but this model gives its final state only")
    for k in layers:
        if not -len(found) <= k < len(found):
            raise ConfigError(f"hidden_layer={k}; the model has the layers 0 (embeddings) to {len(found) - 1}")
    return [found[k] for k in layers]


def _output(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    return model(ids, **options, **({"attention_mask": mask} if takes_mask else {}))


def settings_key(settings: dict[str, Any]) -> str:
    """A short name for settings: equal ones share a cache."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
