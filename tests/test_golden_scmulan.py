"""scMulan gives the numbers of the authors' code on the recorded case."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of
from torch.nn import functional as F

import scfm
from scfm.models._run import to_batch
from scfm.models._writing import expression
from scfm.tokenizers import Tokens
from scfm.transformer import WordRule, Writer, pick, weigh, write

ANSWERS = 3
"""Words that the authors' annotation asks for: coarse type, type, end."""
EXPRESSION_WEIGHT = 200
GAMMA, TOP_K = 0.1, 5


@pytest.fixture(scope="module")
def golden():
    return arrays("scmulan")


@pytest.fixture(scope="module")
def model():
    return scfm.models.load(case("scmulan") / "checkpoint")


@pytest.fixture(scope="module")
def prompts(golden) -> Tokens:
    return tokens_of(golden["prompt_ids"], golden["prompt_len"], golden["prompt_expr"])


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return anndata.read_h5ad(case("scmulan") / "cells.h5ad")


def last(tokens: Tokens) -> np.ndarray:
    return tokens.offsets[1:] - 1


def padded(pieces: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    out = np.full_like(like, -1)
    for row, piece in zip(out, pieces, strict=True):
        row[: len(piece)] = piece
    return out


def test_golden_scmulan_hidden_states(golden, model, prompts):
    recorded = {name.split("_")[0] for name in golden if name.endswith("_ln_f")}
    for name in recorded:
        ours = model.hidden_states(prompts[int(name.removeprefix("cell"))])
        assert_close(ours[0], golden[f"{name}_emb"])
        for k in range(model.transformer.n_layers):
            assert_close(ours[k + 1], golden[f"{name}_layer{k}"])
        assert_close(ours[-1], golden[f"{name}_ln_f"])


def test_golden_scmulan_levels_that_words_would_have(golden, model, prompts):
    assert_close(model.heads["level"](prompts)[last(prompts)], golden["logits_exp_prompt"])


# annotation: the likeliest words behind the prompt


def greedy(model, prompts: Tokens, *, repeats: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Words and levels of each cell, its prompt included."""
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(prompts), ANSWERS)
        written = write(writer, WordRule(repeats=repeats), ANSWERS)
    ids, levels = [], []
    for cell, words, values, n in zip(prompts, written.words, written.levels, written.n_words, strict=True):
        ids.append(np.concatenate([cell.ids, words[:n]]))
        levels.append(np.concatenate([cell.values, values[:n]]))
    return ids, levels


def test_golden_scmulan_annotation_word_by_word(golden, model, prompts):
    ids, levels = greedy(model, prompts, repeats=True)
    np.testing.assert_array_equal(padded(ids, golden["gen_ids"]), golden["gen_ids"])
    np.testing.assert_array_equal(padded(levels, golden["gen_expr"]), golden["gen_expr"])
    np.testing.assert_array_equal([len(x) for x in ids], golden["gen_len"])
    np.testing.assert_array_equal([len(x) for x in ids] - golden["prompt_len"], golden["gen_steps"])
    kinds = scfm.models.kinds_of_words(model)
    types = {*kinds["cell_type"], *kinds["coarse_type"]}
    names = [[model.vocabulary.names[i] for i in x[-3:-1]] for x in ids]
    ours = np.array([[name if name in types else "Unclassified" for name in pair] for pair in names])
    np.testing.assert_array_equal(ours[:, 0], golden["coarse_type"])
    np.testing.assert_array_equal(ours[:, 1], golden["fine_type"])


def test_golden_scmulan_logits_of_every_step(golden, model, prompts):
    recorded = golden["step_logits_cls"]
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(prompts), ANSWERS)
        for step in range(ANSWERS):
            there = golden["gen_steps"] > step
            assert_close(writer.words()[there], recorded[there, step])
            assert np.isnan(recorded[~there, step]).all()
            at = np.minimum(golden["prompt_len"] + step, golden["gen_len"] - 1)[:, None]
            word, level = (np.take_along_axis(golden[name], at, axis=1)[:, 0] for name in ("gen_ids", "gen_expr"))
            np.testing.assert_array_equal(writer.levels(torch.as_tensor(word))[there], level[there])
            writer.append(torch.as_tensor(word), torch.as_tensor(level, dtype=torch.float32))


def test_golden_scmulan_annotation_with_cached_keys(golden, model, prompts):
    # the authors' second class bans the last word too, which is why it names other types
    ids, _levels = greedy(model, prompts, repeats=False)
    np.testing.assert_array_equal(padded(ids, golden["kv_gen_ids"]), golden["kv_gen_ids"])
    np.testing.assert_array_equal([len(x) for x in ids], golden["kv_gen_len"])
    difference = 0.0
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(prompts), ANSWERS)
        for step in range(ANSWERS - 1):
            at = np.minimum(golden["prompt_len"] + step, golden["gen_len"] - 1)[:, None]
            word, level = (np.take_along_axis(golden[name], at, axis=1)[:, 0] for name in ("gen_ids", "gen_expr"))
            writer.append(torch.as_tensor(word), torch.as_tensor(level, dtype=torch.float32))
            whole = tokens_of(golden["gen_ids"], golden["prompt_len"] + step + 1, golden["gen_expr"])
            there = golden["gen_steps"] > step
            full = model.heads["word"](whole[there])[last(whole[there])]
            difference = max(difference, np.abs(writer.words()[there].numpy() - full).max())
    assert_close(difference, golden["kv_vs_full_max_abs_diff"])


def test_golden_scmulan_cell_embeddings_where_the_authors_read_them(golden, model, cells, prompts):
    recorded = golden["cell_embedding"]
    assert_close(model.embed_cells(prompts, "official"), recorded)
    scfm.tl.embed(cells, model, key_added="x", pooling="official", gene_matching="published", progress=False)
    assert_close(cells.obsm["X_x"], recorded)


def test_golden_scmulan_embedding_is_at_the_coarse_type_of_every_cell(golden, model, prompts):
    ours = model.embed_cells(prompts)
    named = scfm.models.name_cells(model, prompts)["coarse_type"]
    first = np.array([model.vocabulary.names[i] for i in golden["gen_ids"][range(len(ours)), golden["prompt_len"]]])
    normal = (golden["gen_steps"] == ANSWERS) & np.isin(first, named.labels)
    assert normal.any()
    np.testing.assert_array_equal(named.names[normal], first[normal])
    assert_close(ours[normal], golden["cell_embedding"][normal])
    # where they stopped early the authors read another word
    assert (np.abs(ours - golden["cell_embedding"]).max(axis=1)[~normal] > 0.1).all()


def test_golden_scmulan_any_layer_of_continued_cells(golden, model, prompts):
    whole = tokens_of(golden["gen_ids"], golden["gen_len"], golden["gen_expr"])
    states = model.hidden_states(whole)
    for layer in range(model.transformer.n_layers):
        assert_close(model.embed_cells(prompts, "official", hidden_layer=layer), states[layer][whole.offsets[1:] - 3])


# generation


def sampled(golden, name: str, model, rule: WordRule, draws: np.ndarray | None, most: int):
    """Words, levels, and the probabilities of each step, from a recorded prompt."""
    ids, levels = golden[f"{name}_ids"], golden[f"{name}_expr"]
    prompt = Tokens(ids.astype(np.int32), np.array([0, len(ids)]), levels.astype(np.float32))
    end = model.config.writing_spec.end
    probabilities, words, values = [], [*ids], [*levels]
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(prompt), most)
        for step in range(most):
            probabilities.append(weigh(writer.words(), writer.banned(repeats=rule.repeats), rule, end))
            noise = None if draws is None else torch.as_tensor(draws[step : step + 1])
            word = pick(probabilities[-1], end, noise)
            level = writer.levels(word)
            writer.append(word, level)
            words.append(int(word))
            values.append(int(level))
            if words[-1] == end:
                break
    return words, values, torch.cat(probabilities)


def genes_and_end(model) -> torch.Tensor:
    allowed = torch.as_tensor(model.vocabulary.is_gene[: model.tokenizer.n_ids].copy())
    allowed[model.config.writing_spec.end] = True
    return allowed


@pytest.mark.parametrize("prompt", ["meta", "gene"])
@pytest.mark.parametrize("kind", ["full", "kv_top5"])
def test_golden_scmulan_sampled_cells(golden, model, prompt, kind):
    name = f"sample_{prompt}_{kind}"
    rule = WordRule(repeats=True, end_weight=GAMMA)
    if kind == "kv_top5":
        rule = WordRule(genes_and_end(model), top_k=TOP_K, end_weight=GAMMA)
    draws = golden[f"{name}_draws"]
    words, levels, probabilities = sampled(golden, f"sample_{prompt}_prompt", model, rule, draws, len(draws))
    np.testing.assert_array_equal(words, golden[f"{name}_ids"])
    np.testing.assert_array_equal(levels, golden[f"{name}_expr"])
    assert_close(probabilities, golden[f"{name}_probs"])


@pytest.mark.parametrize("prompt", ["meta", "gene"])
def test_golden_scmulan_likeliest_cells(golden, model, prompt):
    recorded = golden[f"greedy_{prompt}_ids"]
    words, levels, _ = sampled(golden, f"sample_{prompt}_prompt", model, WordRule(repeats=True), None, len(recorded))
    np.testing.assert_array_equal(words, recorded)
    np.testing.assert_array_equal(levels, golden[f"greedy_{prompt}_expr"])


@pytest.mark.parametrize("name", ["meta_full", "meta_kv_top5", "gene_full", "gene_kv_top5"])
def test_golden_scmulan_expression_of_sampled_cells(golden, model, name):
    ids, levels = golden[f"sample_{name}_ids"][:-1], golden[f"sample_{name}_expr"][:-1]
    start = int(np.flatnonzero(ids == model.config.writing_spec.start)[0])
    written = Tokens(ids.astype(np.int32), np.array([0, len(ids)]), levels.astype(np.float32))
    matrix, genes = expression(model, written[0])
    assert not np.isin(ids[:start], genes).any()
    assert_close(matrix.toarray()[0], golden[f"sample_{name}_expression_row"])


def test_golden_scmulan_prompts_of_generated_cells(golden, model):
    kinds = scfm.models.kinds_of_words(model)
    names = model.vocabulary.names
    for prompt in ("meta", "gene"):
        ids, levels = golden[f"sample_{prompt}_prompt_ids"], golden[f"sample_{prompt}_prompt_expr"]
        start = int(np.flatnonzero(ids == model.config.writing_spec.start)[0])
        words = {next(kind for kind, known in kinds.items() if names[i] in known): names[i] for i in ids[:start]}
        genes = {names[i]: int(level) for i, level in zip(ids[start + 1 :], levels[start + 1 :], strict=True)}
        shuffled = dict(reversed(words.items()))
        written = scfm.models.write_cells(model, 2, shuffled, genes)
        for cell, n in zip(written, written.per_cell["n_given"], strict=True):
            np.testing.assert_array_equal(cell.ids[:n], ids)
            np.testing.assert_array_equal(cell.values[:n], levels)


# the training objective


def test_golden_scmulan_training_objective(golden, model):
    ids, levels = golden["loss_idx"], golden["loss_x_expr"]
    n, length = ids.shape
    tokens = Tokens(ids.ravel().astype(np.int32), np.arange(n + 1) * length, levels.ravel().astype(np.float32))
    word, level = (model.heads[head](tokens).reshape(n, length, -1) for head in ("word", "level"))
    assert_close(word, golden["loss_logits_cls"])
    assert_close(level, golden["loss_logits_exp"])
    at = np.arange(length)
    used = (at >= golden["loss_x_prefix_len"][:, None]) & (at < golden["loss_xlen"][:, None])
    targets, wanted = golden["loss_targets"][used], golden["loss_y_expr"][used]
    of_words = word.shape[-1] * F.binary_cross_entropy_with_logits(
        torch.as_tensor(word[used]), torch.as_tensor(targets, dtype=torch.float32)
    )
    of_levels = np.square(level[used] - wanted)[targets != 0].mean()
    assert_close(of_words, golden["loss_cls"])
    assert_close(of_levels, golden["loss_exp"])
    assert_close(of_words + EXPRESSION_WEIGHT * of_levels, golden["loss_total"])


# files


def test_golden_scmulan_own_layout_gives_identical_results(model, prompts, tmp_path):
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    for pooling in model.config.readout_specs:
        np.testing.assert_array_equal(again.embed_cells(prompts, pooling), model.embed_cells(prompts, pooling))
    for name, head in model.heads.items():
        np.testing.assert_array_equal(again.heads[name](prompts), head(prompts))
    assert again.config.writing_spec == model.config.writing_spec
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    assert list(scfm.models.kinds_of_words(again)) == list(scfm.models.kinds_of_words(model))
    organ = scfm.models.kinds_of_words(model)["organ"][0]
    ours, theirs = (scfm.tl.generate(m, 3, organ=organ, progress=False) for m in (model, again))
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())


def test_golden_scmulan_gene_vectors(model, prompts):
    genes = model.embed_genes(kind="input")
    np.testing.assert_array_equal(genes.vectors, model.transformer.terms["gene"].table.detach())
    contextual = model.embed_genes(prompts)
    assert set(contextual.ids) == set(prompts.ids)
