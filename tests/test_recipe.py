"""The recipe of the built-in model on real cells: a short fit learns, and the shipped weights keep above the floor."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import scfm
from scfm.genes import CoverageWarning
from scfm.models import FoundationModel
from scfm.training._fit_projection import fit_projection

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(
        not (DATA / "reference").is_dir(), reason=f"needs the cells of {DATA}, which are not ours to ship"
    ),
    pytest.mark.filterwarnings("ignore::scfm.genes.CoverageWarning"),
]
NOISE = 0.01
"""Differences below are noise of the protocol."""
FLOOR = {"lines": 0.892, "lines 5->3": 0.750, "depth 10 %": 0.878}
"""Macro F1 of a corpus projection without anything beside it, as measured before the model was made."""


@pytest.fixture(scope="module")
def protocol() -> ModuleType:
    """The script that scores embeddings."""
    name = "transfer_protocol"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mini() -> FoundationModel:
    return scfm.models.load("scfm-mini")


def cells_of(protocol: ModuleType, model: FoundationModel, folder: str, name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        return protocol.read(DATA / folder / f"{name}.h5ad", model.vocabulary)


def test_a_short_fit_ends_above_its_start_and_above_a_random_projection(protocol: ModuleType, tmp_path: Path) -> None:
    """Five files of the corpus, 150 cells of each; scored on cells of a study that is not among them."""
    files = ("pbmc4k_soupx", "pbmc_1k_citeseq", "lymph_node_ref", "lung_lavage_covid_10x5p", "skin_healthy_10x")
    settings = {
        "corpus": {"files": [str(DATA / "corpus" / f"{name}.h5ad") for name in files]},
        "projection": {"n_axes": 48, "max_cells": 150},
        "output": {"folder": str(tmp_path / "run"), "progress": False},
    }
    fitted = fit_projection(settings)
    cells = cells_of(protocol, fitted, "reference", "kang2018_ctrl_stim")[0].coarse().labelled(20)
    cells = cells[np.random.default_rng(0).permutation(len(cells))[:600]]
    thin = cells.thinned(0.3, 0)

    def score(embed) -> float:
        return protocol.folds(embed, cells, thin).value

    start = FoundationModel.from_pretrained(tmp_path / "run" / "model")
    draw = np.random.default_rng(0)
    table = start.transformer.terms["bag"].table
    table.data.copy_(table.new_tensor(draw.standard_normal(tuple(table.shape))) / 10)
    learnt, at_random = score(protocol.model_embedding(fitted)), score(protocol.model_embedding(start))
    assert learnt > at_random + 0.05
    assert learnt > score(protocol.random_projection) + 0.05


def test_the_shipped_weights_do_not_fall_below_the_floor(protocol: ModuleType, mini: FoundationModel) -> None:
    embed = protocol.model_embedding(mini)
    three, about = cells_of(protocol, mini, "benchmark", "sc_mixology_3cl_celseq2_dropseq")
    celseq2, dropseq = (three[(about["assay"] == assay).to_numpy()] for assay in ("CEL-seq2", "Drop-seq"))
    five = cells_of(protocol, mini, "benchmark", "sc_mixology_5cl_celseq2")[0]
    blood = cells_of(protocol, mini, "reference", "pbmc3k_labelled")[0].coarse()
    found = {
        "lines": [protocol.pair(embed, celseq2, dropseq), protocol.pair(embed, dropseq, celseq2)],
        "lines 5->3": [protocol.pair(embed, five, celseq2), protocol.pair(embed, five, dropseq)],
        "depth 10 %": [protocol.folds(embed, blood, blood.thinned(0.10, 0))],
    }
    scores = {name: protocol.together(rows).value for name, rows in found.items()}
    assert {name: score > FLOOR[name] - NOISE for name, score in scores.items()} == dict.fromkeys(FLOOR, True), scores
