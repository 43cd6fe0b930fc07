"""A run learns, stops with a reason, and goes on after whatever stopped it, to the last bit."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_cases import cells, corpus_folder, room_for, tiny
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import ConfigError, OutputError, TrainingError
from scfm.training import Corpus, PretrainConfig, TokenStore, pretrain
from scfm.training._files import alone_in, check_space, new_folder
from scfm.training._prepare import prepare_model
from scfm.training._trainer import last_checkpoint
from scfm.training.objectives import OBJECTIVES, MaskedGenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus_folder(tmp_path_factory.mktemp("corpus"))


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "model" / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_leaves_a_model_that_embeds_cells(folder, tmp_path):
    run = pretrain(folder, tiny(tmp_path / "run", run={"steps": 40}))
    assert {p.name for p in run.folder.iterdir()} >= {"config.yaml", "log.csv", "split.json", "model", "checkpoints"}
    history = run.history
    assert (history["step"].max(), len(history["loss"].dropna())) == (40, 40)
    assert history["loss"].dropna().iloc[-1] < history["loss"].dropna().iloc[0]
    assert run.metrics["eval_loss"] > 0 and run.metrics["eval_reference"] > 0
    adata = cells(5, seed=9)
    scfm.tl.embed(adata, run.folder / "model", progress=False)
    assert np.isfinite(adata.obsm[next(iter(adata.obsm))]).all()
    again = scfm.models.load(run.folder / "model")
    assert again.card.details["training"]["objective"]["share"] == 0.15
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["objective"]["head"] == "mlm"
    assert json.loads((run.folder / "split.json").read_text())["groups"]


def test_a_run_goes_on_to_the_same_bits(folder, tmp_path):
    steady = {"schedule": "constant"}
    whole = pretrain(folder, tiny(tmp_path / "whole", run=steady))
    pretrain(folder, tiny(tmp_path / "parts", run={**steady, "steps": 3}))
    parts = pretrain(folder, tiny(tmp_path / "parts", run=steady))
    assert_equal_weights(whole.folder, parts.folder)
    for name in ("loss", "reference", "learning_rate", "grad_norm", "tokens", "cells"):
        ours, theirs = (h[h["loss"].notna()][name] for h in (parts.history, whole.history))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_a_run_is_watched_in_a_bar_and_in_tensorboard(folder, tmp_path, capsys):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = pretrain(folder, tiny(tmp_path / "run", output={"progress": True, "tensorboard": True}))
    shown = capsys.readouterr()
    assert "pretrain: 100%" in shown.err and "6/6" in shown.err
    for word in ("loss=", "reference=", "tokens/s="):
        assert word in shown.err
    assert "held-out loss" in shown.err + shown.out
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    logged = run.history.dropna(subset=["loss"])
    np.testing.assert_allclose([e.value for e in events.Scalars("loss")], logged["loss"], rtol=1e-6)
    np.testing.assert_allclose([e.value for e in events.Scalars("reference")], logged["reference"], rtol=1e-6)


def test_only_new_heads_begin_at_the_reference(folder, tmp_path):
    first = pretrain(folder, tiny(tmp_path / "first", run={"steps": 1})).folder / "model"
    for fresh, expected in ((False, set()), (True, {"mlm"})):
        settings = PretrainConfig.build(tiny(tmp_path / "next", model={"start": str(first), "fresh": fresh}))
        _, new = prepare_model(settings, Corpus.open(folder), settings.build_objective())
        assert set(new) == expected


SCRIPT = """
import json, sys
import torch
import scfm

if __name__ == "__main__":
    torch.set_num_threads(1)
    scfm.training.pretrain(sys.argv[1], json.loads(sys.argv[2]))
"""


def started(script: Path, folder: Path, config: dict, *launcher: str) -> subprocess.Popen:
    """A process of its own that trains."""
    script.write_text(SCRIPT)
    command = [sys.executable, *launcher, str(script), str(folder), json.dumps(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(folder, tmp_path):
    """In processes of their own: sums in another order, as with another number of threads, are other bits."""
    changes = {"run": {"steps": 60}, "output": {"checkpoint_every": 3, "log_every": 20}}
    config = tiny(tmp_path / "killed", **changes)
    process = started(tmp_path / "train.py", folder, {**config, "run": {**config["run"], "num_workers": 1}})
    checkpoints = tmp_path / "killed" / "checkpoints"
    try:
        deadline = time.monotonic() + 500
        while process.poll() is None and time.monotonic() < deadline and not (checkpoints / "checkpoint-9").is_dir():
            time.sleep(0.002)
        assert process.poll() is None, process.stdout.read().decode()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "model").exists()
    assert last_checkpoint(checkpoints) is not None
    for rest in (config, tiny(tmp_path / "whole", **changes)):
        process = started(tmp_path / "train.py", folder, rest)
        told = process.communicate(timeout=500)[0].decode()
        assert process.returncode == 0, told[-3000:]
    assert_equal_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_doubled_batch(folder, tmp_path):
    same = {"model": {"dropout": 0.0}}
    config = tiny(tmp_path / "two", **same)
    process = started(
        tmp_path / "train.py", folder, config, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    )
    told = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, told[-3000:]
    one = pretrain(folder, tiny(tmp_path / "one", run={"accumulation": 2}, **same))
    two = scfm.training.Run(tmp_path / "two", one.model, {}).history
    for name in ("loss", "reference", "grad_norm", "eval_loss", "tokens", "cells"):
        np.testing.assert_allclose(two[name], one.history[name], rtol=2e-5, err_msg=name)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_each_target_counts_the_same_in_every_batch_and_process(folder, tmp_path):
    """Gradients of unequal batches add up to that of all their cells at once."""
    run = pretrain(folder, tiny(tmp_path / "run", run={"steps": 1}))
    objective = MaskedGenes()
    model = run.model.transformer.eval()
    train = one_epoch(folder, run.model, objective, tokens=90)
    many = [train[i] for i in range(len(train))]
    counts = {"genes": sum(e.counts["genes"] for e in many)}
    assert len({e.counts["genes"] for e in many}) > 1

    def gradient(examples):
        model.zero_grad()
        for example in examples:
            sums = objective.losses(model, example.batch, example.targets)
            (sums["genes"] / counts["genes"]).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = one_epoch(folder, run.model, objective, tokens=10**6)
    together = [whole[i] for i in range(len(whole))]
    assert sum(e.counts["genes"] for e in together) == counts["genes"]
    for a, b in zip(gradient(many), gradient(together), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def one_epoch(folder, model, objective, tokens):
    from scfm.training._cells import LiveCells
    from scfm.training._data import Batches
    from scfm.training._encode import Encoder
    from scfm.training._sampler import BatchPlan, Sampling

    live = LiveCells(Corpus.open(folder), Encoder(model.tokenizer, objective.keep))
    plan = BatchPlan(live.index, np.arange(len(live.index)), Sampling(tokens), objective.cost(live.index.length, model))
    return Batches(live, plan, objective, plan.n_batches(0), frozenset(model.config.cell_channels))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_trains_like_the_files_whatever_the_number_of_workers(folder, tmp_path, workers):
    run = pretrain(folder, tiny(tmp_path / "files"))
    store = TokenStore.build(Corpus.open(folder), run.model.tokenizer, tmp_path / "store", progress=False)
    # the tokenizer is made of the corpus, so a run from a store starts from a model that has it
    start = {"start": str(run.folder / "model"), "fresh": True}
    for name, source in (("a", folder), ("b", store)):
        pretrain(source, tiny(tmp_path / name, model=start, run={"num_workers": workers if name == "b" else 0}))
    assert_equal_weights(tmp_path / "a", tmp_path / "b")


def test_checkpointing_and_bfloat16_train(folder, tmp_path):
    plain = pretrain(folder, tiny(tmp_path / "plain"))
    again = pretrain(folder, tiny(tmp_path / "again", run={"checkpointing": True}))
    assert_equal_weights(plain.folder, again.folder)
    half = pretrain(folder, tiny(tmp_path / "half", run={"precision": "bfloat16"}))
    assert half.model.dtype == torch.float32
    np.testing.assert_allclose(half.history["loss"].dropna(), plain.history["loss"].dropna(), rtol=0.05)
    assert not np.array_equal(half.history["loss"].dropna(), plain.history["loss"].dropna())
    # the attention is chosen for the precision that it gets, not for that of the weights
    assert {dtype for _, _, dtype in half.model.transformer._chosen} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_compiled_layers_train_alike(folder, tmp_path):
    plain, compiled = (
        pretrain(folder, tiny(tmp_path / str(fast), model={"dropout": 0.0}, run={"steps": 3, "compile": fast}))
        for fast in (False, True)
    )
    np.testing.assert_allclose(compiled.history["loss"].dropna(), plain.history["loss"].dropna(), rtol=1e-5)
    assert weights(compiled.folder).keys() == weights(plain.folder).keys()


def test_the_commands_tokenize_and_train(folder, tmp_path):
    config = tiny(tmp_path / "first", run={"steps": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "corpus": {"files": [str(folder / "*.h5ad")]}}))
    program = CliRunner()
    first = program.invoke(app, ["pretrain", str(tmp_path / "config.yaml")])
    assert first.exit_code == 0 and "without input" in first.stdout, first.output
    model, store = str(tmp_path / "first" / "model"), str(tmp_path / "tokens")
    told = program.invoke(app, ["tokenize", str(folder), "--model", model, "--out", store, "--no-progress"])
    assert told.exit_code == 0 and "80 cells" in told.stdout, told.output
    sets = {
        "corpus.store": store,
        "model.start": model,
        "model.fresh": "true",
        "output.folder": str(tmp_path / "second"),
    }
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    second = program.invoke(app, ["pretrain", str(tmp_path / "config.yaml"), *options])
    assert second.exit_code == 0, second.output
    assert (tmp_path / "second" / "model" / "model.safetensors").is_file()
    wrong = program.invoke(app, ["pretrain", str(tmp_path / "config.yaml"), "--set", "run.stesp=3"])
    assert wrong.exit_code == 1 and "did you mean steps?" in wrong.stderr


def test_weights_that_are_shared_out_give_the_same_loss_and_gradients(folder, tmp_path):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from scfm.training._pretrain import gathered
    from scfm.training._trainer import ObjectiveModel

    model = pretrain(folder, tiny(tmp_path / "run", run={"steps": 1})).model
    objective = MaskedGenes()
    example = one_epoch(folder, model, objective, tokens=300)[0]
    plain = ObjectiveModel(copy.deepcopy(model.transformer), objective)
    shared = ObjectiveModel(copy.deepcopy(model.transformer), objective)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for block in shared.transformer.encoder.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(shared, mesh=mesh)
        sums = [m(example.batch, example.targets)["genes"] for m in (plain, shared)]
        torch.testing.assert_close(sums[0], sums[1])
        for total in sums:
            total.backward()
        for (name, a), b in zip(plain.named_parameters(), shared.parameters(), strict=True):
            assert isinstance(b, DTensor), name
            torch.testing.assert_close(a.grad, b.grad.full_tensor(), msg=name)
        whole = gathered(shared, model)
    finally:
        torch.distributed.destroy_process_group()
    for name, tensor in model.transformer.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor)


# what stops a run


def test_a_loss_that_is_no_number_stops_with_the_cells(folder, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d, on a batch of row \d+ of study\d"):
        pretrain(folder, tiny(tmp_path / "run", run={"learning_rate": 1e38, "clip": 1e9}))
    assert not (tmp_path / "run" / "model").exists()


def test_a_full_disk_is_told_before_training(folder, tmp_path):
    with pytest.raises(OutputError, match=r"needs about 1e\+09 GB"):
        check_space(tmp_path / "not" / "there", 10**18, "the run")


def test_a_disk_that_fills_up_while_training_leaves_what_was_whole(folder, tmp_path):
    steady = {"schedule": "constant"}
    pretrain(folder, tiny(tmp_path / "run", run={**steady, "steps": 2}))
    size = max(f.stat().st_size for f in (tmp_path / "run" / "checkpoints" / "checkpoint-2").iterdir())
    with room_for(size // 2), pytest.raises(OutputError, match="the checkpoint of step 4 could not be written"):
        pretrain(folder, tiny(tmp_path / "run", run=steady))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]
    pretrain(folder, tiny(tmp_path / "run", run=steady))
    pretrain(folder, tiny(tmp_path / "whole", run=steady))
    assert_equal_weights(tmp_path / "run", tmp_path / "whole")


def test_a_model_that_finds_no_room_is_told(folder, tmp_path):
    model = pretrain(folder, tiny(tmp_path / "run", run={"steps": 1})).model
    with room_for(2000), pytest.raises(OutputError, match="the disk is full"), new_folder(tmp_path / "kept") as partial:
        model.save_pretrained(partial)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_is_not_finished_does_not_appear(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "a") as partial:
        (partial / "file").write_text("half")
        raise RuntimeError("stop")
    assert not (tmp_path / "a").exists()
    with new_folder(tmp_path / "a") as partial:
        assert not list(partial.iterdir())
    assert (tmp_path / "a").is_dir()


def test_only_one_process_writes_a_run(folder, tmp_path):
    with alone_in(tmp_path / "run", "x"), pytest.raises(ConfigError, match="another process is writing a training run"):
        pretrain(folder, tiny(tmp_path / "run"))


def test_a_folder_with_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match=r"not empty \(thesis.txt\)"):
        pretrain(folder, tiny(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_run_with_other_settings_is_left_alone(folder, tmp_path):
    run = pretrain(folder, tiny(tmp_path / "run"))
    before = weights(run.folder)
    with pytest.raises(ConfigError, match=r"other settings \(run.learning_rate\)"):
        pretrain(folder, tiny(tmp_path / "run", run={"learning_rate": 0.1}))
    assert before.keys() == weights(run.folder).keys()


def test_an_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="the corpus is empty"):
        pretrain(None, tiny(tmp_path / "run"))


def test_genes_of_another_kind_are_an_error_that_names_the_file(folder, tmp_path):
    start = pretrain(folder, tiny(tmp_path / "first", run={"steps": 1})).folder / "model"
    strange = cells(30, names=[f"thing{i}" for i in range(60)])
    strange.write_h5ad(tmp_path / "strange.h5ad")
    with pytest.raises(scfm.errors.GeneMatchError, match="strange of the corpus"):
        pretrain([folder, tmp_path / "strange.h5ad"], tiny(tmp_path / "run", model={"start": str(start)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"learnig_rate": 1}}, r"unknown entry run.learnig_rate \(did you mean learning_rate\?\)"),
        ({"objective": {"name": "masked_gene"}}, r"did you mean masked_genes\?"),
        ({"objective": {"shar": 0.1}}, r"unknown entry objective.shar \(did you mean share\?\)"),
        ({"run": {"steps": "many"}}, "run.steps is 'many', expected a whole number"),
        ({"run": {"steps": 0}}, "run.steps is 0; it must be above 0"),
        ({"run": {"schedule": "cosin"}}, r"run.schedule is 'cosin' \(did you mean cosine\?\)"),
        ({"model": {"width": 15}}, "model.width 15 is no multiple of model.n_heads 2"),
        ({"validation": {"by": "dataset", "groups": ["nobody"]}}, "no dataset 'nobody' to hold out"),
        ({"run": {"fsdp": True}}, "shares the weights out over several GPUs"),
        ({"sampling": {"weights": {"a": 1.0}}}, "needs sampling.weights_by"),
        ({"objective": {"name": "next_word"}}, "the answer would be part of the input"),
        ({"objective": {"name": "masked_levels"}}, "reads no values: use masked_genes"),
        ({"objective": {"name": "generative"}}, "needs a model with tokens that ask"),
        ({"objective": {"name": "read_depth"}}, "needs tokens that say the depth"),
    ],
)
def test_what_cannot_be_is_told_before_training(folder, tmp_path, changes, message):
    config = tiny(tmp_path / "run", **changes)
    if "objective" in changes and "name" not in changes["objective"]:
        config["objective"]["name"] = "masked_genes"
    with pytest.raises(ConfigError, match=message):
        pretrain(folder, config)
    assert not (tmp_path / "run" / "model").exists()


def test_every_objective_has_a_name_and_settings():
    for name, kind in OBJECTIVES.items():
        assert kind.name == name
        assert kind().terms
