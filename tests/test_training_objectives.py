"""Objectives give the authors' masks and losses, learn nothing from absence, and count every target once."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of, unpad
from model_cases import FAMILY_CASES
from training_cases import cells, symbols

import scfm
from scfm.errors import ConfigError
from scfm.models._run import to_batch
from scfm.tokenizers import Tokens
from scfm.training import Corpus
from scfm.training._architectures import add_heads, new_model, reset
from scfm.training._cells import LiveCells
from scfm.training._config import ModelConfig
from scfm.training._data import Batches
from scfm.training._draws import CellDraws
from scfm.training._encode import Encoder
from scfm.training._prepare import begin, fit_reference
from scfm.training._sampler import BatchPlan, Sampling
from scfm.training.objectives import (
    OBJECTIVES,
    Contrastive,
    Expressed,
    Generative,
    MaskedGenes,
    MaskedLevels,
    MaskedValues,
    NextWord,
    Objective,
    ReadDepth,
)
from scfm.training.objectives._base import cell_of, tensors
from scfm.training.objectives.contrastive import thinned
from scfm.training.objectives.next_word import answers, sequences


@pytest.fixture
def load(tmp_path):
    return lambda family, *options: scfm.models.load(FAMILY_CASES[family](tmp_path / family / "checkpoint", *options))


def losses(objective: Objective, model, batch, **targets) -> dict[str, float]:
    with torch.no_grad():
        sums = objective.losses(model.transformer.eval(), batch, tensors(**targets))
    return {name: float(s) for name, s in sums.items()}


# the authors' numbers


@pytest.mark.parametrize("version", [1, 2])
def test_golden_loss_of_masked_genes_of_geneformer(load, version):
    golden, model = arrays(f"geneformer_v{version}"), load("geneformer", version)
    lengths = golden["mlm_attention_mask"].sum(axis=1)
    labels = unpad(golden["mlm_labels"], lengths)
    rows = np.flatnonzero(labels != -100)
    batch = to_batch(tokens_of(golden["mlm_input_ids"], lengths))
    found = losses(MaskedGenes(), model, batch, rows=rows, labels=labels[rows])
    assert_close(found["genes"] / len(rows), golden["mlm_loss"])


def test_golden_loss_of_masked_genes_of_nicheformer(load):
    golden, model = arrays("nicheformer"), load("nicheformer")
    lengths = (~golden["mlm_key_padding_mask"]).sum(axis=1)
    labels = unpad(golden["mlm_targets"], lengths)
    rows = np.flatnonzero(labels != -100)
    batch = to_batch(tokens_of(golden["mlm_masked_indices"], lengths))
    found = losses(MaskedGenes(specials=True), model, batch, rows=rows, labels=labels[rows])
    assert_close(found["genes"] / len(rows), golden["mlm_loss"])


def test_golden_masks_of_scbert(load):
    golden, model = arrays("scbert"), load("scbert")
    levels = golden["tokens"][golden["mlm_cells"]]
    n, length = levels.shape
    flat, offsets = levels.ravel(), np.arange(n + 1) * length
    may = (flat > 0) & (np.tile(np.arange(length), n) < length - 1)
    select, replaced = (golden[f"mlm_rand_{x}"].ravel() for x in ("select", "replace"))
    asked, hidden = MaskedLevels().hide(may, offsets, select, replaced)
    mask = model.config.term_specs["value"].rows - 1
    np.testing.assert_array_equal(np.where(asked, flat, mask).reshape(n, length), golden["mlm_labels"])
    np.testing.assert_array_equal(np.where(hidden, mask, flat).reshape(n, length), golden["mlm_masked_input"])


def test_golden_losses_of_masked_values_of_scgpt():
    golden, model = arrays("scgpt"), scfm.models.load(case("scgpt") / "checkpoint" / "pretrained")
    lengths = (golden["fwd.gene"] != model.vocabulary.specials["pad"]).sum(axis=1)
    tokens = tokens_of(golden["fwd.gene"], lengths, golden["fwd.expr"])
    values = unpad(golden["mlm.masked_expr"], lengths)
    rows = np.flatnonzero(values == -1)
    batch = to_batch(replace(tokens, values=values))
    asked = {"rows": rows, "labels": tokens.values[rows], "genes": tokens.ids[rows], "of_cell": cell_of(tokens)[rows]}
    found = losses(MaskedValues(), model, batch, **asked)
    assert_close(found["values"] / len(rows), golden["mlm.loss_mse"])
    assert_close(found["from_cell"] / len(rows), golden["mlm.loss_mvc"])


def test_golden_losses_of_the_generative_pass_of_scgpt():
    golden, model = arrays("scgpt"), scfm.models.load(case("scgpt") / "checkpoint" / "pretrained")
    pad = model.vocabulary.specials["pad"]

    def read(ids, values):
        return tokens_of(golden[ids], (golden[ids] != pad).sum(axis=1), golden[values])

    known, questions = read("gen.pcpt_gene", "gen.pcpt_expr"), read("gen.gen_gene", "gen.gen_expr_target")
    # both parts side by side, as a tokenizer gives them, for the objective to split
    order = np.lexsort(
        (np.repeat([0, 1], [known.n_tokens, questions.n_tokens]), np.append(cell_of(known), cell_of(questions)))
    )
    whole = Tokens(
        ids=np.append(known.ids, questions.ids)[order],
        offsets=known.offsets + questions.offsets,
        values=np.append(known.values, questions.values)[order],
    )
    asked = np.repeat([False, True], [known.n_tokens, questions.n_tokens])[order]
    example = Generative(prompt_from=0).split(cell_batch(model, whole), whole, asked)
    with torch.no_grad():
        sums = Generative().losses(model.transformer, example.batch, example.targets)
    means = [float(sums[t]) / example.counts[t] for t in ("values", "from_cell", "from_prompt")]
    assert_close(means, golden["gen.losses_mse_mvc_gen"])
    early = Generative(prompt_from=5).split(cell_batch(model, whole), whole, asked)
    assert early.counts["from_prompt"] == 0
    assert "from_prompt" not in Generative().losses(model.transformer, early.batch, early.targets)


def cell_batch(model, tokens, keep="tokens", **options):
    from scfm.training.objectives import CellBatch

    n = len(tokens)
    return CellBatch(
        kept=tokens,
        cells=np.arange(n),
        files=np.zeros(n, np.int32),
        draws=CellDraws(0, 0, np.arange(n)),
        encoder=Encoder(model.tokenizer, keep),
        measured=model.vocabulary.is_gene[None],
        channels=frozenset(model.config.cell_channels) | ({"flag"} if "flag" in model.config.term_specs else set()),
        **options,
    )


def test_golden_loss_and_gradient_of_expressed_or_not_of_uce(load):
    golden, model = arrays("uce"), load("uce")
    place = {int(row): i for i, row in enumerate(model.tokenizer.rows)}
    ids_of = np.vectorize(place.__getitem__, otypes=[np.int32])
    tokens = tokens_of(ids_of(golden["pt_tokens"]), golden["pt_length"])
    genes = ids_of(golden["hf_gene_token_id"][golden["pt_query_cols"]])
    n, k = genes.shape
    targets = tensors(
        genes=genes.ravel().astype(np.int64),
        labels=golden["pt_labels"].ravel().astype(np.float32),
        of_cell=np.repeat(np.arange(n), k),
    )
    loss = Expressed().losses(model.transformer.eval(), to_batch(tokens), targets)["expressed"] / (n * k)
    assert_close(loss.detach(), golden["pt_loss"])
    loss.backward()
    assert_close(model.transformer.output.linears[-1].bias.grad, golden["pt_grad:decoder.3.bias"])


def test_golden_loss_of_the_next_words_of_scmulan(load):
    golden, model = arrays("scmulan"), load("scmulan")
    lengths, given = golden["loss_xlen"], golden["loss_x_prefix_len"] + 1
    tokens = tokens_of(golden["loss_idx"], lengths, golden["loss_x_expr"])
    end = model.vocabulary.specials["<E>"]
    example = sequences(cell_batch(model, tokens), tokens, given, end)
    for i, (first, length) in enumerate(zip(given - 1, lengths, strict=True)):
        cell = tokens[i]
        later, level = answers(
            torch.as_tensor(cell.ids).long(), torch.as_tensor(cell.values), first, end, golden["loss_targets"].shape[-1]
        )
        np.testing.assert_array_equal(later, golden["loss_targets"][i, first:length] != 0)
        np.testing.assert_array_equal(level, golden["loss_y_expr"][i, first:length] * later.numpy())
    found = losses(NextWord(), model, example.batch, **{k: v.numpy() for k, v in example.targets.items()})
    words, levels = (found[t] / example.counts[t] for t in ("words", "levels"))
    assert_close(words, golden["loss_cls"])
    assert_close(levels, golden["loss_exp"])
    assert_close(words + NextWord().terms["levels"] * levels, golden["loss_total"])


def test_golden_target_of_read_depth_recovery_of_scfoundation(load):
    golden, model = arrays("scfoundation"), load("scfoundation")
    rows, hidden, target = golden["mae_input"], golden["mae_mask"], golden["mae_target"]
    seen = (target > 0) & ~hidden
    kept = seen | hidden
    for i in range(len(rows)):
        tokens = Tokens(
            ids=np.flatnonzero(kept[i]).astype(np.int32),
            offsets=np.array([0, kept[i].sum()]),
            values=np.where(hidden[i], np.nan, rows[i])[kept[i]].astype(np.float32),
            channels={"keys": seen[i][kept[i]]},
        )
        genes = np.flatnonzero(hidden[i])
        batch = to_batch(tokens)
        found = losses(
            ReadDepth(), model, batch, genes=genes, of_cell=np.zeros(len(genes), int), labels=target[i, genes]
        )
        with torch.no_grad():
            predicted = model.transformer.head("expression", batch, genes=torch.as_tensor(genes))[0, :, 0].numpy()
        assert_close(found["values"], np.square(predicted - target[i, genes]).sum())


# every family learns by its own objective


def opened(name: str, load) -> tuple:
    """A family's small model, its cells, and the context they need."""
    family = name.split("-")[0]
    model = load(family) if family != "scgpt" else scfm.models.load(case("scgpt") / "checkpoint" / "pretrained")
    adata = ad.read_h5ad(case("geneformer_v1" if family == "geneformer" else family) / "cells.h5ad")
    context = {"species": "human", "assay": "10x 3' v3", "modality": "dissociated"} if family == "nicheformer" else {}
    return model, adata, context


OF_FAMILY = {
    "geneformer": MaskedGenes(share=0.3),
    "nicheformer": MaskedGenes(share=0.3, specials=True, random_from=10),
    "scbert": MaskedLevels(share=0.3),
    "scgpt-values": MaskedValues(),
    "scgpt-generative": Generative(prompt_from=3),
    "uce": Expressed(n_genes=10),
    "scmulan": NextWord(),
    "scfoundation": ReadDepth(zeros=0.1),
    "scgpt-contrastive": Contrastive(),
    "geneformer-altered-contrastive": Contrastive(rates=0.5, panels=0.5),
}


def batches(model, adata, objective, *, tokens=2000, reference=True, **options) -> Batches:
    objective.check(model)
    add_heads(model, objective.heads(model))
    live = LiveCells(Corpus.open(adata, **options), Encoder(model.tokenizer, objective.keep))
    usable = np.flatnonzero(live.index.length > 0)
    plan = BatchPlan(live.index, usable, Sampling(tokens), objective.cost(live.index.length, model))
    channels = frozenset(model.config.cell_channels)
    made = Batches(live, plan, objective, plan.n_batches(0), channels)
    return replace(made, reference=fit_reference(made, len(model.vocabulary))) if reference else made


@pytest.mark.parametrize("name", OF_FAMILY)
def test_every_family_learns_by_its_objective(load, name):
    model, adata, context = opened(name, load)
    objective = OF_FAMILY[name]
    train = batches(model, adata, objective, context=context)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.transformer.parameters(), lr=3e-3)
    examples = [train.make(train.plan.cells, 0, step=5)]
    history = []
    for _ in range(12):
        total = torch.zeros(())
        for example in examples:
            sums = objective.losses(model.transformer.train(), example.batch, example.targets)
            assert sums.keys() == {t for t in objective.terms if example.counts[t]}
            total = total + sum(objective.terms[t] * s / example.counts[t] for t, s in sums.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert np.isfinite(history).all()
    assert history[-1] < history[0]
    assert all(np.isfinite(v) and v > 0 for v in examples[0].reference.values())


@pytest.mark.parametrize("name", OF_FAMILY)
def test_an_example_does_not_depend_on_batch_mates(load, name):
    model, adata, context = opened(name, load)
    train = batches(model, adata, OF_FAMILY[name], context=context, reference=False)
    chosen = train.plan.cells[:6]
    together = train.make(chosen, 3)
    alone = [train.make(chosen[i : i + 1], 3) for i in range(len(chosen))]
    if name.endswith("contrastive"):  # views of a cell stand apart in a batch
        np.testing.assert_array_equal(
            together.batch.channels["ids"][: together.batch.segments.bounds[len(chosen)]],
            np.concatenate([a.batch.channels["ids"][: a.batch.segments.bounds[1]] for a in alone]),
        )
        return
    for channel in together.batch.channels:
        joined = torch.cat([a.batch.channels[channel] for a in alone])
        torch.testing.assert_close(together.batch.channels[channel], joined, rtol=0, atol=0, equal_nan=True)
    labels = {"labels", "genes"} & together.targets.keys()
    for target in labels:
        assert torch.equal(together.targets[target], torch.cat([a.targets[target] for a in alone]))
    for term in OF_FAMILY[name].terms:
        assert together.counts[term] == sum(a.counts[term] for a in alone)


# nothing is learnt from what was not measured


def fresh(kind: str, adata, **sizes):
    return new_model(
        ModelConfig(kind=kind, n_layers=1, width=16, n_heads=2, max_length=80, **sizes), Corpus.open(adata), "new"
    )


def test_genes_that_a_file_does_not_measure_are_never_asked_about():
    names = symbols()
    first, second = cells(20, 1, names[:40]), cells(20, 2, names[20:])
    model = fresh("bins", [first, second])
    train = batches(model, [first, second], Expressed(n_genes=20))
    measured = train.cells.index.measured
    example = train.make(train.plan.cells, 0)
    files = train.cells.index.file[train.plan.cells][example.targets["of_cell"]]
    assert measured[files, example.targets["genes"]].all()
    assert not measured.all(axis=0)[model.vocabulary.is_gene].all()


def test_a_hidden_gene_is_not_in_the_input():
    adata = cells(10)
    model = fresh("bins", adata)
    train = batches(model, adata, Expressed(n_genes=30, share=0.5))
    example = train.make(train.plan.cells, 0)
    yes = example.targets["labels"] == 1
    for i in range(len(train.plan.cells)):
        a, b = example.batch.segments.bounds[i : i + 2]
        hidden = example.targets["genes"][yes & (example.targets["of_cell"] == i)]
        assert not np.isin(hidden, example.batch.channels["ids"][a:b]).any()


def test_thinned_counts_stay_whole_and_keep_their_share():
    adata = cells(200)
    live = LiveCells(Corpus.open(adata), Encoder(fresh("ranks", adata).tokenizer, "counts"))
    kept = live.read(np.arange(200))
    less = thinned(kept, np.full(200, 0.25), CellDraws(0, 0, np.arange(200)), 1)
    assert (less.values > 0).all() and np.array_equal(less.values, np.rint(less.values))
    assert abs(less.values.sum() / kept.values.sum() - 0.25) < 0.02
    np.testing.assert_allclose(less.per_cell["total"], np.add.reduceat(less.values, less.offsets[:-1]))


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("words", NextWord()),
        ("depth", ReadDepth(deep=10, zeros=0.1)),
        ("bins", Generative(prompt_from=0)),
        ("bins", MaskedValues()),
        ("levels", MaskedLevels()),
        ("levels", Expressed(n_genes=5)),
        ("ranks", Contrastive()),
    ],
)
def test_a_new_model_of_every_kind_gets_the_heads_it_needs_and_learns(kind, objective):
    adata = cells(30)
    torch.manual_seed(0)
    model = fresh(kind, adata)
    train = batches(model, adata, objective, reference=False)
    example = train.make(train.plan.cells, 0)
    optimizer = torch.optim.Adam(model.transformer.parameters(), lr=1e-2)
    history = []
    for _ in range(8):
        sums = objective.losses(model.transformer.train(), example.batch, example.targets)
        loss = sum(objective.terms[t] * s / example.counts[t] for t, s in sums.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.isfinite(history).all() and history[-1] < history[0]


# the best guess without input


def test_a_reference_that_knows_the_frequencies_is_beaten_by_no_constant_guess():
    adata = cells(200)
    model = fresh("ranks", adata)
    train = batches(model, adata, MaskedGenes(share=0.5))
    example = train.make(train.plan.cells, 0)
    labels = example.targets["labels"].numpy()
    share = np.bincount(labels, minlength=len(model.vocabulary)) / len(labels)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    score = train.reference.score(example)["genes"] / len(labels)
    assert entropy <= score < entropy * 1.05
    assert score < np.log(len(model.vocabulary))


def said_at_first(model, objective, train) -> dict[str, float]:
    example = train.make(train.plan.cells, -1)
    found = losses(objective, model, example.batch, **{k: v.numpy() for k, v in example.targets.items()})
    return {name: total / example.counts[name] for name, total in found.items()}


@pytest.mark.parametrize("kind_and_objective", [("ranks", MaskedGenes(share=0.5)), ("words", NextWord())])
def test_a_new_head_with_a_row_per_word_begins_at_the_reference(kind_and_objective):
    kind, objective = kind_and_objective
    adata = cells(100)
    torch.manual_seed(0)
    model = fresh(kind, adata)
    train = batches(model, adata, objective)
    example = train.make(train.plan.cells, -1)
    reference = {name: example.reference[name] / example.counts[name] for name in objective.terms}
    before = said_at_first(model, objective, train)
    begin(model.transformer, objective, train.reference, [*model.transformer.heads])
    after = said_at_first(model, objective, train)
    for name in objective.terms:
        assert abs(after[name] - reference[name]) < 0.2 * (before[name] - reference[name])


@pytest.mark.parametrize("name", OF_FAMILY)
def test_an_architecture_of_every_family_can_begin_anew(load, name):
    model, adata, context = opened(name, load)
    model = reset(model, "anew")
    train = batches(model, adata, OF_FAMILY[name], context=context)
    begin(model.transformer, train.objective, train.reference, [*model.transformer.heads])
    assert np.isfinite([*said_at_first(model, train.objective, train).values()]).all()


def best_constant(objective, labels: np.ndarray) -> float:
    """Loss of the one answer that is best for all targets together."""
    if isinstance(objective, MaskedLevels):
        share = np.bincount(labels) / len(labels)
        return float(-(share[share > 0] * np.log(share[share > 0])).sum())
    return float(labels.var())


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("levels", MaskedLevels(share=0.5)),
        ("bins", MaskedValues(cell_head=None)),
        ("depth", ReadDepth(deep=10, zeros=0.1)),
    ],
)
def test_a_new_head_that_knows_no_gene_begins_at_the_best_constant(kind, objective):
    adata = cells(100)
    torch.manual_seed(0)
    model = fresh(kind, adata)
    train = batches(model, adata, objective)
    (term,) = objective.terms
    constant = best_constant(objective, train.make(train.plan.cells, -1).targets["labels"].numpy())
    before = said_at_first(model, objective, train)[term]
    begin(model.transformer, objective, train.reference, [*model.transformer.heads])
    after = said_at_first(model, objective, train)[term]
    assert abs(after - constant) < 0.2 * (before - constant)


def test_heads_that_were_trained_before_are_left_as_they_are(load):
    model, adata, _ = opened("geneformer", load)
    train = batches(model, adata, MaskedGenes(share=0.5))
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    begin(model.transformer, train.objective, train.reference, ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.transformer.state_dict().items())
    begin(model.transformer, train.objective, train.reference, ["mlm"])
    assert not torch.equal(model.transformer.state_dict()["heads.mlm.bias"], before["heads.mlm.bias"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_beats_the_reference_and_with_shuffled_cells_it_does_not(seed):
    adata = cells(300)
    torch.manual_seed(seed)
    model = fresh("levels", adata)
    objective = MaskedLevels(share=0.3)
    train = batches(model, adata, objective, tokens=4000)
    optimizer = torch.optim.Adam(model.transformer.parameters(), lr=1e-2)
    for number in range(80):
        example = train[number]
        loss = objective.losses(model.transformer, example.batch, example.targets)["levels"] / example.counts["levels"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = train.make(train.plan.cells, -1)
    targets = {k: v.numpy() for k, v in held.targets.items()}
    reference = held.reference["levels"]
    assert losses(objective, model, held.batch, **targets)["levels"] < 0.9 * reference
    # every gene gets the levels of other cells, so what is seen says nothing of the cell
    values = held.batch.channels["values"].numpy().copy()
    ids = held.batch.channels["ids"].numpy()
    rng = np.random.default_rng(seed)
    for gene in np.unique(ids):
        at = np.flatnonzero((ids == gene) & (values <= 5))
        values[at] = values[rng.permutation(at)]
    mixed = replace(held.batch, channels={**held.batch.channels, "values": torch.as_tensor(values)})
    assert losses(objective, model, mixed, **targets)["levels"] > 0.97 * reference


# what makes no sense is refused with the reason


@pytest.mark.parametrize(
    ("family", "objective", "why"),
    [
        ("scbert", MaskedGenes(), "the vocabulary of .* has none; use masked_values or masked_levels"),
        ("scbert", MaskedValues(), "reads levels of a table: use masked_levels"),
        ("scbert", Expressed(), "genes without counts are tokens too"),
        ("geneformer", MaskedValues(), "reads no values: use masked_genes"),
        ("geneformer", NextWord(), "the answer would be part of the input"),
        ("geneformer", Generative(), "needs a model with tokens that ask"),
        ("scmulan", MaskedLevels(), "sees earlier tokens only; use next_word"),
        ("uce", ReadDepth(), "needs tokens that say the depth"),
        ("geneformer", MaskedGenes(share=2.0), "it is a share"),
        ("geneformer", Contrastive(lowest=0.9, highest=0.5), "lowest <= highest"),
        ("geneformer", Contrastive(rates=-1.0), "0 or above"),
        ("geneformer", Contrastive(panels=1.5), "between 0 and 1"),
        ("geneformer", Contrastive(leash=-1.0), "0 or above"),
    ],
)
def test_what_makes_no_sense_is_refused(load, family, objective, why):
    with pytest.raises(ConfigError, match=why):
        objective.check(load(family))


def test_every_objective_is_tried():
    assert {type(o) for o in OF_FAMILY.values()} == set(OBJECTIVES.values())
