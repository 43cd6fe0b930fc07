"""Geneformer V1 and V2 give the numbers of the authors' code on the recorded case."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of, unpad
from torch.nn import functional as F

import scfm

FAMILIES = ["geneformer_v1", "geneformer_v2"]


def pretrained(family: str) -> Path:
    return next(p for p in sorted((case(family) / "checkpoint").iterdir()) if (p / "config.json").is_file())


def finetuned(family: str, kind: str) -> Path:
    found = [p.parent for p in sorted((case(family) / "checkpoint").rglob("config.json"))]
    return next(p for p in found if re.search(f"{kind}Classifier", str(p), re.IGNORECASE))


def assert_labels(family, kind, labels, n_classes):
    """The class names are known where their dictionary lies in the folder or above it."""
    near = [p for base in finetuned(family, kind).parents for p in base.glob(f"*_{kind}_id_class_dict.pkl")]
    assert (labels is not None) == bool(near)
    assert labels is None or len(set(labels)) == n_classes


@pytest.fixture(params=FAMILIES)
def golden(request):
    family = request.param
    recorded = arrays(family)
    model = scfm.models.load(pretrained(family))
    tokens = tokens_of(recorded["tokens"], recorded["length"])
    return family, recorded, model, tokens


def test_golden_hidden_states(golden):
    _, recorded, model, tokens = golden
    layers, n = recorded["hidden_states"].shape[:2]
    ours = model.hidden_states(tokens[:n])
    for k in range(layers):
        assert_close(ours[k], unpad(recorded["hidden_states"][k], recorded["length"][:n]))


@pytest.mark.parametrize("emb_layer", [0, -1])
def test_golden_cell_embeddings_in_every_mode_and_layer(golden, emb_layer):
    _, recorded, model, tokens = golden
    for mode, pooling in (("cell", "mean"), ("cls", "cls")):
        name = f"emb_{mode}_layer{emb_layer}"
        if name in recorded:
            assert_close(model.embed_cells(tokens, pooling, hidden_layer=emb_layer - 1), recorded[name])


def test_golden_default_embedding_is_the_authors_default(golden):
    _, recorded, model, tokens = golden
    default = "emb_cls_layer-1" if "emb_cls_layer-1" in recorded else "emb_cell_layer-1"
    assert_close(model.embed_cells(tokens), recorded[default])


@pytest.mark.parametrize("emb_layer", [0, -1])
def test_golden_gene_embeddings(golden, emb_layer):
    _, recorded, model, tokens = golden
    genes = model.embed_genes(tokens, hidden_layer=emb_layer - 1)
    order = np.argsort(recorded["gene_emb_tokens"])
    np.testing.assert_array_equal(genes.ids, recorded["gene_emb_tokens"][order])
    assert_close(genes.vectors, recorded[f"gene_emb_layer{emb_layer}"][order])


@pytest.mark.parametrize("state", ["case", "ctrl"])
def test_golden_state_embeddings(golden, state):
    import anndata

    family, recorded, model, tokens = golden
    disease = anndata.read_h5ad(case(family) / "cells.h5ad").obs["disease"].to_numpy()[recorded["cell_index"]]
    assert_close(model.embed_cells(tokens)[disease == state].mean(axis=0), recorded[f"state_emb_{state}"])


def test_golden_masked_language_model_logits_and_loss(golden):
    _, recorded, model, tokens = golden
    n = len(recorded["mlm_logits"])
    assert_close(model.heads["mlm"](tokens[:n]), unpad(recorded["mlm_logits"], recorded["length"][:n]))
    lengths = recorded["mlm_attention_mask"].sum(axis=1)
    logits = model.heads["mlm"](tokens_of(recorded["mlm_input_ids"], lengths))
    labels = unpad(recorded["mlm_labels"], lengths)
    assert_close(logits[labels != -100], recorded["mlm_logits_at_masked"])
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), ignore_index=-100)
    assert_close(loss, recorded["mlm_loss"])


def test_golden_cell_classifier(golden):
    family, recorded, _, tokens = golden
    model = scfm.models.load(finetuned(family, "cell"))
    logits = model.heads["cell_classifier"](tokens)
    assert_close(logits, recorded["cell_clf_logits"])
    assert_close(logits, recorded["cell_clf_logits_official_batches"])
    np.testing.assert_array_equal(logits.argmax(axis=1), recorded["cell_clf_pred_official_batches"])
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor(recorded["cell_clf_labels"]).long())
    assert_close(loss, recorded["cell_clf_loss"])
    assert_labels(family, "cell", model.heads["cell_classifier"].labels, logits.shape[1])
    first = model.transformer.heads["cell_classifier"].mlp.linears[0]
    states = model.embed_cells(tokens, "first", hidden_layer=-1)
    with torch.no_grad():
        assert_close(torch.tanh(first(torch.tensor(states))), recorded["cell_clf_pooled"])


def test_golden_gene_classifier(golden):
    family, recorded, _, tokens = golden
    model = scfm.models.load(finetuned(family, "gene"))
    logits = model.heads["gene_classifier"](tokens)
    assert_close(logits, unpad(recorded["gene_clf_logits"], recorded["length"]))
    labels = unpad(recorded["gene_clf_labels"], recorded["length"])
    asked = labels != -100
    np.testing.assert_array_equal(labels[asked], recorded["gene_clf_true_flat"])
    np.testing.assert_array_equal(logits[asked].argmax(axis=1), recorded["gene_clf_pred_flat"])
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), ignore_index=-100)
    assert_close(loss, recorded["gene_clf_loss"])
    assert_labels(family, "gene", model.heads["gene_classifier"].labels, logits.shape[1])


def test_golden_old_and_new_weight_files_are_the_same_model(golden, tmp_path):
    family, recorded, model, tokens = golden
    folder = pretrained(family)
    if not (folder / "pytorch_model.bin").is_file():
        pytest.skip("this case has one weight file")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    dictionaries = next((case(family) / "checkpoint").rglob("token_dictionary*.pkl")).parent
    for file in dictionaries.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    np.testing.assert_array_equal(scfm.models.load(tmp_path).embed_cells(tokens), model.embed_cells(tokens))
    assert "tokens" in recorded


def test_golden_own_layout_gives_identical_results(golden, tmp_path):
    _, _, model, tokens = golden
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    np.testing.assert_array_equal(again.embed_cells(tokens), model.embed_cells(tokens))
    np.testing.assert_array_equal(again.heads["mlm"](tokens), model.heads["mlm"](tokens))
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card


def test_golden_layer_norm_epsilon_is_that_of_the_checkpoint(golden):
    # 1e-5 instead of 1e-12 moves these small embeddings by less than the tolerance
    _, _, model, _ = golden
    assert model.config.stack_spec.eps == 1e-12
    assert model.config.sum_eps == 1e-12
    assert model.config.head_specs["mlm"].mlp.eps == 1e-12
