"""scBERT beside its recorded numbers: files that do not fit, the published size, and memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from model_cases import scbert_folder, some_tokens, state_of, write_state

import scfm
from scfm.errors import CheckpointError, ConfigError
from scfm.models._classes import name_classes
from scfm.models.families import scbert
from scfm.transformer import CellTransformer, HeadSpec, MLPSpec

N_GENES, WIDTH, LAYERS, HEADS, HEAD_DIM, FEATURES = 16_906, 200, 6, 10, 64, 266


@pytest.fixture
def folder(tmp_path):
    return scbert_folder(tmp_path / "model")


def rewritten(folder, change) -> None:
    """The gene order, changed."""
    path = folder / "panglao_10000.h5ad"
    adata = anndata.read_h5ad(path)
    names = change(list(adata.var_names))
    empty = np.zeros((adata.n_obs, len(names)), dtype=np.float32)
    wrong = anndata.AnnData(empty)
    wrong.var_names = names
    wrong.write_h5ad(path)


# files that do not belong together


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[:-1], "of different models"),
        (lambda names: [*names, "ONE_MORE"], "of different models"),
        (lambda names: [*names[:-1], names[0]], r"\(1 of them repeated\)"),
    ],
    ids=["shorter", "longer", "repeated"],
)
def test_gene_list_that_does_not_fit_is_refused(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=message):
        scfm.models.load(folder)


def test_missing_gene_list_is_named(folder):
    (folder / "panglao_10000.h5ad").unlink()
    with pytest.raises(CheckpointError, match=r"order of the genes is missing.*panglao_10000\.h5ad"):
        scfm.models.load(folder)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"<html>", lambda b: b""])
def test_damaged_gene_list_is_an_error(folder, damage):
    path = folder / "panglao_10000.h5ad"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="no gene names can be read"):
        scfm.models.load(folder)


def test_published_list_in_another_order_is_warned_of(caplog):
    names = [f"G{i}" for i in range(scbert.N_GENES)]
    scbert.warn_of_order(Path("a file"), names)
    assert "every gene may be taken for another" in caplog.text


def test_gene2vec_is_optional_but_must_be_that_of_the_checkpoint(folder):
    path = folder / "gene2vec_16906.npy"
    vectors = np.load(path)
    np.save(path, vectors[::-1])
    with pytest.raises(CheckpointError, match="not the position table of the checkpoint"):
        scfm.models.load(folder)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"gene2vec_16906\.npy"):
        scfm.models.load(folder)
    path.unlink()
    assert scfm.models.load(folder).card.family == "scbert"


def test_class_names_of_another_run_are_refused_and_none_are_needed(folder):
    (folder / "label_dict").write_bytes(pickle.dumps(np.array(["T", "B"], dtype=object)))
    with pytest.raises(CheckpointError, match="names 2 classes, but the classifier has"):
        scfm.models.load(folder, checkpoint="finetune_best")
    (folder / "label_dict").unlink()
    model = scfm.models.load(folder, checkpoint="finetune_best")
    head = model.heads["cell_classifier"]
    assert head.labels is None
    with pytest.raises(ConfigError, match="names of the outputs of 'cell_classifier' are not known"):
        head.classify(some_tokens(model))


def test_weight_sets_of_a_folder_are_chosen_by_name(folder):
    assert "level" in scfm.models.load(folder).heads
    assert "cell_classifier" in scfm.models.load(folder, checkpoint="finetune_best").heads
    with pytest.raises(CheckpointError, match="finetune_best, panglao_pretrain"):
        scfm.models.load(folder, checkpoint="finetune_2")
    (folder / "panglao_pretrain.pth").rename(folder / "mine_best.pth")
    with pytest.raises(CheckpointError, match="holds finetune_best, mine_best; pass checkpoint="):
        scfm.models.load(folder)
    (folder / "finetune_best.pth").unlink()
    assert "level" in scfm.models.load(folder).heads
    (folder / "mine_best.pth").unlink()
    with pytest.raises(CheckpointError, match=r"weight file is missing: expected .*panglao_pretrain\.pth"):
        scfm.models.load(folder, family="scbert")


def test_model_without_gene2vec_positions_is_refused(folder):
    state = state_of(folder)
    write_state(folder, {k: v for k, v in state.items() if not k.startswith("pos_emb")})
    with pytest.raises(CheckpointError, match="not an scBERT model with Gene2vec positions"):
        scfm.models.load(folder)


# names of classes


def test_unknown_types_are_those_below_the_threshold_not_at_it():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3], [np.nan, np.nan, np.nan]]))
    named = name_classes(logits, ["a long name", "b", "c"], threshold=0.5)
    np.testing.assert_array_equal(named.names, ["a long name", "Unassigned", "Unassigned"])
    np.testing.assert_allclose(named.probability, [0.5, 0.4, np.nan], rtol=1e-6)
    with pytest.raises(ConfigError, match="3 outputs, but 2 names"):
        name_classes(logits, ["a", "b"])
    with pytest.raises(ConfigError, match="no probability"):
        name_classes(logits, ["a", "b", "c"], threshold=50)


def test_cells_without_a_gene_are_of_no_type(folder):
    model = scfm.models.load(folder, checkpoint="finetune_best")
    counts = np.zeros((2, len(model.vocabulary) - 1), dtype=np.float32)
    counts[0, :9] = 3
    cells = anndata.AnnData(counts)
    cells.var_names = model.vocabulary.names[:-1]
    named = model.heads["cell_classifier"].classify(model.tokenize(cells))
    assert named.names[0] in model.heads["cell_classifier"].labels
    assert named.names[1] == "Unassigned"
    assert np.isnan(named.probability[1])


def test_head_on_positions_says_what_it_needs():
    with pytest.raises(ConfigError, match="needs token_mlp"):
        HeadSpec("positions", MLPSpec((4, 2)))
    with pytest.raises(ConfigError, match="no other head has it"):
        HeadSpec("tokens", MLPSpec((4, 2)), token_mlp=MLPSpec((4, 1)))


# the published size


def published_state() -> dict[str, torch.Tensor]:
    """The tensors of the authors' file, without numbers."""
    inner, ff = HEADS * HEAD_DIM, 4 * WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "token_emb.weight": (7, WIDTH),
        "pos_emb.emb.weight": (N_GENES + 1, WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "to_out.weight": (7, WIDTH),
        "to_out.bias": (7,),
    }
    for i in range(LAYERS):
        layer = f"performer.net.layers.{i}."
        shapes[f"{layer}0.fn.fast_attention.projection_matrix"] = (FEATURES, HEAD_DIM)
        shapes.update({f"{layer}0.fn.to_{x}.weight": (inner, WIDTH) for x in "qkv"})
        shapes[f"{layer}0.fn.to_out.weight"] = (WIDTH, inner)
        shapes[f"{layer}1.fn.fn.w1.weight"] = (ff, WIDTH)
        shapes[f"{layer}1.fn.fn.w2.weight"] = (WIDTH, ff)
        for bias, size in (("0.fn.to_out", WIDTH), ("1.fn.fn.w1", ff), ("1.fn.fn.w2", WIDTH)):
            shapes[f"{layer}{bias}.bias"] = (size,)
        shapes.update({f"{layer}{k}.norm.{part}": (WIDTH,) for k in (0, 1) for part in ("weight", "bias")})
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_scbert_has_the_published_sizes_and_their_number_of_parameters():
    state = published_state()
    config = scbert.config(state)
    stack = config.stack_spec
    assert (stack.n_layers, stack.width, stack.ff) == (LAYERS, WIDTH, 4 * WIDTH)
    assert (stack.n_heads, stack.head_dim, stack.n_features) == (HEADS, HEAD_DIM, FEATURES)
    assert (stack.eps, stack.activation, stack.norm, stack.final_norms) == (1e-5, "gelu", "pre", 1)
    with torch.device("meta"):
        model = CellTransformer(config)
    trained = sum(p.numel() for p in model.parameters())
    features = [p for name, p in state.items() if name.endswith("projection_matrix")]
    assert trained + model.terms["gene"].table.numel() == scfm.models.cards()["scbert"].parameters
    assert trained + model.terms["gene"].table.numel() + sum(p.numel() for p in features) == sum(
        p.numel() for p in state.values()
    )
    assert scfm.models.cards()["scbert"].context == N_GENES + 1


WHOLE_CELL = """
import resource, sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
from test_scbert import N_GENES, published_state
from scfm.models.families import scbert
from scfm.transformer import CellTransformer, pack

torch.set_num_threads(1)
torch.manual_seed(0)
tokens = {"ids": np.arange(N_GENES + 1), "values": np.arange(N_GENES + 1) % 6}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = CellTransformer(scbert.config(published_state())).eval()
with torch.inference_mode():
    cell = model.embed(pack(tokens, np.array([0, N_GENES + 1])))
assert cell.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_a_whole_cell_of_the_published_size_stays_below_a_gigabyte():
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_CELL, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1e9


def test_loading_says_once_what_the_licence_asks(tmp_path, monkeypatch, caplog):
    card = scfm.models.cards()["scbert"]
    assert "GPL-3.0" in card.licence
    assert "GPL-3.0" in card.binding
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    scbert_folder(tmp_path / "scbert")
    for _ in range(2):
        assert scfm.models.load("scbert").card == card
    assert caplog.text.count("GPL-3.0") <= 1
