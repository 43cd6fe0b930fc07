"""Nicheformer gives the numbers of the authors' code on the recorded case."""

from __future__ import annotations

import re
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of, unpad
from torch.nn import functional as F

import scfm
from scfm.models._generation import fill_up
from scfm.models._reading import read_tensors
from scfm.tokenizers import families

CONTEXT = {"species": "organism", "assay": "assay", "modality": "modality"}
READOUTS = {"": "official", "_with_context": "official_with_context"}


@pytest.fixture(scope="module")
def golden():
    return arrays("nicheformer")


@pytest.fixture
def model():
    return scfm.models.load(case("nicheformer") / "checkpoint")


def tokens_in(ids, padding):
    return tokens_of(ids, (~padding).sum(axis=1))


@pytest.fixture
def tokens(golden):
    return tokens_in(golden["input_ids"], golden["key_padding_mask"])


def padded(model, tokens, token=None):
    """The cells filled up with padding that nobody sees, as the authors compute them."""
    spec = model.config.query_only_spec
    return fill_up(tokens, spec.padding if token is None else token, model.tokenizer.max_length)


def with_context(golden, genes):
    """The authors' model input from a list of gene tokens (0: none) of each cell: ids, and where there is padding."""
    width = golden["input_ids"].shape[1]
    front = np.stack([golden[name] for name in ("specie", "assay", "modality")], axis=1)
    ids = np.concatenate([front, genes], axis=1)[:, :width]
    return ids, ids == 0


def recorded_layers(golden):
    return sorted(int(found[1]) for name in golden if (found := re.fullmatch(r"hidden_layer(\d+)", name)))


# states


def test_golden_nicheformer_hidden_states_of_tokens_and_of_padding(golden, model, tokens):
    states = model.hidden_states(padded(model, tokens))
    shape = golden["hidden_embedding"].shape
    assert_close(states[0].reshape(shape), golden["hidden_embedding"])
    assert recorded_layers(golden) == list(range(model.transformer.n_layers))
    for k in recorded_layers(golden):
        assert_close(states[k + 1].reshape(shape), golden[f"hidden_layer{k}"])


def test_golden_nicheformer_padding_changes_no_token(golden, model, tokens):
    states = model.hidden_states(tokens)
    for k in recorded_layers(golden):
        assert_close(states[k + 1], unpad(golden[f"hidden_layer{k}"], tokens.lengths))


def test_golden_nicheformer_gene_embeddings(golden, model):
    genes = model.embed_genes(kind="input").vectors[model.vocabulary.is_gene]
    assert_close(genes, golden["gene_embeddings"])


# cell embeddings


@pytest.mark.parametrize("suffix", READOUTS)
def test_golden_nicheformer_official_pooling_of_every_layer(golden, model, tokens, suffix):
    for k in recorded_layers(golden):
        ours = model.embed_cells(tokens, READOUTS[suffix], hidden_layer=k + 1)
        assert_close(ours, golden[f"emb_layer{k}{suffix}"])


@pytest.mark.parametrize("suffix", READOUTS)
def test_golden_nicheformer_mean_over_real_tokens(golden, model, tokens, suffix):
    ours = model.embed_cells(tokens, "mean" + suffix)
    recorded = golden["emb_masked_mean" + suffix]
    empty = (tokens.lengths == len(CONTEXT)) & (suffix == "")
    assert np.isnan(ours[empty]).all()
    assert_close(ours[~empty], recorded[~empty])


def test_golden_nicheformer_default_is_the_mean_over_real_genes(model, tokens):
    np.testing.assert_array_equal(model.embed_cells(tokens), model.embed_cells(tokens, "mean"))


def test_golden_nicheformer_embedding_of_raw_technology_means(golden, model):
    tokens = tokens_in(*with_context(golden, golden["tokens_raw_means"]))
    assert_close(model.embed_cells(tokens, "official"), golden["emb_raw_means"])


def test_golden_nicheformer_embedding_without_context_loses_three_genes(golden, model):
    tokens = tokens_in(golden["tokens"], golden["tokens"] == 0)
    has_genes = golden["n_genes_detected"] > 0
    assert_close(model.embed_cells(tokens[has_genes], "official"), golden["emb_no_metadata"][has_genes])


@pytest.mark.parametrize(("array", "padding"), [("hf_input_ids", 0), ("hf_input_ids_pad1", 1)])
def test_golden_nicheformer_hub_embedding(golden, array, padding):
    # the hub's code fills cells up with the token that masks genes
    model = scfm.models.load(case("nicheformer") / "checkpoint_hf")
    model.config.query_only = replace(model.config.query_only_spec, padding=padding).to_dict()
    tokens = tokens_in(golden[array], ~golden["hf_attention_mask"])
    recorded = golden["hf_emb" if padding == 0 else "hf_emb_pad1"]
    assert_close(model.embed_cells(tokens, "official"), recorded)


def cells(name):
    return anndata.read_h5ad(case("nicheformer") / name)


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_golden_nicheformer_from_counts_to_official_embedding(golden, model, species):
    adata = cells("cells.h5ad" if species == "human" else "mouse_cells.h5ad")
    n_human = cells("cells.h5ad").n_obs
    rows = slice(0, n_human) if species == "human" else slice(n_human, None)
    # equal scores in the order of the authors' sort, and their rule for genes
    model.tokenizer = replace(model.tokenizer, ties="quicksort")
    orthologues = None if species == "human" else pd.read_csv(case("nicheformer") / "orthologs.csv").dropna()
    scfm.tl.embed(
        adata,
        model,
        context=CONTEXT,
        pooling="official",
        gene_matching="published",
        orthologues=orthologues,
        key_added="x",
        progress=False,
    )
    last = recorded_layers(golden)[-1]
    recorded = golden[f"emb_layer{last}"][rows]
    empty = golden["n_genes_detected"][rows] == 0
    assert np.isnan(adata.obsm["X_x"][empty]).all()
    assert_close(adata.obsm["X_x"][~empty], recorded[~empty])


# masked genes


def test_golden_nicheformer_masked_genes(golden, model):
    tokens = tokens_in(golden["mlm_masked_indices"], golden["mlm_key_padding_mask"])
    shape = golden["mlm_logits"].shape
    logits = model.heads["mlm"](padded(model, tokens)).reshape(shape)
    assert_close(logits, golden["mlm_logits"])
    asked = golden["mlm_targets"] != -100
    np.testing.assert_array_equal(asked, golden["mlm_mask"] == 0)
    np.testing.assert_array_equal(golden["mlm_targets"][asked], golden["mlm_real"][asked])
    np.testing.assert_array_equal(golden["mlm_real"], golden["input_ids"][golden["mlm_cells"]])
    targets = torch.as_tensor(golden["mlm_targets"][asked]).long()
    assert_close(F.cross_entropy(torch.as_tensor(logits[asked]), targets), golden["mlm_loss"])
    assert not (golden["mlm_targets"][golden["mlm_key_padding_mask"]] != -100).any()


# fine-tuned models


def finetuned(golden, name, tmp_path, **task):
    """A fine-tuned model as the authors' trainer would write it, with the recorded outputs on top."""
    folder = case("nicheformer") / "checkpoint"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in (case("nicheformer") / "model_means").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = read_tensors(next(folder.glob("finetuned*.ckpt")))
    stored["hyper_parameters"] = {**stored["hyper_parameters"], **task}
    stored["state_dict"]["linear_head.weight"] = torch.as_tensor(golden[f"{name}_linear_head"])
    if task.get("extractor"):
        for part in ("weight", "bias"):
            stored["state_dict"][f"pooler_head.{part}"] = torch.as_tensor(golden[f"{name}_pooler_{part}"])
    torch.save(stored, tmp_path / f"{name}.ckpt")
    return scfm.models.load(tmp_path, checkpoint=name)


def assert_classes(golden, name, logits):
    assert_close(logits, golden[f"{name}_logits"])
    np.testing.assert_array_equal(logits.argmax(axis=1), golden[f"{name}_pred"])
    loss = F.cross_entropy(torch.as_tensor(logits), torch.as_tensor(golden["region"]))
    assert_close(loss, golden[f"{name}_loss"])


def test_golden_nicheformer_fine_tuned_checkpoint(golden, tokens):
    folder = case("nicheformer") / "checkpoint"
    name = next(folder.glob("finetuned*.ckpt")).stem
    model = scfm.models.load(folder, checkpoint=name)
    assert_classes(golden, "ft_cls", model.heads["niche_classification"](tokens))
    (linear,) = model.transformer.heads["niche_classification"].mlp.linears
    np.testing.assert_array_equal(linear.weight.detach(), golden["ft_cls_linear_head"])


def test_golden_nicheformer_fine_tuned_sum_of_layers_through_the_extractor(golden, tokens, tmp_path):
    layers = [0, recorded_layers(golden)[-1]]
    task = {"extractor": True, "function_layers": "sum", "extract_layers": layers, "without_context": False}
    model = finetuned(golden, "ft_cls_extractor_sum", tmp_path, **task)
    assert_classes(golden, "ft_cls_extractor_sum", model.heads["niche_classification"](tokens))


def test_golden_nicheformer_fine_tuned_with_a_cls_token(golden, tmp_path):
    model = finetuned(golden, "ft_cls_pool_cls", tmp_path, pool="cls")
    assert model.tokenizer.first == ("cls",)
    ids, _ = with_context(golden, golden["tokens"])
    cls = np.full((len(ids), 1), model.vocabulary.specials["cls"])
    ids = np.concatenate([cls, ids], axis=1)[:, : model.tokenizer.max_length]
    logits = model.heads["niche_classification"](tokens_in(ids, ids == 0))
    assert_classes(golden, "ft_cls_pool_cls", logits)


def test_golden_nicheformer_fine_tuned_regression_of_neighbours(golden, tokens, tmp_path):
    last = recorded_layers(golden)[-1]
    task = {
        "supervised_task": "niche_regression",
        "extract_layers": [last - 1, last],
        "regress_distribution": True,
        "dim_prediction": golden["X_niche_1"].shape[1],
    }
    model = finetuned(golden, "ft_reg", tmp_path, **task)
    predicted = model.heads["niche_regression"](tokens)
    assert_close(predicted, golden["ft_reg_logits"])
    goal = torch.as_tensor(golden["X_niche_1"]).softmax(-1)
    assert_close(F.mse_loss(torch.as_tensor(predicted), goal), golden["ft_reg_loss"])


# files


def test_golden_nicheformer_hub_and_lightning_files_are_the_same_model(golden, model, tokens):
    hub = scfm.models.load(case("nicheformer") / "checkpoint_hf")
    ours, theirs = model.transformer.state_dict(), hub.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert hub.tokenizer == model.tokenizer
    np.testing.assert_array_equal(hub.embed_cells(tokens), model.embed_cells(tokens))


@pytest.mark.parametrize("checkpoint", [None, "finetuned"])
def test_golden_nicheformer_own_layout_gives_identical_results(tokens, checkpoint, tmp_path):
    folder = case("nicheformer") / "checkpoint"
    model = scfm.models.load(folder, checkpoint=checkpoint and next(folder.glob(f"{checkpoint}*.ckpt")).stem)
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    for pooling in model.config.readout_specs:
        np.testing.assert_array_equal(again.embed_cells(tokens, pooling), model.embed_cells(tokens, pooling))
    assert again.heads.keys() == model.heads.keys()
    for name, head in model.heads.items():
        np.testing.assert_array_equal(again.heads[name](tokens), head(tokens))
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    for specs in ("term_specs", "head_specs", "readout_specs", "stack_spec", "query_only_spec"):
        assert getattr(again.config, specs) == getattr(model.config, specs)


def test_golden_nicheformer_constants_that_the_arrays_hardly_show(model):
    # 1e-5 instead of 1e-12 moves these small embeddings by less than the tolerance
    assert model.config.stack_spec.eps == 1e-12
    assert model.config.query_only_spec.padding == 1
    assert model.vocabulary.specials["mask"] == 0
    assert not model.transformer.terms["gene"].table[model.config.query_only_spec.padding].any()


def test_nicheformer_ships_the_published_genes_and_means():
    tokenizer = scfm.tokenizers.RankValueTokenizer.published("nicheformer")
    assert int(tokenizer.vocabulary.is_gene.sum()) == 20_310
    assert tokenizer.max_length == 1500
    assert tokenizer.vocabulary.display([families.NICHEFORMER_GENES_FROM]) == ["TSPAN6"]
    merfish = tokenizer.scale[tokenizer.scale_rows["MERFISH"]]
    assert (merfish < 0).sum() > 0


# bad input


def test_nicheformer_says_which_weight_sets_there_are(golden, tmp_path):
    folder = case("nicheformer") / "checkpoint"
    with pytest.raises(
        scfm.errors.CheckpointError, match=r"'niche' does not exist; .* holds the weight sets .*nicheformer"
    ):
        scfm.models.load(folder, checkpoint="niche")
    with pytest.raises(scfm.errors.CheckpointError, match="one weight set"):
        scfm.models.load(case("nicheformer") / "checkpoint_hf", checkpoint="niche")


def test_nicheformer_names_the_missing_companions(tmp_path):
    folder = case("nicheformer") / "checkpoint"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "nicheformer.ckpt").write_bytes((folder / "nicheformer.ckpt").read_bytes())
    with pytest.raises(scfm.errors.CheckpointError, match=r"model\.h5ad and dissociated_mean_script\.npy.*theislab"):
        scfm.models.load(tmp_path / "a")


def test_nicheformer_fine_tuned_alone_does_not_tell_its_heads(tmp_path):
    for file in (case("nicheformer") / "model_means").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = next((case("nicheformer") / "checkpoint").glob("finetuned*.ckpt"))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(scfm.errors.CheckpointError, match="does not tell its number of attention heads"):
        scfm.models.load(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("autoregressive", True), ("assay", False)])
def test_nicheformer_made_otherwise_than_published_is_refused(name, value, tmp_path):
    stored = read_tensors(case("nicheformer") / "checkpoint" / "nicheformer.ckpt")
    stored["hyper_parameters"][name] = value
    torch.save(stored, tmp_path / "nicheformer.ckpt")
    with pytest.raises(scfm.errors.CheckpointError, match=f"{name} = {value}"):
        scfm.models.load(tmp_path)


def test_nicheformer_cannot_be_asked_for_genes(model, tokens):
    with pytest.raises(scfm.errors.ConfigError, match="cannot be asked"):
        model.ask(tokens, model.vocabulary.names[-2:])


def test_nicheformer_needs_to_be_told_the_assay(model):
    with pytest.raises(scfm.errors.TokenizerError, match="needs context 'assay'"):
        scfm.tl.embed(cells("cells.h5ad"), model, context={"species": "human"}, progress=False)
    with pytest.raises(scfm.errors.TokenizerError, match=r"'Visium'.*MERFISH"):
        scfm.tl.embed(cells("cells.h5ad"), model, context={**CONTEXT, "assay": "Visium"}, progress=False)
