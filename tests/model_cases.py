"""Small checkpoints in folders that a test may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from golden_cases import case
from safetensors.torch import save_file

import scfm
from scfm.models._reading import read_tensors
from scfm.tokenizers import Tokens


def copied(source: Path, target: Path) -> Path:
    """A folder's files, writable."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    return target


def geneformer_folder(target: Path, version: int = 1) -> Path:
    checkpoint = case(f"geneformer_v{version}") / "checkpoint"
    copied(next(p for p in sorted(checkpoint.iterdir()) if (p / "config.json").is_file()), target)
    return copied(next(checkpoint.rglob("token_dictionary*.pkl")).parent, target)


def scgpt_folder(target: Path, kind: str = "pretrained") -> Path:
    return copied(case("scgpt") / "checkpoint" / kind, target)


def scbert_folder(target: Path) -> Path:
    return copied(case("scbert") / "checkpoint", target)


def nicheformer_folder(target: Path) -> Path:
    copied(case("nicheformer") / "checkpoint", target)
    next(target.glob("finetuned*.ckpt")).unlink()
    return copied(case("nicheformer") / "model_means", target)


def uce_folder(target: Path) -> Path:
    files = case("uce") / "checkpoint" / "model_files"
    copied(files, target)
    copied(files / "protein_embeddings", target / "protein_embeddings")
    shutil.copyfile(case("uce") / "config.json", target.parent / "config.json")
    return target


def scfoundation_folder(target: Path) -> Path:
    checkpoint = case("scfoundation") / "checkpoint"
    copied(checkpoint, target)
    return copied(checkpoint / "models", target)


def scmulan_folder(target: Path) -> Path:
    return copied(case("scmulan") / "checkpoint", target)


WEIGHTS = (
    "models.ckpt",
    "model.safetensors",
    "best_model.pt",
    "panglao_pretrain.pth",
    "nicheformer.ckpt",
    "4layer_model.torch",
    "ckpt_scMulan.pt",
)
WEIGHT_SET = "cell"
"""Of files that hold several: the one that is read if none is asked for."""
NESTED = ("model_state_dict", "state_dict", "model")
"""Under which names files hold the tensors beside other things."""


def weights_of(folder: Path) -> Path:
    return next(folder / n for n in WEIGHTS if (folder / n).is_file())


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    path = weights_of(folder)
    held = read_tensors(path)
    held = held.get(WEIGHT_SET, held)
    return dict(next((held[name] for name in NESTED if name in held), held))


def write_state(folder: Path, state: dict[str, torch.Tensor]) -> None:
    path = weights_of(folder)
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    elif path.suffix == ".ckpt":
        held = read_tensors(path)
        one = {**held.get(WEIGHT_SET, held), "state_dict": state}
        torch.save({**held, WEIGHT_SET: one} if WEIGHT_SET in held else one, path)
    elif path.name == "ckpt_scMulan.pt":
        torch.save({**read_tensors(path), "model": state}, path)
    else:
        torch.save(state, path)


TABLES = (
    "word_embeddings.weight",
    "encoder.embedding.weight",
    "pos_emb.emb.weight",
    "pe_embedding.weight",
    "model.pos_emb.weight",
    "wte.weight",
)


def table_of(state: dict[str, torch.Tensor]) -> str:
    return next(k for k in state if k.endswith(TABLES) or k == "embeddings.weight")


def name_in(state: dict[str, torch.Tensor], *ends: str) -> str:
    """The first tensor of such a name that a model uses."""
    return next(k for k in state if k.endswith(ends) and not k.startswith("encoder_layer."))


WHOLE_PARTS = {"flag_encoder.weight"}
"""Tensors that make up a part of a model alone: without them the model lacks that part."""


def some_tokens(model: scfm.models.FoundationModel) -> Tokens:
    rng = np.random.default_rng(0)
    genes = np.flatnonzero(model.vocabulary.is_gene[: model.tokenizer.n_ids])
    ids = np.concatenate([rng.permutation(genes)[:n] for n in (5, 9, 7)]).astype(np.int32)
    values = rng.integers(1, 6, len(ids)).astype(np.float32)
    return Tokens(ids=ids, offsets=np.array([0, 5, 14, 21]), values=values)


def dictionaries(version: int) -> Path:
    return next((case(f"geneformer_v{version}") / "checkpoint").rglob("token_dictionary*.pkl")).parent


FAMILY_CASES = {
    "geneformer": geneformer_folder,
    "scgpt": scgpt_folder,
    "scbert": scbert_folder,
    "nicheformer": nicheformer_folder,
    "uce": uce_folder,
    "scfoundation": scfoundation_folder,
    "scmulan": scmulan_folder,
}
"""How to make a small checkpoint of each family."""
