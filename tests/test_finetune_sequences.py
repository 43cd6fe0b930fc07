"""Sequence models are probed and tuned by the calls that cells are tuned by."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import sequence_cases as cases
import torch

import scfm
from scfm.errors import CheckpointError, ConfigError, TokenizerError
from scfm.training import Finetuned, FinetunedSequences
from scfm.training._sequence_network import SequenceModel

MODELS = {
    "esm2": (cases.esm2, cases.RESIDUES),
    "nucleotide_transformer": (cases.nucleotide_transformer, "ACGT"),
    "dnabert": (cases.dnabert, "ACGT"),
    "esmc": (cases.esmc, cases.RESIDUES),
    "prot_bert": (cases.prot_bert, cases.RESIDUES),
}
QUICK = {"epochs": 2, "batch_cells": 8, "progress": False}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def esm2(folders):
    return cases.esm2(folders / "esm2_fixed")


def labelled(letters: str = cases.RESIDUES, n: int = 24, seed: int = 0) -> pd.DataFrame:
    """Sequences of families; those of one class hold more of the first half of the letters."""
    rng = np.random.default_rng(seed)
    half = len(letters) // 2
    rows = []
    for i in range(n):
        kind = i % 2
        weights = np.where((np.arange(len(letters)) < half) == (kind == 0), 4.0, 1.0)
        text = rng.choice(list(letters), rng.integers(8, 20), p=weights / weights.sum())
        rows.append({"sequence": "".join(text), "where": "in" if kind else "out", "amount": len(text) + 0.5})
    table = pd.DataFrame(rows, index=[f"s{i}" for i in range(n)])
    table["family"] = [f"f{i // 2 % 4}" for i in range(n)]
    return table


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_model_is_tuned_by_lora_kept_and_put_on_its_base_again(name, folders, tmp_path):
    make, letters = MODELS[name]
    base, table = make(folders / name), labelled(letters)
    before = table.copy()
    result = scfm.tl.finetune(table, base, "where", method="lora", rank=2, group_key="family", **QUICK)
    assert "sequences: 18 to train on, 6 held out" in repr(result) and "linear, frozen" in repr(result)
    result.save(tmp_path / "kept")
    again = Finetuned.load(tmp_path / "kept")
    assert isinstance(again, FinetunedSequences)
    pd.testing.assert_frame_equal(again.predict(table), result.predict(table))
    pd.testing.assert_frame_equal(table, before)
    moved = {name.split(".")[0] for name in result._tensors}
    assert moved == {"network", "heads"} and all("lora" in n or n.startswith("heads") for n in result._tensors)


@pytest.mark.parametrize("method", ["head", "freeze", "lora", "full"])
def test_what_moves_is_what_the_method_says(method, esm2):
    table = labelled()
    options = {**QUICK, "epochs": 3, "learning_rate": None if method == "head" else 1e-2, "validation_share": 0.0}
    result = scfm.tl.finetune(table, esm2, "where", method=method, **options)
    base = SequenceModel.open(esm2, None, "error", None, device=torch.device("cpu"))
    before, after = base.transformer.network.state_dict(), result.model.transformer.network.state_dict()
    assert before.keys() == after.keys()
    # the pooler is no part of what is read, and is drawn anew
    read = [name for name in before if not name.startswith("pooler")]
    changed = {name for name in read if not torch.equal(before[name], after[name])}
    if method == "head":
        assert not changed
    elif method == "freeze":
        assert changed
        assert all(name.startswith(("encoder.layer.1.", "encoder.emb_layer_norm_after")) for name in changed)
    elif method == "lora":
        assert changed and all(".layer." in name and name.endswith("weight") for name in changed)
    else:
        assert any("word_embeddings" in name for name in changed)
        assert any(name.startswith("encoder.layer.0.") for name in changed)


def test_tuning_fits_the_sequences_better_than_the_probe_it_began_at(esm2):
    table = labelled(n=40)
    result = scfm.tl.finetune(
        table,
        esm2,
        ["where", "amount"],
        method="full",
        learning_rate=3e-3,
        epochs=8,
        validation_share=0.0,
        **{k: v for k, v in QUICK.items() if k != "epochs"},
    )
    rows = result.scores[(result.scores["part"] == "train") & (result.scores["target"] == "where")].set_index("model")
    assert rows.loc["fine-tuned", "log_loss"] < rows.loc["linear, frozen", "log_loss"]
    assert set(result.predict(table)) == {"where", "where_score", "amount"}


def test_the_frozen_vectors_are_those_of_embed_sequences(esm2):
    table = labelled()
    ours = SequenceModel.open(esm2, None, "error", None, device=torch.device("cpu"))
    vectors = ours.embed_cells(ours.tokens(dict(table["sequence"])))
    theirs = scfm.tl.embed_sequences(dict(table["sequence"]), esm2, cache=False, progress=False)
    np.testing.assert_allclose(vectors, theirs.X, rtol=1e-4, atol=1e-5)


def test_a_tuned_network_is_exported_for_embed_sequences(esm2, tmp_path):
    table = labelled()
    result = scfm.tl.finetune(table, esm2, "where", method="lora", learning_rate=1e-2, **QUICK)
    exported = result.export(tmp_path / "tuned")
    theirs = scfm.tl.embed_sequences(dict(table["sequence"]), exported, cache=False, progress=False)
    ours = result.model.embed_cells(result.model.tokens(dict(table["sequence"])))
    np.testing.assert_allclose(ours, theirs.X, rtol=1e-4, atol=1e-5)


def test_a_sequence_is_told_by_itself_in_a_table_an_anndata_or_a_dictionary(esm2):
    table = labelled()
    result = scfm.tl.finetune(table, esm2, "where", method="head", group_key="family", progress=False)
    whole = result.predict_proba(table)
    one = result.predict_proba(table.iloc[[5]])
    np.testing.assert_allclose(one.to_numpy(), whole.iloc[[5]].to_numpy(), rtol=1e-4, atol=1e-5)
    adata = ad.AnnData(np.zeros((len(table), 1), np.float32), obs=table)
    np.testing.assert_array_equal(result.predict_proba(adata), whole)
    np.testing.assert_array_equal(result.predict_proba(dict(table["sequence"])), whole)


def test_predictions_are_written_into_an_anndata(esm2):
    adata = ad.AnnData(np.zeros((24, 1), np.float32), obs=labelled().rename(columns={"sequence": "protein"}))
    result = scfm.tl.finetune(
        adata, esm2, "where", method="head", sequence_key="protein", key_added="tuned", progress=False
    )
    np.testing.assert_array_equal(adata.obs["tuned_where"].astype(str), result.predict(adata)["where"].astype(str))
    assert adata.uns["scfm_finetune"]["tuned"]["base"] == "esm2_fixed"


def test_models_without_attention_are_tuned_without_adapters(folders):
    base, table = cases.mamba(folders / "mamba"), labelled("ACGT")
    result = scfm.tl.finetune(table, base, "where", method="freeze", pooling="last", learning_rate=1e-3, **QUICK)
    assert np.isfinite(result.scores["log_loss"]).all()
    with pytest.raises(ConfigError, match="for networks with attention"):
        scfm.tl.finetune(table, base, "where", method="lora", **QUICK)


def test_every_layer_is_probed_from_one_pass(esm2):
    table = labelled(n=40)
    probes = scfm.tl.probe_layers(table, "where", "family", esm2, pooling=["mean", "cls"], n_boot=20, progress=False)
    assert sorted(set(probes.table["layer"])) == [0, 1, 2] and set(probes.table["pooling"]) == {"mean", "cls"}
    assert probes.table["value"].between(0, 1).all()
    adata = ad.AnnData(np.zeros((40, 1), np.float32), obs=table)
    scfm.tl.probe_layers(
        adata, "where", "family", esm2, sequence_key="sequence", layers=[-1], n_boot=20, progress=False
    )
    assert scfm.get.layer_probes(adata).table["layer"].tolist() == [2]
    # the vectors of a layer are those of embed_sequences
    ours = SequenceModel.open(esm2, None, "error", None, device=torch.device("cpu"))
    found = ours.vectors_of_layers(ours.tokens(dict(table["sequence"])), [0, 1], ["mean"])
    theirs = scfm.tl.embed_sequences(dict(table["sequence"]), esm2, hidden_layer=1, cache=False, progress=False)
    np.testing.assert_allclose(found["mean", 1], theirs.X, rtol=1e-4, atol=1e-5)


def test_equal_sequences_are_on_one_side(esm2):
    table = labelled(n=20)
    twice = pd.concat([table, table.set_index(table.index + "_copy")])
    result = scfm.tl.finetune(twice, esm2, "where", method="head", progress=False)
    assert result.about["n_valid"] % 2 == 0 and result.about["n_valid"]


def test_an_adapter_is_not_put_on_another_base(esm2, folders, tmp_path):
    other = cases.esm2(folders / "esm2_other", seed=1)
    result = scfm.tl.finetune(labelled(), esm2, "where", method="head", progress=False, folder=tmp_path / "run")
    assert result.classes == {"where": ("in", "out")}
    with pytest.raises(CheckpointError, match="but esm2_other has others"):
        FinetunedSequences.load(tmp_path / "run", other)


@pytest.mark.parametrize(
    ("change", "options", "kind", "message"),
    [
        (lambda t: t.drop(columns="sequence"), {}, ConfigError, "no column 'sequence' with the letters"),
        (lambda t: t, {"target": "place"}, ConfigError, "no column 'place' to learn"),
        (lambda t: t, {"target": {"TP53": "a"}}, ConfigError, "for sequences name columns"),
        (lambda t: t.assign(where="in"), {}, ConfigError, "one class only"),
        (lambda t: t.assign(sequence=np.nan), {}, TokenizerError, "is float, not text"),
        (lambda t: t.assign(sequence="A" * 60), {}, TokenizerError, "has 60 tokens, but the model reads"),
        (lambda t: t.assign(sequence="J" * 9), {}, TokenizerError, "are unknown to it"),
        (lambda t: t.rename(index={"s1": "s0"}), {}, ConfigError, "'s0' stands twice"),
        (lambda t: t, {"method": "ia3"}, ConfigError, "for sequence models there is 'lora'"),
        (lambda t: t, {"method": "tune"}, ConfigError, "is none; there are"),
        (lambda t: t, {"pooling": "max"}, ConfigError, "not one of mean, cls, last"),
        (lambda t: t, {"too_long": "windows"}, ConfigError, "learnt from at once"),
        (lambda t: t, {"forgetting": True}, ConfigError, "forgetting= is for cells"),
        (lambda t: t, {"key_added": "x"}, ConfigError, "join result.predict"),
        (lambda t: t, {"model": "scfm-mini"}, ConfigError, "model= reads cells"),
        (lambda t: t, {"group_key": "nothing"}, ConfigError, "no column 'nothing' for group_key"),
    ],
)
def test_what_cannot_be_learnt_is_said_before_any_work(change, options, kind, message, esm2):
    with pytest.raises(kind, match=message):
        scfm.tl.finetune(change(labelled()), **{"model": esm2, "target": "where", **QUICK, **options})


def test_long_sequences_are_read_from_their_beginning_if_asked(esm2):
    table = labelled()
    longer = table.assign(sequence=table["sequence"] + "A" * 60)
    cut = table.assign(sequence=longer["sequence"].str[:38])
    result = scfm.tl.finetune(longer, esm2, "where", method="head", too_long="truncate", progress=False)
    np.testing.assert_array_equal(result.predict_proba(longer), result.predict_proba(cut))
