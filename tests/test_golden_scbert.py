"""scBERT gives the numbers of the authors' code on the recorded case."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case
from torch.nn import functional as F

import scfm
from scfm.models._run import to_batch
from scfm.tokenizers import Tokens
from scfm.transformer._attention import FAVOR_EPS, favor_features, performer_attention

MASK_SHARE, REPLACED_SHARE = 0.15, 0.9


@pytest.fixture(scope="module")
def golden():
    return arrays("scbert")


def weights_by_kind():
    """The recorded files: of the pretrained model, and of the fine-tuned one."""
    stems = [path.stem for path in (case("scbert") / "checkpoint").glob("*.pth")]
    return {"finetuned" if "finetune" in stem else "pretrained": stem for stem in stems}


@pytest.fixture(scope="module")
def load():
    folder = case("scbert") / "checkpoint"
    models = {kind: scfm.models.load(folder, checkpoint=stem) for kind, stem in weights_by_kind().items()}
    return models.__getitem__


@pytest.fixture(scope="module")
def model(load):
    return load("pretrained")


def tokens_from(levels: np.ndarray) -> Tokens:
    """Tokens of a recorded table of levels (n, N)."""
    n, length = levels.shape
    ids = np.tile(np.arange(length, dtype=np.int32), n)
    return Tokens(ids=ids, offsets=np.arange(n + 1) * length, values=levels.ravel().astype(np.float32))


@pytest.fixture
def tokens(golden):
    return tokens_from(golden["tokens"])


def flat(recorded: np.ndarray) -> np.ndarray:
    """A recorded array (n, N, ...) end to end."""
    return recorded.reshape(-1, *recorded.shape[2:])


# every cell alone


def test_golden_scbert_hidden_states(golden, model, tokens):
    few = tokens[: len(golden["emb_in"])]
    ours = model.hidden_states(few)
    assert_close(ours[0], flat(golden["emb_in"]))
    for k in range(model.transformer.n_layers):
        assert_close(ours[k + 1], flat(golden[f"hidden_layer{k}"]))
    assert f"hidden_layer{model.transformer.n_layers}" not in golden
    assert_close(ours[-1], flat(golden["encodings"]))


@pytest.mark.parametrize(
    ("pooling", "recorded"),
    [("last", "enc_last_token"), ("mean", "enc_mean_all"), ("mean_genes", "enc_mean_genes"), ("max", "enc_max_all")],
)
def test_golden_scbert_cell_embeddings(golden, model, tokens, pooling, recorded):
    assert_close(model.embed_cells(tokens, pooling), golden[recorded])


def test_golden_scbert_embeddings_from_counts(golden, model):
    cells = anndata.read_h5ad(case("scbert") / "cells.h5ad")
    scfm.tl.embed(cells, model, key_added="x", gene_matching="published", progress=False)
    assert_close(cells.obsm["X_x"], golden["enc_mean_all"])


def test_golden_scbert_levels_of_the_pretrained_model(golden, model, tokens):
    few = tokens[: len(golden["mlm_logits"])]
    assert_close(model.heads["level"](few), flat(golden["mlm_logits"]))


def attention_of(block, x: torch.Tensor, n_cells: int):
    """Queries, keys and values of the states (T, d) that a layer reads, and the segments of equally long cells."""
    spec = block.spec
    segments = to_batch(tokens_from(np.zeros((n_cells, len(x) // n_cells)))).segments
    q, k, v = block.qkv(block.norm1(x)).unflatten(-1, (3, spec.n_heads, spec.head_dim)).unbind(1)
    return q, k, v, segments


def kernel(block, q: torch.Tensor, k: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The authors' features (T, features) of queries and keys, by head, and the maximum that the keys share."""
    ratio = block.spec.n_features**-0.5
    queries = [favor_features(x, block.projection, per_row=True)[0] for x in q.unbind(1)]
    keys = [favor_features(x, block.projection, per_row=False) for x in k.unbind(1)]
    peak = torch.stack([own for _, own in keys]).amax()
    scaled = [features * (own - peak).exp() for features, own in keys]
    return [ratio * (x + FAVOR_EPS) for x in queries], [ratio * (x + FAVOR_EPS) for x in scaled], peak


def test_golden_scbert_attention_of_one_cell(golden, model):
    block = model.transformer.encoder.layers[0]
    with torch.inference_mode():
        q, k, v, segments = attention_of(block, torch.as_tensor(golden["emb_in"][0]), 1)
        queries, keys, _ = kernel(block, q, k)
        out = block.out(performer_attention(q, k, v, segments, segments, block.projection).flatten(1))
    for ours, name in ((queries, "q_features"), (keys, "k_features")):
        recorded = golden[f"cell0_layer0_{name}_head0_pos0to5"]
        assert_close(ours[0][: len(recorded)], recorded)
    assert_close(out, golden["cell0_layer0_attn_out"])


# a batch as the authors' code sees it: one key maximum for all of its cells


def in_one_batch(model, levels: np.ndarray):
    """Final states (n, N, d) and the key maxima (layers,) of cells that share them."""
    n, length = levels.shape
    maxima = []
    with torch.inference_mode():
        x = model.transformer.embed_input(to_batch(tokens_from(levels)))
        for block in model.transformer.encoder.layers:
            q, k, v, segments = attention_of(block, x, n)
            peak = kernel(block, q, k)[2]
            maxima.append(float(peak))
            mixed = performer_attention(q, k, v, segments, segments, block.projection, peak.expand(n))
            x = x + block.out(mixed.flatten(1))
            x = x + block.down(F.gelu(block.up(block.norm2(x))))
        final = model.transformer.finish(x)
    return final.reshape(n, length, -1), maxima


def test_golden_scbert_key_maximum_of_each_cell(golden, model):
    for levels, recorded in zip(golden["tokens"], golden["key_stabiliser_single"], strict=True):
        assert_close(in_one_batch(model, levels[None])[1], recorded)


def test_golden_scbert_official_batches(golden, model):
    n = len(golden["encodings_batch_last_token"])
    states, maxima = in_one_batch(model, golden["tokens"][:n])
    assert_close(maxima, golden["key_stabiliser_batch"])
    assert_close(states[:, -1], golden["encodings_batch_last_token"])
    with torch.inference_mode():
        assert_close(model.transformer.heads["level"](states), golden["mlm_logits_batch"])
    states, maxima = in_one_batch(model, golden["tokens"])
    assert_close(maxima, golden["key_stabiliser_batch_of_all"])
    assert_close(states.mean(dim=1), golden["enc_mean_all_batch_of_all"])


def test_golden_scbert_masks(golden, model):
    levels = golden["tokens"][golden["mlm_cells"]]
    mask = model.config.term_specs["value"].rows - 1
    may = (levels != 0) & (levels != mask)
    order = np.argsort(-np.where(may, golden["mlm_rand_select"], -1e9), axis=1, kind="stable")
    labels = np.full_like(levels, mask)
    for row, n in enumerate(may.sum(axis=1)):
        chosen = order[row, : int(np.ceil(np.float32(n) * np.float32(MASK_SHARE)))]
        labels[row, chosen] = levels[row, chosen]
    np.testing.assert_array_equal(labels, golden["mlm_labels"])
    replaced = (labels != mask) & (golden["mlm_rand_replace"] < REPLACED_SHARE)
    np.testing.assert_array_equal(np.where(replaced, mask, levels), golden["mlm_masked_input"])


def test_golden_scbert_masked_objective_of_an_official_batch(golden, model):
    states, _ = in_one_batch(model, golden["mlm_masked_input"])
    with torch.inference_mode():
        logits = model.transformer.heads["level"](states)
    assert_close(logits, golden["mlm_batch_logits"])
    labels = torch.as_tensor(golden["mlm_labels"])
    mask = logits.shape[-1] - 1
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=mask)
    assert_close(loss, golden["mlm_loss"])
    predicted = logits[..., 1:mask].argmax(-1) + 1
    np.testing.assert_array_equal(predicted, golden["mlm_predicted"])
    asked = labels != mask
    per_cell = ((predicted == labels) & asked).sum(1) / asked.sum(1)
    assert_close(per_cell.mean(), golden["mlm_accuracy"])


def test_golden_scbert_official_attention_sums(golden, model):
    # the authors evaluate the attention once more, on the states behind it
    for levels, recorded in zip(golden["tokens"], golden["attn_sum_fp32"], strict=False):
        total = torch.zeros(len(levels))
        with torch.inference_mode():
            x = model.transformer.embed_input(to_batch(tokens_from(levels[None])))
            for block in model.transformer.encoder.layers:
                q, k, v, segments = attention_of(block, x, 1)
                x = x + block.out(performer_attention(q, k, v, segments, segments, block.projection).flatten(1))
                q, k, _, _ = attention_of(block, x, 1)
                for queries, keys in zip(*kernel(block, q, k)[:2], strict=True):
                    weights = queries @ keys.T
                    total += (weights / weights.sum(-1, keepdim=True)).abs().sum(0)
                x = x + block.down(F.gelu(block.up(block.norm2(x))))
        # the sums are 1 together, so the scale of one is tiny
        np.testing.assert_allclose(total / total.sum(), recorded, rtol=1e-5)


# the fine-tuned model


@pytest.fixture
def annotator(load):
    return load("finetuned")


def test_golden_scbert_classifier(golden, annotator, tokens):
    logits = annotator.heads["cell_classifier"](tokens)
    assert_close(logits, golden["ft_logits"])
    np.testing.assert_array_equal(logits.argmax(axis=1), golden["predict_idx"])
    assert_close(torch.as_tensor(logits).softmax(-1), golden["ft_prob"])
    assert_close(annotator.embed_cells(tokens, "last"), golden["ft_enc_last_token"])


def test_golden_scbert_layers_of_the_classifier(golden, annotator, tokens):
    head = annotator.transformer.heads["cell_classifier"]
    with torch.inference_mode():
        states = torch.as_tensor(annotator.hidden_states(tokens, [-1])[-1])
        x = head.token_mlp(states).reshape(golden["ft_head_conv_relu"].shape)
        assert_close(x, golden["ft_head_conv_relu"])
        for linear, name in zip(head.mlp.linears, ("ft_head_fc1_relu", "ft_head_fc2_relu"), strict=False):
            x = linear(x).relu()
            assert_close(x, golden[name])


def test_golden_scbert_classifier_on_an_official_batch(golden, annotator):
    n = len(golden["ft_logits_batch_of_3"])
    states, _ = in_one_batch(annotator, golden["tokens"][:n])
    with torch.inference_mode():
        logits = annotator.transformer.heads["cell_classifier"](states.flatten(0, 1))
    assert_close(logits, golden["ft_logits_batch_of_3"])
    assert_close(F.cross_entropy(logits, torch.as_tensor(golden["label_idx"][:n])), golden["ft_loss_first3"])


def test_golden_scbert_names_of_classes_and_of_what_is_none_of_them(golden, annotator, tokens):
    head = annotator.heads["cell_classifier"]
    cells = anndata.read_h5ad(case("scbert") / "cells.h5ad").obs
    np.testing.assert_array_equal(np.array(head.labels)[golden["label_idx"]], cells["celltype"])
    np.testing.assert_array_equal(head.classify(tokens).names, golden["predict_names"])
    for name in (n for n in golden if n.startswith("predict_names_novel_thres_")):
        threshold = float(name.rsplit("_", 1)[1])
        named = head.classify(tokens, threshold)
        np.testing.assert_array_equal(named.names, golden[name])
        assert_close(named.probability, golden["ft_prob"].max(axis=1))


# files


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_golden_scbert_own_layout_gives_identical_results(load, tokens, kind, tmp_path):
    model = load(kind)
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    np.testing.assert_array_equal(again.embed_cells(tokens), model.embed_cells(tokens))
    for name, head in model.heads.items():
        np.testing.assert_array_equal(again.heads[name](tokens), head(tokens))
        assert again.heads[name].labels == head.labels
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    for specs in ("term_specs", "head_specs", "readout_specs", "stack_spec"):
        assert getattr(again.config, specs) == getattr(model.config, specs)


def test_golden_scbert_gene_vectors_are_gene2vec(model):
    vectors = np.load(next((case("scbert") / "checkpoint").glob("gene2vec*.npy")))
    genes = model.embed_genes(kind="input")
    np.testing.assert_array_equal(genes.vectors[:-1], vectors.astype(np.float32))
    assert not genes.vectors[-1].any()


def test_golden_scbert_classifier_needs_every_gene(annotator, tokens):
    shorter = replace(
        tokens[:1],
        ids=tokens.ids[: len(tokens.ids) // len(tokens) - 1],
        values=tokens.values[: tokens.lengths[0] - 1],
        offsets=np.array([0, tokens.lengths[0] - 1]),
    )
    with pytest.raises(scfm.errors.ConfigError, match=f"exactly {tokens.lengths[0]} tokens"):
        annotator.heads["cell_classifier"](shorter)
    assert np.isfinite(annotator.embed_cells(shorter)).all()
