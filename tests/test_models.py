"""Models by name and place, their sizes, and what they answer to impossible wishes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_cases import arrays, case, tokens_of
from model_cases import (
    FAMILY_CASES,
    copied,
    dictionaries,
    geneformer_folder,
    scgpt_folder,
    some_tokens,
    state_of,
    write_state,
)

import scfm
from scfm.errors import CheckpointError, ConfigError, GeneMatchError
from scfm.models.families import FAMILIES, geneformer, scgpt
from scfm.tokenizers import Tokens
from scfm.transformer import CellTransformer


@pytest.fixture(params=[*FAMILY_CASES])
def folder(request, tmp_path):
    """A small checkpoint of each family, writable."""
    return FAMILY_CASES[request.param](tmp_path / "model")


# files that do not belong together


@pytest.mark.parametrize(("model", "dictionary"), [(1, 2), (2, 1)])
def test_geneformer_with_the_dictionaries_of_the_other_generation(tmp_path, model, dictionary):
    folder = geneformer_folder(tmp_path / "model", model)
    for file in folder.glob("*.pkl"):
        file.unlink()
    copied(dictionaries(dictionary), folder)
    with pytest.raises(CheckpointError, match="not interchangeable"):
        scfm.models.load(folder)


def test_scgpt_with_the_vocabulary_of_another_release(tmp_path):
    folder = scgpt_folder(tmp_path)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "NEWGENE": len(vocabulary)}))
    with pytest.raises(CheckpointError, match="of different releases"):
        scfm.models.load(folder)
    gap = {name: i + (i > 5) for name, i in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(gap))
    with pytest.raises(CheckpointError, match="without a gap"):
        scfm.models.load(folder)


def test_scgpt_with_the_configuration_of_another_model(tmp_path):
    folder = scgpt_folder(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**args, "nlayers": args["nlayers"] + 1}))
    with pytest.raises(CheckpointError, match=r"says nlayers = 4, but best_model\.pt has 3"):
        scfm.models.load(folder)


def test_scgpt_vocabulary_without_special_tokens_gets_them_in_the_order_of_the_authors(tmp_path):
    folder = scgpt_folder(tmp_path)
    before = scfm.models.load(folder).vocabulary
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for token in ("<eoc>", "<cls>", "<pad>"):
        assert vocabulary.pop(token) == len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert scfm.models.load(folder).vocabulary.names == before.names


@pytest.mark.parametrize("name", ["vocab.json", "best_model.pt"])
def test_missing_companion_of_scgpt_is_named(tmp_path, name):
    folder = scgpt_folder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        scfm.models.load(folder, family="scgpt")


@pytest.mark.parametrize("pattern", ["gene_median_dictionary*.pkl", "ensembl_mapping_dict*.pkl", "model.safetensors"])
def test_missing_companion_of_geneformer_is_named(tmp_path, pattern):
    folder = geneformer_folder(tmp_path)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    next(folder.glob(pattern)).unlink()
    with pytest.raises(CheckpointError, match=pattern.split("*")[0]):
        scfm.models.load(folder)


def test_geneformer_without_its_dictionary_says_where_to_get_it(tmp_path):
    folder = geneformer_folder(tmp_path / "a" / "b" / "c" / "d")
    for file in folder.glob("*.pkl"):
        file.unlink()
    with pytest.raises(CheckpointError, match="Put the authors' folder geneformer/"):
        scfm.models.load(folder)


def test_class_names_that_fit_twice_are_not_guessed(tmp_path):
    checkpoint = case("geneformer_v2") / "checkpoint"
    classifier = next(p.parent for p in checkpoint.rglob("config.json") if "cellClassifier" in str(p))
    folder = copied(dictionaries(2), copied(classifier, tmp_path / "x" / "y" / "z"))
    names = {i: f"type {i}" for i in range(arrays("geneformer_v2")["cell_clf_logits"].shape[1])}
    (folder / "mine_id_class_dict.pkl").write_bytes(pickle.dumps(names))
    assert scfm.models.load(folder).heads["cell_classifier"].labels == list(names.values())
    (folder / "other_id_class_dict.pkl").write_bytes(pickle.dumps({i: f"other {i}" for i in names}))
    assert scfm.models.load(folder).heads["cell_classifier"].labels is None


# names and places


def test_unknown_names_are_answered_with_known_ones():
    with pytest.raises(ConfigError, match="geneformer-v1-10m"):
        scfm.models.load("geneformer-v3")
    with pytest.raises(ConfigError, match="unknown family 'bert'; there are geneformer, scgpt"):
        scfm.models.load("geneformer-v1-10m", family="bert")


def test_folder_of_no_family_lists_the_layouts(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes\.txt.*geneformer: config\.json.*scgpt: .*vocab\.json"):
        scfm.models.load(tmp_path)
    with pytest.raises(CheckpointError, match="pass the folder that holds it"):
        scfm.models.load(tmp_path / "notes.txt")


def test_weights_that_cannot_be_fetched_are_described(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError) as error:
        scfm.models.load("scgpt-human")
    card = scfm.models.cards()["scgpt-human"]
    for word in (*card.files, card.source, "Google Drive", "MIT", str(tmp_path / "home" / "scgpt-human")):
        assert word in str(error.value)


def test_hand_placed_folder_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    assert not scfm.models.list().loc["scgpt-human", "here"]
    scgpt_folder(tmp_path / "scgpt-human")
    assert scfm.models.list().loc["scgpt-human", "here"]
    model = scfm.models.load("scgpt-human")
    assert model.card == scfm.models.cards()["scgpt-human"]
    assert np.isfinite(model.embed_cells(some_tokens(model))).all()


def test_weight_set_that_is_not_there_is_an_error(folder):
    with pytest.raises(CheckpointError, match="checkpoint='another' does not exist"):
        scfm.models.load(folder, checkpoint="another")


def test_list_is_a_table_of_every_card():
    table = scfm.models.list()
    assert table.index.name == "name"
    assert {"family", "parameters", "context", "species", "licence", "source", "verified", "here"} <= set(table.columns)
    cards = scfm.models.cards()
    assert [*table.index] == [*cards]
    for name, card in cards.items():
        assert card.name == name
        assert card.licence
        assert card.verified
        assert card.source


def test_every_card_survives_json():
    for card in scfm.models.cards().values():
        again = scfm.models.ModelCard.from_dict(json.loads(json.dumps(card.to_dict())))
        assert json.dumps(again.to_dict()) == json.dumps(card.to_dict())
    with pytest.raises(CheckpointError, match="unknown entries colour"):
        scfm.models.ModelCard.from_dict({"name": "x", "family": "y", "colour": "red"})


# own layout


def test_own_layout_is_read_as_strictly(folder, tmp_path):
    scfm.models.load(folder).save_pretrained(tmp_path / "own")
    own = tmp_path / "own"
    assert {p.name for p in own.iterdir()} <= set(scfm.models.FoundationModel.files)
    state = state_of(own)
    write_state(own, {**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="does not know"):
        scfm.models.load(own)
    write_state(own, dict([*state.items()][1:]))
    with pytest.raises(CheckpointError, match="lacks 1"):
        scfm.models.load(own)
    (own / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        scfm.models.load(own)


def test_transformers_reads_our_layout_too(folder, tmp_path):
    model = scfm.models.load(folder)
    model.save_pretrained(tmp_path / "own")
    theirs = CellTransformer.from_pretrained(tmp_path / "own")
    ours = model.transformer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


# sizes of the published models

SEGMENT_ROWS = 2
"""Rows of the segment table of the authors' Geneformer; the used one is part of our positions."""


def n_parameters(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in CellTransformer(config).parameters())


GENEFORMER_SIZES = {
    "geneformer-v1-10m": (6, 256, 4, 512, 25_426, 2048),
    "geneformer-v1-40m": (12, 512, 8, 1024, 25_426, 2048),
    "geneformer-v2-104m": (12, 768, 12, 3072, 20_275, 4096),
    "geneformer-v2-104m-clcancer": (12, 768, 12, 3072, 20_275, 4096),
    "geneformer-v2-316m": (18, 1152, 18, 4608, 20_275, 4096),
}


@pytest.mark.parametrize("name", [n for n, c in scfm.models.cards().items() if c.family == "geneformer"])
def test_geneformer_has_the_published_number_of_parameters(name):
    layers, width, heads, ff, tokens, positions = GENEFORMER_SIZES[name]
    bert = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": ff,
        "vocab_size": tokens,
        "max_position_embeddings": positions,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.02,
        "attention_probs_dropout_prob": 0.02,
    }
    config = geneformer.config(bert, geneformer.heads_of({}, bert), special_tokens=tokens < 25_000)
    card = scfm.models.cards()[name]
    assert n_parameters(config) + SEGMENT_ROWS * width == card.parameters
    assert card.context == positions
    assert config.stack_spec.head_dim == 64


def published_scgpt_state(d=512, layers=12, tokens=60_697) -> dict[str, torch.Tensor]:
    """The tensors of the authors' file, without numbers."""
    shapes = {
        "encoder.embedding.weight": (tokens, d),
        "flag_encoder.weight": (2, d),
        "value_encoder.linear1.weight": (d, 1),
        "value_encoder.linear2.weight": (d, d),
        "mvc_decoder.gene2query.weight": (d, d),
        "mvc_decoder.W.weight": (d, d),
        **{f"decoder.fc.{i}.weight": (1 if i == 4 else d, d) for i in (0, 2, 4)},
    }
    for i in range(layers):
        layer = f"transformer_encoder.layers.{i}."
        shapes[f"{layer}self_attn.Wqkv.weight"] = (3 * d, d)
        for linear in ("self_attn.out_proj", "linear1", "linear2"):
            shapes[f"{layer}{linear}.weight"] = (d, d)
    linears = [n for n in shapes if n.endswith("weight") and not n.startswith(("encoder", "flag", "mvc_decoder.W"))]
    shapes.update({n.replace("weight", "bias"): shapes[n][:1] for n in linears})
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    norms += [f"transformer_encoder.layers.{i}.norm{k}" for i in range(layers) for k in (1, 2)]
    shapes.update({f"{n}.{part}": (d,) for n in norms for part in ("weight", "bias")})
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_scgpt_has_the_published_number_of_parameters():
    state = published_scgpt_state()
    assert len(state) == 163
    config = scgpt.config({"nheads": 8, "dropout": 0.2}, state)
    assert n_parameters(config) == scfm.models.cards()["scgpt-human"].parameters == 51_330_049
    assert config.stack_spec.head_dim == 64
    assert config.stack_spec.dropout == 0.2


# errors of use


@pytest.fixture(scope="module")
def model():
    return scfm.models.load(case("scgpt") / "checkpoint" / "pretrained")


def test_unknown_head_pooling_layer_and_kind_name_the_known_ones(model):
    tokens = some_tokens(model)
    with pytest.raises(ConfigError, match=r"no head 'type'; it has expression, mvc"):
        model.heads["type"]
    with pytest.raises(ConfigError, match="no pooling 'max'; it has cls, cls_raw, mean"):
        model.embed_cells(tokens, "max")
    with pytest.raises(ConfigError, match="hidden_layer=7 does not exist; this model has 3 layers"):
        model.embed_cells(tokens, hidden_layer=7)
    with pytest.raises(ConfigError, match="no hidden layer 9"):
        model.hidden_states(tokens, [9])
    with pytest.raises(ConfigError, match="neither 'contextual' nor 'input'"):
        model.embed_genes(tokens, kind="static")
    with pytest.raises(ConfigError, match="pass tokens"):
        model.embed_genes()


def test_device_and_precision_must_exist(model):
    with pytest.raises(ConfigError, match="device='gpu' is no device"):
        model.to("gpu")
    with pytest.raises(ConfigError, match="no such device here"):
        model.to("cuda:99")
    with pytest.raises(ConfigError, match="dtype='int8' is not one of float32, bfloat16, float16"):
        model.to("cpu", "int8")
    with pytest.raises(ConfigError, match=r"dtype='torch\.int64'"):
        model.to("cpu", torch.int64)
    with pytest.raises(ConfigError, match="unknown attn_implementation 'quick'; there are eager, sdpa"):
        model.to("cpu", attn_implementation="quick")
    assert model.dtype == torch.float32


def test_tokens_of_another_model_are_refused(model, tmp_path):
    tokens = some_tokens(model)
    with pytest.raises(ConfigError, match=r"knows 0 to 242: they are of another model"):
        model.embed_cells(replace(tokens, ids=tokens.ids + 1000))
    with pytest.raises(ConfigError, match="they are of another model"):
        model.embed_cells(replace(tokens, ids=tokens.ids - 1000))
    ranked = scfm.models.load(geneformer_folder(tmp_path))
    long = Tokens(ids=np.full(500, 5, dtype=np.int32), offsets=np.array([0, 500]))
    with pytest.raises(ConfigError, match=r"a cell has 500 tokens, but .* has positions for 40"):
        ranked.embed_cells(long)


def test_models_that_were_not_trained_to_answer_are_not_asked(model, tmp_path):
    ranked = scfm.models.load(geneformer_folder(tmp_path))
    with pytest.raises(ConfigError, match="was not trained to predict genes"):
        ranked.generate(some_tokens(ranked), ["ENSG00000000003"])
    with pytest.raises(GeneMatchError, match="1 genes are not in the vocabulary: no such gene"):
        model.generate(some_tokens(model), ["no such gene"])


def test_answers_do_not_depend_on_other_questions_or_cells(model):
    tokens = some_tokens(model)
    names = [n for n, gene in zip(model.vocabulary.names, model.vocabulary.is_gene, strict=True) if gene][:6]
    together = model.generate(tokens, names)
    alone = np.column_stack([model.generate(tokens, [name])[:, 0] for name in names])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(model.generate(tokens[1:2], names), together[1:2], atol=1e-5)


def test_cells_without_genes_have_nan_rows(model):
    tokens = some_tokens(model)
    with_empty = replace(tokens, per_cell={"n_detected": np.array([5, 0, 7])})
    embedded = model.embed_cells(with_empty)
    assert np.isnan(embedded[1]).all()
    np.testing.assert_allclose(embedded[[0, 2]], model.embed_cells(tokens)[[0, 2]], atol=1e-6)
    assert np.isnan(model.generate(with_empty, [model.vocabulary.names[0]])[1]).all()


def test_recorded_tokens_of_one_family_are_not_those_of_another(model):
    recorded = arrays("geneformer_v2")
    tokens = tokens_of(recorded["tokens"], recorded["length"])
    if tokens.ids.max() < len(model.vocabulary):
        pytest.skip("the recorded ids happen to lie within the other vocabulary")
    with pytest.raises(ConfigError, match="another model"):
        model.embed_cells(tokens)


def test_every_family_names_its_files():
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family.files
        assert all(card.family == name for card in family.cards)
