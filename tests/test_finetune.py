"""Tuning begins at the linear probe, moves what it says, ends at the best that was seen, and can be kept and loaded."""

from __future__ import annotations

import _thread
import json
import sys
import threading

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from golden_cases import arrays, assert_close, case, tokens_of, unpad
from model_cases import FAMILY_CASES
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from training_cases import cells

import scfm
from scfm.errors import CheckpointError, ConfigError, GeneMatchError, MissingDependencyError
from scfm.models._run import to_batch
from scfm.training import Finetuned
from scfm.training._adapters import METHODS
from scfm.training._finetune_cells import hold, hold_out, open_cells
from scfm.training._finetune_objective import Labels
from scfm.training._finetune_targets import Target, cell_targets
from scfm.training._finetune_trainer import Guesses
from scfm.training._linear import fit_linear
from scfm.training.objectives._base import tensors

QUICK = {"epochs": 2, "batch_cells": 8, "progress": False}


@pytest.fixture
def load(tmp_path):
    return lambda family, *options: scfm.models.load(FAMILY_CASES[family](tmp_path / family / "checkpoint", *options))


@pytest.fixture(scope="module")
def mini():
    return scfm.models.load("scfm-mini")


def cells_of(family: str) -> ad.AnnData:
    """The recorded cells of a family, with labels and numbers."""
    adata = ad.read_h5ad(case("geneformer_v1" if family == "geneformer" else family) / "cells.h5ad")
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 2 == 0, "x", "y")
    adata.obs["amount"] = np.arange(adata.n_obs) * 1.5 + 100
    return adata


def context_of(family: str) -> dict:
    return {"species": "human", "assay": "10x 3' v3", "modality": "dissociated"} if family == "nicheformer" else {}


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}


def moved(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# every family


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_every_family_is_tuned_by_lora_kept_and_put_on_its_base_again(family, load, tmp_path):
    model, adata = load(family), cells_of(family)
    before = state(model)
    result = scfm.tl.finetune(
        adata, model, ["label", "amount"], method="lora", context=context_of(family), validation_share=0, **QUICK
    )
    assert moved(before, model.transformer.state_dict()) == set()
    found = result.predict(adata)
    there = found["amount"].notna()
    assert there.sum() >= adata.n_obs - 1 and set(found["label"].dropna()) <= {"x", "y"}
    assert moved(before, state(result.model)) == {
        f"encoder.layers.{k}.{name}.weight"
        for k in range(model.transformer.n_layers)
        for name in ("qkv", "out", "up", "down")
    }
    folder = result.save(tmp_path / "kept")
    names = set(load_file(folder / "tuned.safetensors"))
    assert all("lora_" in n or n.startswith("heads.") for n in names)
    again = Finetuned.load(folder, model).predict(adata)
    np.testing.assert_allclose(again["amount"], found["amount"], rtol=1e-5)
    scfm.tl.embed(adata, result.model, key_added="tuned", context=context_of(family), progress=False)
    assert np.isfinite(adata.obsm["X_tuned"][there]).all()
    assert result.model.card.name != model.card.name


@pytest.mark.parametrize("method", [m for m in METHODS if m != "lora"])
def test_what_moves_is_what_the_method_says(method, load):
    model, adata = load("geneformer"), cells_of("geneformer")
    result = scfm.tl.finetune(adata, model, "label", method=method, validation_share=0, **QUICK)
    changed = moved(state(model), state(result.model))
    n = model.transformer.n_layers
    expected = {
        "head": lambda name: False,
        "full": lambda name: not name.startswith("heads.") and not name.startswith("decoder."),
        "freeze": lambda name: name.startswith(tuple(f"encoder.layers.{k}." for k in range(max(n // 2, 1), n))),
        "ia3": lambda name: name.endswith(("qkv.weight", "qkv.bias", "down.weight")),
    }[method]
    weights = {name for name, p in model.transformer.named_parameters() if expected(name) and p.numel() > 1}
    # rows and biases without a gradient stay: nearly all is what counts
    assert changed <= weights
    assert len(changed) >= 0.8 * len(weights)


def test_tuning_fits_the_cells_better_than_the_probe_it_began_at(load):
    model, adata = load("geneformer"), cells_of("geneformer")
    labels = np.random.default_rng(0).permutation(np.repeat(["x", "y"], 8))
    adata.obs["label"] = labels
    result = scfm.tl.finetune(
        adata,
        model,
        "label",
        method="lora",
        validation_share=0,
        epochs=10,
        batch_cells=8,
        learning_rate=0.01,
        progress=False,
    )
    table = result.scores.set_index("model")["log_loss"]
    assert table["fine-tuned"] < 0.5 * table["linear, frozen"] < table["most frequent"]
    assert np.isnan(result.score())


def test_the_built_in_model_is_tuned_on_groups(mini):
    adata = cells(120, donors=4)
    # a few counts per cell: otherwise the linear map that a head starts from leaves nothing to gain
    adata.X = np.random.default_rng(0).binomial(sp.csr_matrix(adata.X).toarray().astype(int), 0.03).astype(np.float32)
    result = scfm.tl.finetune(adata, mini, "kind", group_key="donor", **{**QUICK, "epochs": 1})
    assert result.tuning.method == "full"
    assert moved(state(mini), state(result.model)) == {"terms.bag.table", "terms.excess.table"}
    assert len(result.about["groups"]) == 1
    assert set(result.scores["model"]) == {"fine-tuned", "linear, frozen", "neighbours, frozen", "most frequent"}
    assert result.score() >= 0.9 > result.score(what="most frequent")
    assert "macro_f1 on held-out cells" in repr(result) and "gap" in repr(result)
    assert "eval_tuned_kind_accuracy" in result.history


@pytest.mark.parametrize("method", ["lora", "ia3", "freeze"])
def test_a_model_without_layers_says_what_can_be_tuned_of_it(mini, method):
    with pytest.raises(ConfigError, match=r"no layers that method='\w+' could change.*method='full'"):
        scfm.tl.finetune(cells(20), mini, "kind", method=method, progress=False)


def test_the_same_seed_gives_the_same_model(load):
    adata = cells_of("scgpt")
    one, other = (
        scfm.tl.finetune(adata, load("scgpt"), "label", method="lora", lora_dropout=0.2, seed=3, **QUICK)
        for _ in range(2)
    )
    assert moved(state(one.model), state(other.model)) == set()


# the authors' numbers


@pytest.mark.parametrize("version", [1, 2])
def test_golden_losses_of_geneformers_classifiers(version):
    golden = arrays(f"geneformer_v{version}")
    tokens = tokens_of(golden["tokens"], golden["length"])
    labels = {
        "cell": golden["cell_clf_labels"],
        "gene": unpad(golden["gene_clf_labels"], golden["length"]),
    }
    folders = [p.parent for p in sorted((case(f"geneformer_v{version}") / "checkpoint").rglob("config.json"))]
    for kind, values in labels.items():
        model = scfm.models.load(next(p for p in folders if f"{kind}classifier" in str(p).lower()))
        name = f"{kind}_classifier"
        k = int(model.config.head_specs[name].mlp.widths[-1])
        target = Target(name, kind, "genes" if kind == "gene" else "classes", values, tuple(map(str, range(k))))
        rows = np.flatnonzero(values >= 0)
        objective = Labels((target,), "first" if kind == "cell" else None)
        asked = tensors(**{f"{name}.rows": rows, name: values[rows]})
        with torch.no_grad():
            loss = objective.losses(model.transformer, to_batch(tokens), asked)[name] / len(rows)
        assert_close(loss, golden[f"{kind}_clf_loss"])


def test_golden_loss_of_scgpts_annotation():
    golden = arrays("scgpt")
    model = scfm.models.load(case("scgpt") / "checkpoint" / "annotation")
    lengths = (golden["ann.genes"] != model.vocabulary.specials["pad"]).sum(axis=1)
    tokens = tokens_of(golden["ann.genes"], lengths, golden["ann.values"])
    labels = golden["ann.labels"].astype(np.int64)
    k = int(model.config.head_specs["cell_classifier"].mlp.widths[-1])
    target = Target("cell_classifier", "celltype", "classes", labels, tuple(map(str, range(k))))
    asked = tensors(**{"cell_classifier.rows": np.arange(len(labels)), "cell_classifier": labels})
    with torch.no_grad():
        loss = Labels((target,), "cls_raw").losses(model.transformer, to_batch(tokens), asked)["cell_classifier"]
    assert_close(loss / len(labels), golden["ann.loss_cls"])


# losses


def test_the_loss_of_a_cell_does_not_depend_on_its_batch(load):
    model, adata = load("geneformer"), cells_of("geneformer")
    held = hold(open_cells(adata, {}), model, None, False)
    targets = tuple(t.fitted(np.arange(16), "balanced") for t in cell_targets(adata.obs, ["label", "amount"]))
    from scfm.training._finetune_probe import Job
    from scfm.training._finetuned import dressed
    from scfm.training._index import Split

    labels = Labels(targets, model.config.readout)
    tuned = dressed(model, targets, model.config.readout, "tuned")
    job = Job(held, Split(np.arange(16), np.empty(0, np.int64), ()), labels, labels)
    batches = job.batches(np.arange(16), labels, tuned, 0)

    def sums(groups):
        total = {"tuned_label": 0.0, "tuned_amount": 0.0}
        for group in groups:
            example = batches.make(np.array(group), -1)
            with torch.no_grad():
                found = labels.losses(tuned.transformer, example.batch, example.targets)
            total = {name: total[name] + float(found[name]) for name in total}
        return total

    there = np.flatnonzero(held.index.n_genes > 0)
    together, alone = sums([there]), sums([[i] for i in there])
    assert together == pytest.approx(alone, rel=1e-4)


def test_class_weights_are_those_of_torch():
    values = np.array([0, 0, 0, 1])
    target = Target("t", "t", "classes", values, ("a", "b")).fitted(np.arange(4), "balanced")
    np.testing.assert_allclose(target.weights, [4 / 6, 2.0])
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    ours = Guesses(logits.double().numpy(), values, np.arange(4)).loss(target)
    theirs = F.cross_entropy(logits, torch.as_tensor(values), weight=torch.as_tensor(target.weights))
    assert ours == pytest.approx(float(theirs), rel=1e-5)


def test_numbers_are_answered_in_their_own_unit(mini):
    adata = cells(80)
    adata.obs["amount"] = 1000.0 + 50 * (adata.obs["kind"] == "a")
    result = scfm.tl.finetune(adata, mini, "amount", kind="number", method="head", progress=False)
    found = result.predict(adata)["amount"]
    assert np.abs(found - adata.obs["amount"]).max() < 25
    assert result.score() > 0.8


def test_a_linear_map_of_vectors_of_any_scale_is_that_of_standardised_ones():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = (x[:, 0] + 0.1 * rng.normal(size=200) > 0).astype(np.int64)
    scales = np.array([1e-4, 1.0, 1e3, 1.0, 1.0])
    moved_far = x * scales + np.array([5.0, -3, 0, 0, 1e3])
    one, other = fit_linear(x, y, 2), fit_linear(moved_far, y, 2)
    np.testing.assert_allclose(one(x), other(moved_far), atol=1e-3)
    assert (one(x).argmax(axis=1) == y).mean() > 0.95


# several targets, genes, forgetting


def test_cells_without_one_label_count_for_the_others(mini):
    adata = cells(60)
    adata.obs["half"] = np.where(np.arange(60) < 30, adata.obs["kind"], None)
    adata.obs.loc[adata.obs_names[50:], "kind"] = None
    with pytest.raises(ConfigError, match=r"has no value for 10 of 60 cells.*missing='drop'"):
        scfm.tl.finetune(adata, mini, ["kind", "half"], method="head", progress=False)
    result = scfm.tl.finetune(adata, mini, ["kind", "half"], method="head", missing="drop", progress=False)
    assert result.about["n_train"] + result.about["n_valid"] == 50
    n = result.scores.query("model == 'fine-tuned'").groupby("target")["n"].sum()
    assert n.to_dict() == {"half": 30, "kind": 50}


def test_classes_of_genes_are_learnt_from_some_and_scored_on_other_genes(load):
    model, adata = load("geneformer"), cells_of("geneformer")
    genes = [model.vocabulary.names[i] for i in np.flatnonzero(model.vocabulary.is_gene)]
    classes = {g: "even" if i % 2 == 0 else "odd" for i, g in enumerate(genes)}
    result = scfm.tl.finetune(adata, model, {**classes, "no_such_gene": "odd"}, method="lora", forgetting=True, **QUICK)
    table = result.scores.query("model == 'fine-tuned'").set_index("part")
    assert table.loc["validation", "n"] < table.loc["train", "n"] <= len(genes)
    found = result.predict(adata)
    assert set(found.index) <= set(genes) and found["n_cells"].between(1, adata.n_obs).all()
    assert result.about["forgetting"]["objective"] == "masked_genes"


def test_what_did_not_move_forgot_nothing(load):
    result = scfm.tl.finetune(
        cells_of("geneformer"), load("geneformer"), "label", method="head", forgetting=True, progress=False
    )
    told = result.about["forgetting"]
    assert told["before"] == told["after"] > 0
    assert "pretraining loss (masked_genes)" in repr(result)


def test_a_model_without_a_pretraining_loss_says_so(mini):
    with pytest.raises(ConfigError, match="no pretraining loss"):
        scfm.tl.finetune(cells(20), mini, "kind", method="head", forgetting=True, progress=False)


# what is held out, and when it stops


def test_a_class_that_one_group_alone_has_is_not_held_out(mini):
    adata = cells(90, donors=3)
    adata.obs["kind"] = np.where((adata.obs["donor"] == "d1") & (np.arange(90) % 4 == 0), "rare", adata.obs["kind"])
    for seed in range(5):
        held = hold(open_cells(adata, {}), mini, adata.obs["donor"].to_numpy(dtype=str), False)
        targets = cell_targets(adata.obs, "kind")
        parts = hold_out(held, targets, np.ones(90, bool), 0.3, None, "donor", seed)
        assert parts.groups in (("d0",), ("d2",))
        assert set(adata.obs["donor"].iloc[parts.train]) & set(parts.groups) == set()
    with pytest.raises(ConfigError, match="no cell of 'kind=rare' is left to learn from"):
        hold_out(held, targets, np.ones(90, bool), 0.3, ["d1"], "donor", 0)


def test_copies_of_a_cell_are_on_one_side(mini):
    adata = cells(40)
    twice = ad.concat([adata, adata], index_unique="-")
    held = hold(open_cells(twice, {}), mini, None, False)
    parts = hold_out(held, cell_targets(twice.obs, "kind"), np.ones(80, bool), 0.3, None, None, 0)
    assert {i % 40 for i in parts.train} & {i % 40 for i in parts.valid} == set()
    twice.obs["half"] = np.repeat(["one", "two"], 40)
    with pytest.raises(ConfigError, match="the very same counts"):
        scfm.tl.finetune(twice, mini, "kind", group_key="half", method="head", progress=False)


def test_a_run_that_gives_all_cells_one_class_stops_and_says_so(mini):
    adata = cells(120, donors=4)
    result = scfm.tl.finetune(
        adata, mini, "kind", class_weights={"a": 0.0}, learning_rate=1e-3, patience=50, **{**QUICK, "epochs": 10}
    )
    assert result.collapsed and "one class (kind: 'b')" in result.about["stopped"]
    assert result.about["steps"] < 120


def test_a_run_without_gain_stops_and_ends_at_its_best(mini, tmp_path):
    adata = cells(100, donors=5)
    adata.obs["noise"] = np.random.default_rng(0).permutation(np.repeat(["x", "y"], 50))
    result = scfm.tl.finetune(
        adata,
        mini,
        "noise",
        group_key="donor",
        learning_rate=1e-2,
        evaluate_every=1,
        patience=2,
        folder=tmp_path / "run",
        **{**QUICK, "epochs": 20},
    )
    assert result.about["stopped"].startswith("no gain on held-out cells in 2 looks")
    losses = result.history.set_index("step")["eval_loss"].dropna()
    assert losses.idxmin() == result.about["best_step"] or losses.min() > losses[result.about["best_step"]] - 1e-3
    valid = result.scores.query("model == 'fine-tuned' and part == 'validation'")["log_loss"].item()
    assert valid == pytest.approx(losses[result.about["best_step"]], rel=1e-3)
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"log.csv", "tuned"}
    assert Finetuned.load(tmp_path / "run").about["stopped"] == result.about["stopped"]
    with pytest.raises(ConfigError, match="is not empty and was left alone"):
        scfm.tl.finetune(adata, mini, "noise", folder=tmp_path / "run", **QUICK)


def test_what_was_best_is_kept_when_a_run_is_interrupted(mini, tmp_path):
    adata, log = cells(60), tmp_path / "run" / "log.csv"
    over = threading.Event()

    def press():
        while not over.wait(0.02):
            if log.is_file() and len(log.read_text().splitlines()) > 2:
                _thread.interrupt_main()
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        result = scfm.tl.finetune(
            adata, mini, "kind", epochs=500, patience=10**6, evaluate_every=2, folder=tmp_path / "run", progress=False
        )
    finally:
        over.set()
        thread.join()
    assert result.about["stopped"].startswith("interrupted at step")
    assert result.about["steps"] < 1000 and np.isfinite(result.score())
    assert (tmp_path / "run" / "tuned" / "tuned.safetensors").is_file()


# what is written


def test_predictions_are_written_and_read_back_from_a_file(mini, tmp_path):
    adata = cells(60)
    counts = adata.X.copy()
    adata.obs["cell/type"] = adata.obs["kind"]
    scfm.tl.finetune(adata, mini, "cell/type", method="head", key_added="ft", progress=False)
    assert (counts != adata.X).nnz == 0
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert again.obs["ft_cell_type"].astype(str).tolist() == adata.obs["ft_cell_type"].astype(str).tolist()
    assert again.uns["scfm_finetune"]["ft"]["base"] == "scfm-mini"


def test_probabilities_of_a_file_on_disk_are_those_in_memory(mini, tmp_path):
    adata = cells(50)
    result = scfm.tl.finetune(adata, mini, "kind", method="head", progress=False)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    proba = result.predict_proba(adata)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    backed = result.predict_proba(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))
    np.testing.assert_allclose(backed, proba, atol=1e-6)
    one = result.predict_proba(adata[7:8].copy())
    np.testing.assert_allclose(one, proba.iloc[7:8], atol=1e-6)


def test_a_tuned_model_is_not_put_on_another_base(load, mini, tmp_path):
    result = scfm.tl.finetune(cells_of("geneformer"), load("geneformer"), "label", method="lora", **QUICK)
    folder = result.save(tmp_path / "kept")
    with pytest.raises(ConfigError, match="exists already and was left alone"):
        result.save(folder)
    with pytest.raises(CheckpointError, match=r"was tuned on .* but scfm-mini has others"):
        Finetuned.load(folder, mini)
    other = load("geneformer")
    with torch.no_grad():
        other.transformer.encoder.layers[0].qkv.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="has others"):
        Finetuned.load(folder, other)
    tensors_ = load_file(folder / "tuned.safetensors")
    tensors_.pop(sorted(tensors_)[0])
    save_file(tensors_, folder / "tuned.safetensors")
    with pytest.raises(CheckpointError, match="is missing or unknown"):
        Finetuned.load(folder, load("geneformer"))
    about = json.loads((folder / "tuned.json").read_text())
    assert about["base"]["hash"] and about["targets"][0]["classes"] == ["x", "y"]


# bad input


def spoiled(column) -> ad.AnnData:
    adata = cells(40)
    adata.obs["bad"] = column
    return adata


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (["a"] * 40, {}, r"obs\['bad'\] holds one class only, 'a'"),
        (["a"] * 20 + ["b"] * 19 + [None], {}, "has no value for 1 of 40 cells"),
        ([1.5] * 39 + [np.nan], {}, "has no value for 1 of 40 cells"),
        ([1.5] * 40, {}, "one number for all cells"),
        (["a"] * 20 + ["b"] * 19 + ["c"], {}, r"1 of 3 classes with one cell only \('c'\)"),
        ([0, 1] * 20, {}, "codes of classes, or amounts.*kind='classes' or kind='number'"),
        (np.arange(40) / 7, {"kind": "classes"}, "40 different numbers in 40 cells; pass kind='number'"),
        (["a", "b"] * 20, {"kind": "number"}, "kind='number', but .* holds 'a'"),
        (np.arange(40).astype(str), {}, "holds numbers as text"),
        (["a", "b"] * 20, {"kind": "numbers"}, "kind='numbers'; it is 'auto', 'classes' or 'number'"),
        (["a", "b"] * 20, {"class_weights": {"z": 1}}, "names 'z', which is no class of 'bad'"),
        (["a", "b"] * 20, {"group_key": "no"}, "obs has no column 'no' for group_key"),
        (["a", "b"] * 20, {"group_key": "bad"}, "is what is to be learnt"),
        (["a", "b"] * 20, {"validation_share": 1.5}, "a share from 0 to below 1"),
        (["a", "b"] * 20, {"validation_groups": ["d0"]}, "needs group_key="),
        (["a", "b"] * 20, {"group_key": "donor", "validation_groups": ["d9"]}, "has no 'd9' to hold out"),
        (["a", "b"] * 20, {"method": "qlora"}, "method='qlora' is none; there are 'full'"),
        (["a", "b"] * 20, {"epochs": 0}, "epochs=0; it must be above 0"),
        (["a", "b"] * 20, {"pooling": "no"}, "no pooling 'no'"),
        (["a", "b"] * 20, {"forgetting": "no"}, "no pretraining objective"),
    ],
)
def test_what_cannot_be_learnt_is_said_before_any_work(mini, column, options, message):
    with pytest.raises(ConfigError, match=message):
        scfm.tl.finetune(spoiled(column), mini, "bad", **{"method": "head", "progress": False, **options})


def test_a_missing_column_and_unknown_genes_are_said(mini, load):
    with pytest.raises(ConfigError, match=r"no column 'cell_type' to learn; it has 'donor', 'kind'"):
        scfm.tl.finetune(cells(20), mini, progress=False)
    with pytest.raises(GeneMatchError, match="none of the 2 genes"):
        scfm.tl.finetune(cells(20), mini, {"x": "a", "y": "b"}, method="head", progress=False)
    with pytest.raises(ConfigError, match="no state of a gene in a cell"):
        names = [*cells(2).var_names]
        scfm.tl.finetune(cells(20), mini, {g: str(i % 2) for i, g in enumerate(names)}, method="head", progress=False)
    with pytest.raises(ConfigError, match="one group only"):
        scfm.tl.finetune(cells(20, donors=1), mini, "kind", group_key="donor", method="head", progress=False)
    with pytest.raises(ConfigError, match="writes or pads cells first"):
        scfm.tl.finetune(cells_of("scmulan"), load("scmulan"), "label", pooling="type", method="head", progress=False)


def test_several_processes_are_refused(mini, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process"):
        scfm.tl.finetune(cells(20), mini, "kind", progress=False)


def test_adapters_without_peft_name_the_line_that_installs_it(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'scfm\[train\]'"):
        scfm.tl.finetune(cells_of("geneformer"), load("geneformer"), "label", method="lora", progress=False)
