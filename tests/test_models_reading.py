"""What is read is complete and understood, or nothing is; and nothing that lies in a file is ever executed."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import (
    FAMILY_CASES,
    WHOLE_PARTS,
    geneformer_folder,
    name_in,
    scgpt_folder,
    some_tokens,
    state_of,
    table_of,
    weights_of,
    write_state,
)

import scfm
from scfm.errors import CheckpointError
from scfm.models._keys import Key, translate
from scfm.models._reading import read_pickle, read_tensors


@pytest.fixture(params=[*FAMILY_CASES])
def folder(request, tmp_path):
    """A small checkpoint of each family, writable."""
    return FAMILY_CASES[request.param](tmp_path / "model")


# every tensor is used, once, in its shape


def test_unknown_tensor_is_an_error(folder):
    write_state(folder, {**state_of(folder), "a.new.part": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"does not know \(a\.new\.part\)"):
        scfm.models.load(folder)


def test_missing_tensor_is_an_error(folder):
    state = state_of(folder)
    dropped = name_in(state, "output.LayerNorm.bias", "norm1.bias", "0.norm.bias", "ln_1.weight")
    write_state(folder, {k: v for k, v in state.items() if k != dropped})
    with pytest.raises(CheckpointError, match="lacks 1 of the"):
        scfm.models.load(folder)


def test_every_single_tensor_of_a_file_is_needed_or_ignored_with_a_reason(folder):
    state = state_of(folder)
    ignored = scfm.models.load(folder).notes
    for name in state:
        write_state(folder, {k: v for k, v in state.items() if k != name})
        if name in ignored:
            assert ignored[name]
            scfm.models.load(folder)
        elif name in WHOLE_PARTS:
            assert scfm.models.load(folder).config.query_only is None
        else:
            with pytest.raises(CheckpointError):
                scfm.models.load(folder)


def test_wrong_shape_is_an_error_that_quotes_both(folder):
    state = state_of(folder)
    name = name_in(state, "output.dense.bias", "linear2.bias", "w2.bias", "ln_2.weight")
    write_state(folder, {**state, name: torch.zeros(len(state[name]) + 1)})
    with pytest.raises(CheckpointError, match=rf"shape \[{len(state[name]) + 1}\], but \[{len(state[name])}\]"):
        scfm.models.load(folder)


def test_two_tensors_for_one_place_are_an_error(tmp_path):
    folder = scgpt_folder(tmp_path)
    state = state_of(folder)
    name = next(k for k in state if k.endswith("self_attn.Wqkv.weight"))
    write_state(folder, {**state, name.replace("Wqkv.", "in_proj_"): state[name]})
    with pytest.raises(CheckpointError, match="two tensors claim to be"):
        scfm.models.load(folder)
    with pytest.raises(CheckpointError, match="two tensors claim to be part 1 of"):
        translate(
            {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)},
            {"both": torch.Size([4, 3])},
            [Key("a|b", "both", part=(0, 2))],
            {},
            "a file",
        )


def test_half_of_a_fused_tensor_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="lacks 1 of the 1"):
        translate({"a": torch.zeros(2, 3)}, {"both": torch.Size([4, 3])}, [Key("a", "both", part=(0, 2))], {}, "a file")


def test_stored_copy_that_differs_from_its_original_is_an_error(tmp_path):
    folder = geneformer_folder(tmp_path)
    state = state_of(folder)
    table = table_of(state)
    write_state(folder, {**state, "cls.predictions.decoder.weight": state[table].clone()})
    assert "cls.predictions.decoder.weight" in scfm.models.load(folder).notes
    write_state(folder, {**state, "cls.predictions.decoder.weight": state[table] + 1})
    with pytest.raises(CheckpointError, match="should be a copy of"):
        scfm.models.load(folder)


def test_prefix_of_distributed_training_is_cut(folder):
    before = scfm.models.load(folder)
    state = state_of(folder)
    write_state(folder, {f"module.{k}": v for k, v in state.items()})
    after = scfm.models.load(folder)
    np.testing.assert_array_equal(after.embed_cells(some_tokens(after)), before.embed_cells(some_tokens(before)))
    name = next(iter(state))
    write_state(folder, {**state, f"module.{name}": state[name].clone()})
    with pytest.raises(CheckpointError, match="with and without the prefix"):
        scfm.models.load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_stored_precision_becomes_float32(folder, dtype):
    state = state_of(folder)
    write_state(folder, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    model = scfm.models.load(folder)
    assert {p.dtype for p in model.transformer.state_dict().values()} == {torch.float32}
    assert model.dtype == torch.float32
    table = model.embed_genes(kind="input")
    assert np.isfinite(table.vectors).all()
    stored = state[table_of(state)].to(dtype).float().numpy()[getattr(model.tokenizer, "rows", ...)]
    np.testing.assert_array_equal(model.transformer.terms["gene"].table.detach(), stored)


def test_loaded_weights_do_not_share_memory_with_anything(folder):
    one, two = scfm.models.load(folder), scfm.models.load(folder)
    with torch.no_grad():
        for p in one.transformer.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for n, p in two.transformer.named_parameters() if n.endswith("weight"))


# files that are not what their name says


def tar_of(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("best_model.pt")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("an empty file", b""),
        ("a web page", b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>"),
        ("a Git-LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 205000000\n"),
        ("a tar archive", tar_of(b"12345")),
        ("a gzip archive", b"\x1f\x8b\x08\x00rest"),
    ],
)
def test_other_kinds_of_files_are_named(folder, kind, data):
    path = weights_of(folder)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{path.name} is {kind}.*download it again"):
        scfm.models.load(folder)


def test_truncated_weights_are_an_error_wherever_they_end(folder):
    path = weights_of(folder)
    whole = path.read_bytes()
    for end in np.linspace(1, len(whole) - 1, 23).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=path.name):
            scfm.models.load(folder)


def test_damaged_bytes_are_an_error_or_a_number(folder):
    path = weights_of(folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 300, 40):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            scfm.models.load(folder)
        except CheckpointError as error:
            assert path.name in str(error)


def test_damaged_pickles_are_an_error(tmp_path):
    whole = pickle.dumps({"a": np.float64(1), "b": np.int16(2), "c": [1, None], "d": np.arange(3)})
    for end in range(len(whole)):
        (tmp_path / "x.pkl").write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_pickle(tmp_path / "x.pkl")


def test_configuration_that_is_no_json_or_lacks_settings(folder):
    config = next((folder / n for n in ("config.json", "args.json") if (folder / n).is_file()), None)
    if config is None:
        pytest.skip("this family has no configuration file")
    family = "geneformer" if config.name == "config.json" else "scgpt"
    for text, message in (("<html>", "a web page, not JSON"), ("{}", "lacks"), ("[1]", "lacks")):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            scfm.models.load(folder, family=family)


def test_state_dict_that_holds_other_things(tmp_path):
    folder = scgpt_folder(tmp_path)
    torch.save({"epoch": 3, "model_state_dict": state_of(folder)}, weights_of(folder))
    with pytest.raises(CheckpointError, match="the entry 'epoch' is int, but a tensor was expected"):
        scfm.models.load(folder)
    torch.save([torch.zeros(3)], weights_of(folder))
    with pytest.raises(CheckpointError, match="holds list, but a dictionary of tensors"):
        scfm.models.load(folder)


# nothing is executed


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_dictionary_is_refused_and_not_executed(tmp_path, protocol):
    folder = geneformer_folder(tmp_path / "model")
    path = next(folder.glob("token_dictionary*.pkl"))
    path.write_bytes(pickle.dumps({"<pad>": Evil(tmp_path / "trace")}, protocol))
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system.*nothing was executed"):
        scfm.models.load(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("family", FAMILY_CASES)
def test_malicious_weights_are_refused_and_not_executed(tmp_path, family, new_format):
    path = weights_of(FAMILY_CASES[family](tmp_path / "model"))
    if path.suffix == ".safetensors":
        path.unlink()
        path = path.with_name("pytorch_model.bin")
    bad = {"weight": torch.zeros(2), "extra": Evil(tmp_path / "trace")}
    torch.save(bad, path, _use_new_zipfile_serialization=new_format)
    folder = path.parent
    with pytest.raises(CheckpointError, match=r"nothing in it was executed: it asks for (posix|nt)\.system"):
        scfm.models.load(folder)
    assert not (tmp_path / "trace").exists()


def test_builtins_are_no_way_around(tmp_path):
    for name in ("eval", "exec", "getattr", "__import__", "open"):
        (tmp_path / "x.pkl").write_bytes(b"cbuiltins\n" + name.encode() + b"\n(S'1'\ntR.")
        with pytest.raises(CheckpointError, match=f"builtins.{name}"):
            read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_dictionaries_of_numbers_are_read(tmp_path, protocol):
    data = {
        "GENE": np.int16(3),
        "median": np.float64(1.5),
        "list": [1, 2.5, None, True],
        "set": {"a"},
        "array": np.arange(4),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol))
    read = read_pickle(tmp_path / "x.pkl")
    np.testing.assert_array_equal(read.pop("array"), data.pop("array"))
    assert read == data


def test_numpy_scalars_beside_tensors_are_read(tmp_path):
    torch.save({"weight": torch.ones(2), "loss": np.float64(0.5)}, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt")["loss"] == 0.5
