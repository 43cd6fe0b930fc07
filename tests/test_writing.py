"""Cells that a model writes, and names that it gives: exact with kept keys, and each cell for itself."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from golden_cases import case
from model_cases import some_tokens

import scfm
from scfm.errors import CheckpointError, ConfigError, GeneMatchError
from scfm.models._run import to_batch
from scfm.models._writing import expression
from scfm.tokenizers import Tokens
from scfm.transformer import WordRule, Writer, pick, weigh, write


@pytest.fixture(scope="module")
def model():
    return scfm.models.load(case("scmulan") / "checkpoint")


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(case("scmulan") / "cells.h5ad")


@pytest.fixture(scope="module")
def prompts(model, cells):
    return model.tokenize(cells)


@pytest.fixture
def described(model):
    """A description in words of the model."""
    kinds = scfm.models.kinds_of_words(model)
    return {kind: kinds[kind][0] for kind in ("organ", "cell_type", "sex")}


def scbert(checkpoint: str):
    return scfm.models.load(case("scbert") / "checkpoint", checkpoint=checkpoint)


def with_word(tokens: Tokens, words: np.ndarray, levels: np.ndarray) -> Tokens:
    """The same cells with one token more."""
    at = tokens.offsets[1:]
    return Tokens(
        ids=np.insert(tokens.ids, at, words).astype(np.int32),
        offsets=tokens.offsets + np.arange(len(tokens.offsets)),
        values=np.insert(tokens.values, at, levels).astype(np.float32),
    )


def exponential(n: int, step: int, width: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng([n, step]).standard_exponential((n, width), dtype=np.float32))


# kept keys and values


def test_kept_keys_give_the_logits_of_whole_cells(model, prompts):
    n_words = model.tokenizer.n_ids
    whole = replace(prompts, per_cell={})
    assert len(set(whole.lengths)) < len(whole), "some cells of one length attend together"
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(whole), 6)
        for _ in range(6):
            for name, ours in (
                ("word", writer.words()),
                ("level", model.transformer.heads["level"](writer._final)),
            ):
                full = model.heads[name](whole)[whole.offsets[1:] - 1]
                np.testing.assert_allclose(ours, full, rtol=0, atol=1e-5 * np.abs(full).max())
            words, levels = rng.integers(0, n_words, len(whole)), rng.integers(0, 11, len(whole))
            writer.append(torch.as_tensor(words), torch.as_tensor(levels, dtype=torch.float32))
            whole = with_word(whole, words, levels)
        states = writer.states()
        full = model.hidden_states(whole, [-1])[-1]
        np.testing.assert_allclose(states[-1], full[whole.offsets[1:] - 1], rtol=0, atol=1e-5 * np.abs(full).max())


def test_kept_keys_give_the_same_samples_from_the_same_draws(model, prompts):
    few = replace(prompts[:6], per_cell={})
    width, most = model.tokenizer.n_ids, 25
    rule = WordRule(end_weight=0.1)
    with torch.inference_mode():
        kept = write(
            Writer(model.transformer, to_batch(few), most), rule, most, lambda step: exponential(len(few), step, width)
        )
    whole, end, spec = few, model.config.writing_spec.end, model.config.writing_spec
    ended = np.zeros(len(few), dtype=bool)
    for step in range(kept.words.shape[1]):
        at = whole.offsets[1:] - 1
        banned = torch.zeros(len(few), width, dtype=torch.bool)
        for i, cell in enumerate(whole):
            banned[i, cell.ids] = True
        logits = torch.as_tensor(model.heads["word"](whole)[at])
        words = pick(weigh(logits, banned, rule, end), end, exponential(len(few), step, width)).numpy()
        levels = model.heads["level"](whole)[at, words].round().clip(0, spec.highest)
        np.testing.assert_array_equal(kept.words[~ended, step], words[~ended])
        np.testing.assert_array_equal(kept.levels[~ended, step], levels[~ended])
        ended |= words == end
        whole = with_word(whole, words, levels)
    assert kept.words.shape[1] > 5


def test_gradients_flow_through_a_continued_embedding(model, prompts):
    batch = to_batch(replace(prompts[:4], per_cell={}))
    model.transformer.zero_grad()
    kept = model.transformer.embed(batch, "official")
    kept.square().sum().backward()
    ours = model.transformer.encoder.layers[0].qkv.weight.grad.clone()
    model.transformer.zero_grad()
    with torch.inference_mode():
        written = write(Writer(model.transformer, batch, 3), WordRule(repeats=True), 3)
    whole = [
        Tokens(
            np.concatenate([cell.ids, words[:n]]).astype(np.int32),
            np.array([0, cell.n_tokens + int(n)]),
            np.concatenate([cell.values, levels[:n]]),
        )
        for cell, words, levels, n in zip(prompts, written.words, written.levels, written.n_words, strict=False)
    ]
    total = sum(model.transformer.state(to_batch(cell))[-3].square().sum() for cell in whole)
    total.backward()
    full = model.transformer.encoder.layers[0].qkv.weight.grad
    model.transformer.zero_grad()
    np.testing.assert_allclose(ours, full, rtol=0, atol=1e-5 * full.abs().max())


def test_gene_vectors_come_from_the_same_pass(model, cells, prompts):
    copy = cells.copy()
    scfm.tl.embed(copy, model, key_added="x", progress=False)
    alone = model.embed_genes(prompts)
    columns = scfm.genes.match(cells.var, model.vocabulary).columns
    place = {int(i): row for row, i in enumerate(alone.ids)}
    rows = np.array([place.get(int(i), -1) for i in columns])
    scale = np.abs(alone.vectors).max()
    np.testing.assert_allclose(copy.varm["x"][rows >= 0], alone.vectors[rows[rows >= 0]], rtol=0, atol=1e-5 * scale)
    assert np.isnan(copy.varm["x"][rows < 0]).all()
    np.testing.assert_allclose(copy.obsm["X_x"], model.embed_cells(prompts), rtol=0, atol=1e-5)


def test_a_vector_in_place_of_the_first_word_stays_there(model, prompts):
    vectors = np.random.default_rng(0).standard_normal((len(prompts), model.transformer.width)).astype(np.float32)
    whole = replace(prompts, per_cell={"prompt": vectors})
    with torch.inference_mode():
        writer = Writer(model.transformer, to_batch(whole, per_cell=("prompt",)), 1)
        words, levels = np.full(len(whole), 5), np.full(len(whole), 2)
        writer.append(torch.as_tensor(words), torch.as_tensor(levels, dtype=torch.float32))
        kept = writer.words()
    longer = replace(with_word(whole, words, levels), per_cell={"prompt": vectors})
    full = model.heads["word"](longer)[longer.offsets[1:] - 1]
    np.testing.assert_allclose(kept, full, rtol=0, atol=1e-5 * np.abs(full).max())


def test_only_causal_models_keep_keys():
    other = scbert("panglao_pretrain")
    with pytest.raises(ConfigError, match="does not write cells word by word"):
        Writer(other.transformer, to_batch(some_tokens(other)), 3)


# generated cells


@pytest.mark.parametrize("batch_size", [1, 3, 8, 40])
def test_a_cell_depends_on_the_seed_and_its_number_alone(model, described, batch_size):
    all_cells = scfm.tl.generate(model, 11, **described, progress=False)
    for n in (1, 4, 11):
        few = scfm.tl.generate(model, n, **described, batch_size=batch_size, progress=False)
        np.testing.assert_array_equal(few.X.toarray(), all_cells.X.toarray()[:n])
        assert few.obs.index.tolist() == all_cells.obs.index[:n].tolist()
    again = scfm.tl.generate(model, 11, **described, seed=1, progress=False)
    assert (again.X != all_cells.X).nnz > 0
    assert len(np.unique(all_cells.X.toarray(), axis=0)) > 1


def test_a_cell_depends_on_its_own_words_alone(model):
    types = scfm.models.kinds_of_words(model)["cell_type"]
    each = [types[i % len(types)] for i in range(9)]
    mixed = scfm.tl.generate(model, 9, cell_type=each, progress=False)
    assert mixed.obs["cell_type"].tolist() == each
    for name in set(each):
        alone = scfm.tl.generate(model, 9, cell_type=name, progress=False)
        rows = np.flatnonzero(np.array(each) == name)
        np.testing.assert_array_equal(mixed.X[rows].toarray(), alone.X[rows].toarray())


def test_generated_cells_hold_levels_of_genes_and_what_was_asked(model, described, tmp_path):
    gene = model.vocabulary.names[int(np.flatnonzero(model.vocabulary.is_gene)[3])]
    cells = scfm.tl.generate(model, 12, genes={gene: 7}, **described, top_k=20, progress=False)
    levels = np.rint(cells.X.data * 10)
    np.testing.assert_allclose(cells.X.data * 10, levels, atol=1e-5)
    assert levels.min() >= 1
    assert levels.max() <= 10
    np.testing.assert_allclose(cells[:, gene].X.toarray(), 0.7, atol=1e-6)
    np.testing.assert_array_equal(cells.obs["n_genes"], np.diff(cells.X.indptr))
    for kind, word in described.items():
        assert set(cells.obs[kind]) == {word}
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert again.uns["scfm_generated"]["words"] == described
    assert again.uns["scfm_generated"]["top_k"] == 20


def test_a_gene_is_written_once_and_no_other_words_come(model, described):
    written = scfm.models.write_cells(model, 20, described)
    for cell, n in zip(written, written.per_cell["n_given"], strict=True):
        assert model.vocabulary.is_gene[cell.ids[n:]].all()
        assert len(set(cell.ids)) == len(cell.ids)
    assert expression(model, written)[0].shape == (20, int(model.vocabulary.is_gene[: model.tokenizer.n_ids].sum()))


def test_cells_that_are_cut_keep_their_last_gene(model, described):
    free = scfm.models.write_cells(model, 8, described, sampling=scfm.models.Sampling(end_weight=0.0))
    n_genes = int(model.vocabulary.is_gene[: model.tokenizer.n_ids].sum())
    n_given = free.per_cell["n_given"]
    assert (free.lengths - n_given == n_genes).all(), "without an end every gene comes"
    cut = scfm.models.write_cells(model, 8, described, sampling=scfm.models.Sampling(end_weight=0.0, longest=12))
    assert (cut.lengths == 12).all()
    assert not cut.per_cell["ended"].any()
    for ours, whole in zip(cut, free, strict=True):
        np.testing.assert_array_equal(ours.ids, whole.ids[:12])
        np.testing.assert_array_equal(ours.values, whole.values[:12])


def test_the_end_weight_makes_cells_longer(model, described):
    def genes_per_cell(weight: float) -> float:
        sampling = scfm.models.Sampling(end_weight=weight)
        return float(scfm.models.write_cells(model, 40, described, sampling=sampling).lengths.mean())

    assert genes_per_cell(0.01) > genes_per_cell(1.0)


WRONG = {
    "a misspelt word": (lambda k: {"organ": k["organ"][0] + "s"}, lambda k: f"did you mean {k['organ'][0]!r}"),
    "another case": (
        lambda k: {"cell_type": k["cell_type"][0].lower()},
        lambda k: f"did you mean {k['cell_type'][0]!r}",
    ),
    "one of several": (lambda k: {"organ": [k["organ"][0]] * 2 + ["?"]}, lambda k: "organ='\\?' is unknown"),
    "no word": (lambda k: {"organ": "0123456789"}, lambda k: f"valid: {k['organ'][0]!r}"),
    "a misspelt kind": (
        lambda k: {"organn": k["organ"][0]},
        lambda k: r"no kind of words 'organn' \(did you mean 'organ'",
    ),
    "a word of another kind": (lambda k: {"organ": k["sex"][-1]}, lambda k: "knows the word as sex, not as organ"),
    "too few words": (lambda k: {"organ": [k["organ"][0]] * 2}, lambda k: "holds 2 words for 3 cells"),
    "top_k": (lambda k: {"top_k": 0}, lambda k: "at least 1"),
    "batch_size": (lambda k: {"batch_size": 0}, lambda k: "at least 1"),
    "end_weight": (lambda k: {"end_weight": -1.0}, lambda k: "cannot be multiplied"),
    "seed": (lambda k: {"seed": -1}, lambda k: "must not be negative"),
    "no cells": (lambda k: {"n_cells": 0}, lambda k: "at least one cell"),
    "no room": (lambda k: {"organ": k["organ"][0], "max_length": 2}, lambda k: "nothing is left"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_written_is_an_error_that_helps(model, what):
    arguments, message = (part(scfm.models.kinds_of_words(model)) for part in WRONG[what])
    with pytest.raises(ConfigError, match=message):
        scfm.tl.generate(model, **{"n_cells": 3, "progress": False, **arguments})


def test_genes_that_cannot_be_given_are_an_error(model):
    gene = model.vocabulary.names[int(np.flatnonzero(model.vocabulary.is_gene)[0])]
    organ, background = scfm.models.kinds_of_words(model)["organ"][0], model.vocabulary.names[-1]
    for name in ("no such gene", organ, background):
        with pytest.raises(GeneMatchError, match=name):
            scfm.tl.generate(model, 2, genes={name: 3}, progress=False)
    for level in (11, -1, 0.5):
        with pytest.raises(ConfigError, match="whole number from 0 to 10"):
            scfm.tl.generate(model, 2, genes={gene: level}, progress=False)


def test_models_that_do_not_write_say_so():
    other = scbert("panglao_pretrain")
    with pytest.raises(ConfigError, match="does not write cells"):
        scfm.tl.generate(other, 2, progress=False)
    with pytest.raises(ConfigError, match="does not write cells"):
        scfm.models.kinds_of_words(other)


# names of cells


def test_names_do_not_depend_on_batch_mates(model, prompts):
    together = scfm.models.name_cells(model, prompts)
    for i in range(len(prompts)):
        alone = scfm.models.name_cells(model, prompts[i])
        for kind, found in alone.items():
            assert found.names[0] == together[kind].names[i]
            np.testing.assert_allclose(found.probabilities[0], together[kind].probabilities[i], rtol=0, atol=1e-5)


def test_every_question_is_answered_with_its_own_words(model, prompts):
    kinds = scfm.models.kinds_of_words(model)
    assert scfm.models.questions(model) == ("cell_type", "organ")
    for question, levels in (("cell_type", ["coarse_type", "cell_type"]), ("organ", ["organ", "region"])):
        answers = scfm.models.name_cells(model, prompts, question=question)
        assert [*answers] == levels
        for found in answers.values():
            assert set(found.labels) == {word for level in levels for word in kinds[level]}
            assert found.probabilities.shape == (len(prompts), len(found.labels))
            assert (found.probabilities.sum(axis=1) <= 1 + 1e-5).all()
            np.testing.assert_array_equal(found.probability, found.probabilities.max(axis=1))
            np.testing.assert_array_equal(found.names, np.array(found.labels)[found.probabilities.argmax(axis=1)])


def test_unsure_and_empty_cells_are_unassigned(model, cells):
    empty = cells.copy()
    empty.X = sp.diags((np.arange(empty.n_obs) != 3).astype(np.float32)).tocsr() @ empty.X
    tokens = model.tokenize(empty)
    plain = scfm.models.name_cells(model, tokens)["cell_type"]
    strict = scfm.models.name_cells(model, tokens, threshold=0.5, unassigned="?")["cell_type"]
    assert np.isnan(plain.probabilities[3]).all()
    assert plain.names[3] == "Unassigned"
    assert strict.names[3] == "?"
    sure = plain.probability >= 0.5
    assert 0 < sure.sum() < len(sure)
    np.testing.assert_array_equal(strict.names[sure], plain.names[sure])
    assert set(strict.names[~sure]) == {"?"}


def test_a_classifier_is_asked_in_the_same_way():
    annotator = scbert("finetune_best")
    tokens = annotator.tokenize(anndata.read_h5ad(case("scbert") / "cells.h5ad"))
    (head,) = (name for name in annotator.heads if annotator.heads[name].labels)
    (found,) = scfm.models.name_cells(annotator, tokens, threshold=0.5).values()
    expected = annotator.heads[head].classify(tokens, threshold=0.5)
    np.testing.assert_array_equal(found.names, expected.names)
    np.testing.assert_array_equal(found.probability, expected.probability)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert scfm.models.questions(annotator) == ("cell_type",)


def test_models_that_name_no_cells_say_so(model, prompts):
    other = scbert("panglao_pretrain")
    assert scfm.models.questions(other) == ()
    with pytest.raises(ConfigError, match="names no cells itself"):
        scfm.models.name_cells(other, some_tokens(other))
    with pytest.raises(ConfigError, match="cannot be asked 'colour'; it answers cell_type, organ"):
        scfm.models.name_cells(model, prompts, question="colour")


# genes that are words, and genes that only count


def test_an_overexpressed_gene_stands_at_its_place_at_the_highest_level(model, prompts):
    genes = np.flatnonzero(model.vocabulary.is_gene[: model.tokenizer.n_ids])[[2, 40]]
    changed = model.tokenizer.overexpress(prompts, genes)
    for before, after in zip(prompts, changed, strict=True):
        assert (np.diff(after.ids[:-1]) < 0).all()
        assert after.ids[-1] == before.ids[-1]
        assert set(after.ids) == {*before.ids, *genes}
        level = dict(zip(after.ids.tolist(), after.values.tolist(), strict=True))
        assert all(level[g] == before.values.max() for g in genes.tolist())
        old = dict(zip(before.ids.tolist(), before.values.tolist(), strict=True))
        assert all(level[g] == old[g] for g in set(old) - set(genes.tolist()))


def test_genes_that_are_no_words_are_neither_edited_nor_a_null(model, cells):
    word = model.vocabulary.names[int(np.flatnonzero(model.vocabulary.is_gene)[5])]
    many = scfm.tl.perturb(cells, [word], kind="overexpress", model=model, null=60, progress=False)
    assert int(many.genes["n_null"].iloc[0]) == 60
    background = next(name for name in cells.var_names if model.vocabulary.index.get(name, 0) >= model.tokenizer.n_ids)
    with pytest.raises(GeneMatchError, match=f"{background}: neither"):
        scfm.tl.perturb(cells, [background], model=model, null=3, progress=False)


# files


@pytest.fixture
def folder(tmp_path):
    from model_cases import scmulan_folder

    return scmulan_folder(tmp_path / "model")


def rewritten(folder, name: str, **changes):
    path = folder / name
    held = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in {**held, **changes}.items() if v is not None}, path)


def test_missing_companions_are_named_with_their_place(folder):
    for pattern, message in (("total_gene_list*", "GeneSymbolUniform"), ("meta_info.pt", "scMulan/utils")):
        next(folder.glob(pattern)).unlink()
        with pytest.raises(CheckpointError, match=message):
            scfm.models.load(folder)


def test_weights_alone_are_missing(folder):
    (folder / "ckpt_scMulan.pt").unlink()
    with pytest.raises(CheckpointError, match=r"the weight file is missing.*ckpt_scMulan.pt"):
        scfm.models.load(folder)


def test_without_the_table_of_aliases_only_the_published_rule_knows_less(folder, cells, caplog):
    whole = scfm.models.load(folder).tokenize(cells)
    next(folder.glob("GeneSymbolRef*")).unlink()
    fewer = scfm.models.load(folder)
    assert "no aliases are known" in caplog.text
    np.testing.assert_array_equal(fewer.tokenize(cells).ids, whole.ids)
    assert not fewer.vocabulary.rule.aliases


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("meta_info.pt", {"organ": None}, "lacks organ"),
        ("meta_info.pt", {"organ": {"Moon"}}, r"lacks 1 words \(Moon\)"),
        ("meta_info.pt", {"token_set": ["<E>", "<E>"]}, "1 words twice"),
        ("ckpt_scMulan.pt", {"model_args": {"bias": False}}, "lack n_head"),
        ("ckpt_scMulan.pt", {"model_args": {"bias": False, "n_head": 7}}, "7 heads, which do not divide"),
        ("ckpt_scMulan.pt", {"model_args": {"bias": False, "n_head": 4, "ele": 2}}, "ele=2"),
        ("ckpt_scMulan.pt", {"model_args": {"bias": True, "n_head": 4}}, r"lacks \d+ of the"),
        ("ckpt_scMulan.pt", {"model_args": None}, "holds model, but"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, name, changes, message):
    rewritten(folder, name, **changes)
    with pytest.raises(CheckpointError, match=message):
        scfm.models.load(folder)


def test_words_of_another_model_are_refused(folder):
    words = torch.load(folder / "meta_info.pt", weights_only=True)["token_set"]
    rewritten(folder, "meta_info.pt", token_set=[*words, "one more"])
    with pytest.raises(CheckpointError, match=rf"{len(words)} words, but meta_info\.pt lists {len(words) + 1}"):
        scfm.models.load(folder)


def test_another_list_of_genes_is_refused(folder):
    path = next(folder.glob("total_gene_list*"))
    path.write_text("\n".join(path.read_text().splitlines()[:50]))
    with pytest.raises(CheckpointError, match=r"lacks \d+ genes of the model"):
        scfm.models.load(folder)
    path.write_text("a web page")
    with pytest.raises(CheckpointError, match="no column 'Approved symbol'"):
        scfm.models.load(folder)
