"""Models come from the hub where the authors publish there: the real client against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_hub import fill_cache, served
from golden_cases import arrays, case, tokens_of
from huggingface_hub import constants

import scfm
from scfm.errors import CheckpointError, ConfigError

REPOSITORY = "someone/little-models"
CARD = scfm.models.cards()["geneformer-v1-10m"]


def model_files(folder: str, *, weights: str = "model.safetensors") -> dict[str, bytes]:
    """A small Geneformer with its dictionaries, in a folder of a repository."""
    checkpoint = case("geneformer_v1") / "checkpoint"
    model = next(p for p in sorted(checkpoint.iterdir()) if (p / "config.json").is_file())
    dictionaries = next(checkpoint.rglob("token_dictionary*.pkl")).parent
    prefix = f"{folder}/" if folder else ""
    return {
        **{prefix + name: (model / name).read_bytes() for name in ("config.json", weights)},
        **{f"{prefix}{p.name}": p.read_bytes() for p in dictionaries.iterdir()},
    }


def own_files(folder: str, tmp_path) -> dict[str, bytes]:
    """The same model in our own layout."""
    fill = tmp_path / "official"
    for name, data in model_files("").items():
        fill.mkdir(exist_ok=True)
        (fill / name).write_bytes(data)
    scfm.models.load(fill).save_pretrained(tmp_path / "own")
    return {f"{folder}/{p.name}": p.read_bytes() for p in (tmp_path / "own").iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "home"))
    return folder


def tokens():
    recorded = arrays("geneformer_v1")
    return tokens_of(recorded["tokens"], recorded["length"])


def embedding_of_the_case():
    return arrays("geneformer_v1")["emb_cell_layer-1"]


def test_a_cached_repository_is_opened_without_network(cache):
    fill_cache(cache, REPOSITORY, "main", model_files("tiny"))
    model = scfm.models.load(f"{REPOSITORY}/tiny")
    np.testing.assert_allclose(model.embed_cells(tokens()), embedding_of_the_case(), atol=1e-5)
    assert model.card.name == f"{REPOSITORY}/tiny"


def test_a_registered_name_is_found_in_the_repository_of_its_authors(cache):
    repository, folder = CARD.hub
    fill_cache(cache, repository, "main", model_files(folder))
    assert scfm.models.list().loc[CARD.name, "here"]
    model = scfm.models.load(CARD.name)
    assert model.card == CARD
    assert scfm.models.load(f"{repository}/{folder}").card == CARD
    np.testing.assert_allclose(model.embed_cells(tokens()), embedding_of_the_case(), atol=1e-5)


def test_revision_picks_a_version(cache):
    fill_cache(cache, REPOSITORY, "old", model_files("", weights="pytorch_model.bin"))
    assert scfm.models.load(REPOSITORY, revision="old").card.name == REPOSITORY
    with pytest.raises(CheckpointError, match="not in the local hub cache"):
        scfm.models.load(REPOSITORY, revision="new")


def test_own_layout_can_live_on_the_hub(cache, tmp_path):
    fill_cache(cache, REPOSITORY, "main", own_files("ours", tmp_path))
    model = scfm.models.load(f"{REPOSITORY}/ours")
    np.testing.assert_allclose(model.embed_cells(tokens()), embedding_of_the_case(), atol=1e-5)


def test_missing_folder_and_missing_repository_are_named(cache):
    fill_cache(cache, REPOSITORY, "main", model_files("tiny"))
    with pytest.raises(CheckpointError, match="no folder big"):
        scfm.models.load(f"{REPOSITORY}/big")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*geneformer-v2-316m and load"):
        scfm.models.load("geneformer-v2-316m")
    with pytest.raises(ConfigError, match="neither a folder"):
        scfm.models.load("a b/c?d")


def test_revision_of_a_folder_on_this_machine_is_refused(tmp_path, cache):
    with pytest.raises(ConfigError, match="revision='main'"):
        scfm.models.load(tmp_path, revision="main")


FETCH = """
import json, sys
import scfm
for name, revision in json.loads(sys.argv[1]):
    try:
        answer = {"card": scfm.models.load(name, revision=revision).card.name}
    except scfm.errors.CheckpointError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
"""


def fetch(address, tmp_path, *wanted):
    """What a fresh process gets, by name and revision, that knows this hub only."""
    env = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "SCFM_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps(wanted)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(wanted) :]]


@pytest.mark.slow
def test_only_the_files_that_are_read_are_fetched(tmp_path):
    repository, folder = CARD.hub
    others = {"big/model.safetensors": b"x", "training_args.bin": b"x", f"{folder}/deep/model.safetensors": b"x"}
    with served(repository, {"main": {**model_files(folder), **others}}) as (address, fetched):
        small, unknown = fetch(address, tmp_path, (CARD.name, None), ("nobody/nothing", None))
    assert sorted(fetched) == sorted(f"{folder}/{name}" for name in CARD.files)
    assert "no token dictionary" in small["error"]
    assert "no repository nobody/nothing" in unknown["error"]


@pytest.mark.slow
def test_a_repository_is_fetched_by_revision(tmp_path):
    name = f"{REPOSITORY}/ours"
    with served(REPOSITORY, {"main": {}, "v1": own_files("ours", tmp_path)}) as (address, fetched):
        found, again, missing = fetch(address, tmp_path, (name, "v1"), (name, "v1"), (name, "v2"))
    assert found == again == {"card": "official"}
    assert sorted(fetched) == sorted(set(fetched))
    assert {"ours/model.safetensors", "ours/config.json", "ours/vocabulary.json"} <= set(fetched)
    assert "revision v2" in missing["error"]
