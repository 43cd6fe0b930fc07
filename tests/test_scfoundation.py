"""scFoundation beside its recorded numbers: files that do not fit, names, the published size, memory, perturbation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from golden_cases import case
from model_cases import scfoundation_folder, some_tokens, weights_of

import scfm
from scfm.errors import CheckpointError, ConfigError
from scfm.models._reading import read_tensors
from scfm.models.families import _scfoundation_genes, scfoundation
from scfm.transformer import CellTransformer, DecoderSpec, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config, pack
from scfm.transformer._decoder import keys_only

N_GENES, WIDTH, LAYERS, HEADS, BINS = 19_264, 768, 12, 12, 100
INNER, DECODER_LAYERS, DECODER_HEADS, HEAD_DIM, FEATURES = 512, 6, 8, 64, 266
LIST = _scfoundation_genes.GENES


@pytest.fixture
def folder(tmp_path):
    return scfoundation_folder(tmp_path / "model")


def rewritten_list(folder, change) -> None:
    table = pd.read_csv(folder / LIST, sep="\t", keep_default_na=False)
    change(table).to_csv(folder / LIST, sep="\t", index=False)


def rewritten(folder, change) -> None:
    """The file of weights, changed."""
    held = read_tensors(weights_of(folder))
    torch.save(change(held), weights_of(folder))


# files that do not belong together


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], r"lists 159 genes .* weights have positions 0 to 159"),
        (lambda t: pd.concat([t, pd.DataFrame({"gene_name": ["MORE"], "index": [160]})]), "lists 161 genes"),
        (lambda t: t.assign(gene_name=[*t.gene_name[:-1], t.gene_name[0]]), r"\(1 of them repeated\)"),
        (lambda t: t.sort_values("gene_name", ascending=False), "numbers 159 to 0"),
        (lambda t: t.assign(index=t["index"] + 1), "numbers 1 to 160"),
        (lambda t: t.rename(columns={"gene_name": "gene"}), "without the columns gene_name and index"),
    ],
    ids=["shorter", "longer", "repeated", "sorted", "from one", "other columns"],
)
def test_gene_list_that_does_not_fit_is_refused(folder, change, message):
    rewritten_list(folder, change)
    with pytest.raises(CheckpointError, match=message):
        scfm.models.load(folder)


def test_published_list_in_another_order_is_refused(tmp_path):
    names = [f"G{i}" for i in range(N_GENES)]
    pd.DataFrame({"gene_name": names, "index": range(N_GENES)}).to_csv(tmp_path / LIST, sep="\t", index=False)
    with pytest.raises(CheckpointError, match="in another order"):
        _scfoundation_genes.gene_list(tmp_path, N_GENES, "")


def test_missing_gene_list_is_named_with_where_to_get_it(folder):
    (folder / LIST).unlink()
    with pytest.raises(CheckpointError, match=rf"list of genes is missing.*{LIST}.*biomap-research/scFoundation"):
        scfm.models.load(folder)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"<html>\xff", lambda b: b"\x00\x01" + b])
def test_damaged_gene_list_is_an_error(folder, damage):
    path = folder / LIST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=LIST):
        scfm.models.load(folder)


def test_weights_lie_in_the_folder_or_as_in_the_repository(folder, tmp_path):
    (tmp_path / "as published" / "models").mkdir(parents=True)
    weights_of(folder).rename(tmp_path / "as published" / "models" / "models.ckpt")
    (folder / LIST).rename(tmp_path / "as published" / LIST)
    tokens = some_tokens(model := scfm.models.load(tmp_path / "as published"))
    inner = scfm.models.load(tmp_path / "as published" / "models")
    np.testing.assert_array_equal(inner.embed_cells(tokens), model.embed_cells(tokens))
    with pytest.raises(CheckpointError, match=r"weight file is missing: expected .*models\.ckpt"):
        scfm.models.load(folder, family="scfoundation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda held: {"weights": torch.zeros(2)},
            "holds weights, but a dictionary of the weight sets cell, rde, gene",
        ),
        (lambda held: {"cell": {"state_dict": held["cell"]["state_dict"]}}, "has no configuration"),
        (lambda held: {"cell": {**held["cell"], "config": {"model": "other"}}}, "has no configuration"),
    ],
    ids=["no sets", "no configuration", "other configuration"],
)
def test_file_of_another_making_is_refused(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=message):
        scfm.models.load(folder)


def test_kinds_of_networks_that_are_not_built_in_are_refused(folder):
    def other(held):
        held["cell"]["config"]["model_config"]["mae_autobin"]["decoder"]["module_type"] = "transformer"
        return held

    rewritten(folder, other)
    with pytest.raises(CheckpointError, match="a decoder of kind 'transformer'; only 'transformer' with 'performer'"):
        scfm.models.load(folder)


# weight sets and names


def test_weight_sets_are_chosen_by_name(folder):
    assert scfm.models.load(folder).card.checkpoint == "cell"
    assert scfm.models.load(folder, checkpoint="gene").config.decoder_spec.contextual
    assert not scfm.models.load(folder, checkpoint="rde").config.decoder_spec.contextual
    with pytest.raises(CheckpointError, match=r"checkpoint='ce' does not exist.*cell, rde, gene"):
        scfm.models.load(folder, checkpoint="ce")
    rewritten(folder, lambda held: {"gene": held["gene"]})
    assert scfm.models.load(folder).card.checkpoint == "gene"


def test_registered_names_share_one_folder_and_the_licence_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    shared = scfoundation_folder(tmp_path / "scfoundation")
    assert scfm.models.list().loc[[f"scfoundation-{p}" for p in scfoundation.PURPOSES], "here"].all()
    tokens = some_tokens(scfm.models.load(shared))
    for purpose in scfoundation.PURPOSES:
        model = scfm.models.load(f"scfoundation-{purpose}")
        assert model.card == scfm.models.cards()[f"scfoundation-{purpose}"]
        expected = scfm.models.load(shared, checkpoint=purpose).embed_cells(tokens)
        np.testing.assert_array_equal(model.embed_cells(tokens), expected)
    assert caplog.text.count("scfoundation-rde: the weights are for non-commercial research only") <= 1
    with pytest.raises(ConfigError, match="scfoundation-cell is the weight set 'cell'"):
        scfm.models.load("scfoundation-cell", checkpoint="gene")


def test_converted_weights_may_have_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    model = scfm.models.load(scfoundation_folder(tmp_path / "elsewhere"), checkpoint="rde")
    model.save_pretrained(tmp_path / "scfoundation-rde")
    again = scfm.models.load("scfoundation-rde")
    tokens = some_tokens(model)
    np.testing.assert_array_equal(again.embed_cells(tokens), model.embed_cells(tokens))
    with pytest.raises(CheckpointError, match="holds one weight set"):
        scfm.models.load(tmp_path / "scfoundation-rde", checkpoint="rde")


# genes and cells


@pytest.fixture
def cells():
    return anndata.read_h5ad(case("scfoundation") / "cells.h5ad")


def test_columns_are_found_by_name_however_many_there_are(folder, cells):
    model = scfm.models.load(folder)
    expected = model.embed_cells(model.tokenize(cells))
    wider = anndata.AnnData(
        np.hstack([np.ones((cells.n_obs, 200), dtype=np.float32), cells.X.toarray()]),
        var=pd.DataFrame(index=[*(f"OTHER{i}" for i in range(200)), *cells.var["gene_name"]]),
    )
    np.testing.assert_allclose(model.embed_cells(model.tokenize(wider)), expected, atol=1e-5)


def test_encoder_layers_of_the_gene_weights_are_asked_for_by_number(folder, cells):
    model = scfm.models.load(folder, checkpoint="gene")
    tokens = model.tokenize(cells)
    assert model.embed_genes(tokens).vectors.shape[1] == model.config.decoder_spec.stack.width
    layer = model.embed_genes(tokens, hidden_layer=1)
    assert layer.vectors.shape[1] == model.transformer.width
    assert layer.n_cells.max() == cells.n_obs
    assert layer.n_cells.min() < cells.n_obs


def test_cells_without_genes_are_nan_and_count_for_no_mean(folder, cells):
    model = scfm.models.load(folder, checkpoint="gene")
    few = cells[:3].copy()
    emptied = few.X.toarray()
    emptied[1] = 0
    few.X = emptied
    tokens = model.tokenize(few)
    assert np.isnan(model.decode(tokens)[1]).all()
    assert np.isnan(model.heads["expression"](tokens)[1]).all()
    assert np.isfinite(model.decode(tokens)[[0, 2]]).all()
    np.testing.assert_allclose(model.embed_genes(tokens).vectors, model.embed_genes(tokens[[0, 2]]).vectors, atol=1e-6)


def test_models_without_a_decoder_say_so():
    model = scfm.models.load("scfm-mini")
    with pytest.raises(ConfigError, match="scfm-mini has no decoder"):
        model.decode(some_tokens(model))


def test_decoder_needs_the_terms_that_it_reads():
    stack = StackSpec(1, 8, 2, 4, 16)
    with pytest.raises(ConfigError, match="reads the input term 'value'"):
        CellTransformer(
            make_config(
                encoder=stack,
                terms={"gene": TermSpec("table", rows=9)},
                decoder=DecoderSpec(stack, rows=8),
                readouts={"mean": ReadoutSpec((PartSpec("mean"),))},
            )
        )


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_genes_can_be_perturbed(folder, cells, kind):
    model = scfm.models.load(folder)
    gene = next(name for name in cells.var["gene_name"] if name in model.vocabulary.index)
    result = scfm.tl.perturb(cells, [gene], kind=kind, model=model, null=2, progress=False)
    assert (result.cells["cosine"] < 1).any()
    tokens = model.tokenize(cells)
    edited = getattr(model.tokenizer, kind)(tokens, np.array([model.vocabulary.index[gene]]))
    ends = np.stack([edited.offsets[1:] - 2, edited.offsets[1:] - 1], axis=1)
    depths = [model.vocabulary.specials[role] for role in ("target_depth", "source_depth")]
    np.testing.assert_array_equal(edited.ids[ends], np.tile(depths, (cells.n_obs, 1)))
    has_it = np.array([gene in {model.vocabulary.names[i] for i in cell.ids} for cell in edited])
    assert has_it.all() == (kind == "overexpress")
    assert has_it.any() == (kind == "overexpress")


# the published size


def published_state() -> dict[str, torch.Tensor]:
    """The tensors of one of the authors' weight sets, without numbers."""
    inner = DECODER_HEADS * HEAD_DIM

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes: dict[str, tuple[int, ...]] = {
        **linear("token_emb.mlp", BINS, 1),
        **linear("token_emb.mlp2", BINS, BINS),
        "token_emb.emb.weight": (BINS, WIDTH),
        "token_emb.emb_mask.weight": (1, WIDTH),
        "token_emb.emb_pad.weight": (1, WIDTH),
        "pos_emb.weight": (N_GENES + 3, WIDTH),
        **linear("decoder_embed", INNER, WIDTH),
        **norm("norm", INNER),
        **linear("to_final", 1, INNER),
        **norm("encoder.norm", WIDTH),
        **norm("decoder.norm", INNER),
        "decoder.performer.calls_since_last_redraw": (),
    }
    for i in range(LAYERS):
        layer = f"encoder.transformer_encoder.{i}"
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{layer}.self_attn.in_proj_bias": (3 * WIDTH,),
        }
        shapes |= linear(f"{layer}.self_attn.out_proj", WIDTH, WIDTH)
        shapes |= linear(f"{layer}.linear1", 4 * WIDTH, WIDTH) | linear(f"{layer}.linear2", WIDTH, 4 * WIDTH)
        shapes |= norm(f"{layer}.norm1", WIDTH) | norm(f"{layer}.norm2", WIDTH)
    for i in range(DECODER_LAYERS):
        layer = f"decoder.performer.net.layers.{i}"
        shapes[f"{layer}.0.fn.fast_attention.projection_matrix"] = (FEATURES, HEAD_DIM)
        for x in "qkv":
            shapes |= linear(f"{layer}.0.fn.to_{x}", inner, INNER)
        shapes |= linear(f"{layer}.0.fn.to_out", INNER, inner)
        shapes |= linear(f"{layer}.1.fn.fn.w1", 4 * INNER, INNER) | linear(f"{layer}.1.fn.fn.w2", INNER, 4 * INNER)
        shapes |= norm(f"{layer}.0.norm", INNER) | norm(f"{layer}.1.norm", INNER)
    return {f"model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}


SETTINGS = {"encoder": {"heads": HEADS}, "bin_alpha": 1.0}


def test_scfoundation_has_the_published_sizes_and_their_number_of_parameters():
    state = published_state()
    assert len(state) == 265
    assert sum(p.numel() for p in state.values()) == 119_354_430
    config = scfoundation.config(state, SETTINGS)
    encoder, decoder = config.stack_spec, config.decoder_spec.stack
    assert (encoder.n_layers, encoder.width, encoder.head_dim, encoder.ff) == (LAYERS, WIDTH, 64, 4 * WIDTH)
    assert (encoder.norm, encoder.activation, encoder.eps, encoder.final_norms) == ("post", "relu", 1e-5, 1)
    assert (decoder.n_layers, decoder.width, decoder.n_heads, decoder.ff) == (DECODER_LAYERS, INNER, 8, 4 * INNER)
    assert (decoder.norm, decoder.activation, decoder.eps, decoder.final_norms) == ("pre", "gelu", 1e-5, 2)
    assert config.decoder_spec.rows == N_GENES + 2
    with torch.device("meta"):
        model = CellTransformer(config)
    padding = WIDTH
    cards = [scfm.models.cards()[f"scfoundation-{purpose}"] for purpose in scfoundation.PURPOSES]
    assert {card.parameters for card in cards} == {sum(p.numel() for p in model.parameters()) + padding}
    assert {card.context for card in cards} == {N_GENES + 2}


WHOLE_CELL = """
import resource, sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
from test_scfoundation import N_GENES, SETTINGS, published_state
from scfm.models.families import scfoundation
from scfm.transformer import CellTransformer, pack

torch.set_num_threads(1)
torch.manual_seed(0)
ids = np.concatenate([np.arange(0, N_GENES, 40), [N_GENES, N_GENES + 1]])
tokens = {"ids": ids, "values": np.linspace(0.1, 5, len(ids), dtype=np.float32)}
# one layer of each stack: the others need no more memory than their weights
state = {k: v for k, v in published_state().items() if not any(f".{i}." in k for i in range(2, 12))}
state = {k: v for k, v in state.items() if "transformer_encoder.1" not in k and "layers.1." not in k}
model = CellTransformer(scfoundation.config(state, SETTINGS)).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.inference_mode():
    genes = model.head("expression", pack(tokens, np.array([0, len(ids)])))
assert genes.shape == (1, N_GENES + 2, 1) and genes.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_all_genes_of_a_cell_of_the_published_size_stay_below_a_gigabyte():
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_CELL, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1e9


def test_a_masked_gene_teaches_both_stacks_and_is_not_seen_by_the_first(folder):
    model = scfm.models.load(folder, checkpoint="gene").transformer
    tokens = {"ids": np.array([3, 5, 160, 161]), "values": np.array([np.nan, 2.0, 4.0, 3.0], dtype=np.float32)}
    masked = pack(tokens, np.array([0, 4]), keys=np.array([False, True, True, True]))
    without = pack({name: column[1:] for name, column in tokens.items()}, np.array([0, 3]))
    torch.testing.assert_close(model(keys_only(masked)), model(without))
    model.head("expression", masked)[0, 3].sum().backward()
    bins = model.terms["value"].bins
    for weight in (bins.mask.weight, bins.table.weight, model.encoder.layers[0].qkv.weight, model.decoder.enter.weight):
        assert weight.grad.abs().sum() > 0


def test_half_precision_keeps_the_direction_of_genes(folder, cells):
    model = scfm.models.load(folder, checkpoint="gene")
    tokens = model.tokenize(cells)
    full = model.decode(tokens)
    half = model.to("cpu", "bfloat16").decode(tokens)
    cosine = (full * half).sum(-1) / (np.linalg.norm(full, axis=-1) * np.linalg.norm(half, axis=-1))
    assert cosine.min() > 0.999


def test_gene_vectors_of_groups_are_means_of_the_decoder(folder, cells):
    model = scfm.models.load(folder, checkpoint="gene")
    scfm.tl.embed_genes(cells, model, groupby="cell_type", key_added="genes", progress=False)
    of_group = model.decode(model.tokenize(cells), [gene := "CD3E"])[cells.obs["cell_type"] == "B"].mean(axis=0)
    column = list(cells.var["gene_name"]).index(gene)
    np.testing.assert_allclose(cells.varm["genes_groups"][column, 0], of_group[0], atol=1e-5)
    assert (cells.varm["genes_n_cells"][column] == cells.obs["cell_type"].value_counts(sort=False)).all()


def test_cells_of_a_batch_are_decoded_apart(folder):
    model = scfm.models.load(folder, checkpoint="gene").transformer
    ids, values = (
        np.array([3, 5, 160, 161, 9, 160, 161]),
        np.array([1.0, 2.0, 4.0, 3.0, 0.5, 4.0, 2.0], dtype=np.float32),
    )
    with torch.inference_mode():
        both = model.decode(pack({"ids": ids, "values": values}, np.array([0, 4, 7])))
        alone = model.decode(pack({"ids": ids[4:], "values": values[4:]}, np.array([0, 3])))
    torch.testing.assert_close(both[1:], alone, atol=2e-6, rtol=0)
