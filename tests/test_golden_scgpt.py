"""scGPT gives the numbers of the authors' code on the recorded case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of, unpad
from torch.nn import functional as F

import scfm
from scfm.models._run import to_batch
from scfm.transformer import QueryOnlySpec

MASKED = -1.0


@pytest.fixture(scope="module")
def golden():
    return arrays("scgpt")


@pytest.fixture(scope="module")
def load():
    models = {kind: scfm.models.load(folder) for kind, folder in checkpoints().items()}
    return models.__getitem__


def checkpoints():
    return {path.name: path for path in sorted((case("scgpt") / "checkpoint").iterdir())}


def lengths_of(model, ids):
    return (ids != model.vocabulary.specials["pad"]).sum(axis=1)


def tokens_from(model, ids, values=None, per_cell=None, **channels):
    tokens = tokens_of(ids, lengths_of(model, ids), values, **channels)
    return replace(tokens, per_cell=per_cell or {})


def layers_of(golden, prefix, suffix=""):
    """Recorded outputs of the layers, by the number of our hidden state."""
    found = {}
    while f"{prefix}.layer{len(found)}{suffix}" in golden:
        found[len(found) + 1] = golden[f"{prefix}.layer{len(found)}{suffix}"]
    return found


def mean_squares(ours, target, mask):
    return ((ours - target)[mask] ** 2).mean()


def relative_error(ours, target, mask):
    return (np.abs(ours - target)[mask] / (target[mask] + 1e-6)).mean()


def similarity_loss(cells, threshold):
    """Elastic cell similarity: the cosines of all pairs of cells are pushed away from a threshold."""
    cosine = F.cosine_similarity(cells[:, None], cells[None], dim=-1).fill_diagonal_(0).relu()
    return (1 - (cosine - threshold) ** 2).mean()


def log_likelihood_loss(probability, positive, mask):
    return -np.where(positive, np.log(probability), np.log1p(-probability))[mask].mean()


GENERATIVE_THRESHOLD, INTEGRATION_THRESHOLD = 0.3, 0.8


def threshold_in(name):
    return float(name.rsplit("thr", 1)[1])


# the pretrained model


def test_golden_scgpt_cell_embeddings(golden, load):
    model = load("pretrained")
    tokens = tokens_from(model, golden["embed.gene"], golden["embed.expr"])
    assert_close(model.embed_cells(tokens), golden["embed.X_scGPT"])
    assert_close(model.embed_cells(tokens, "cls_raw"), golden["embed.cls_unnormalised"])


@pytest.fixture
def forward(golden, load):
    model = load("pretrained")
    lengths = (~golden["fwd.padding_mask"]).sum(axis=1)
    return model, tokens_of(golden["fwd.gene"], lengths, golden["fwd.expr"]), lengths


def test_golden_scgpt_input_terms(golden, forward):
    model, tokens, lengths = forward
    terms = model.transformer.terms
    with torch.inference_mode():
        ids, values = torch.as_tensor(tokens.ids), torch.as_tensor(tokens.values)
        assert_close(terms["gene"](ids), unpad(golden["fwd.gene_encoder"], lengths))
        assert_close(terms["value"](values), unpad(golden["fwd.value_encoder"], lengths))
        assert_close(terms["value"](torch.tensor(golden["value_encoder.input"])), golden["value_encoder.output"])
    assert_close(model.hidden_states(tokens, [0])[0], unpad(golden["fwd.total_embs"], lengths))


def test_golden_scgpt_hidden_states(golden, forward):
    model, tokens, lengths = forward
    recorded = layers_of(golden, "fwd")
    ours = model.hidden_states(tokens)
    assert recorded.keys() == set(range(1, model.transformer.n_layers + 1))
    for k, states in recorded.items():
        assert_close(ours[k], unpad(states, lengths))
    assert_close(ours[-1], ours[max(recorded)])


def test_golden_scgpt_gene_embedding_before_any_context(golden, load):
    genes = load("pretrained").embed_genes(kind="input")
    assert_close(genes.vectors, golden["fwd.gene_embedding_input"])


def padded(tokens, batch_length, pad_id, pad_value):
    """The same cells with padding behind them, as tokens that nobody sees."""
    n = batch_length - tokens.lengths
    ends = np.repeat(tokens.offsets[1:], n)
    return replace(
        tokens,
        ids=np.insert(tokens.ids, ends, pad_id),
        values=np.insert(tokens.values, ends, pad_value),
        offsets=np.arange(len(tokens) + 1) * batch_length,
        channels={"keys": np.insert(np.ones(tokens.n_tokens, dtype=bool), ends, False)},
    )


def test_golden_scgpt_poolings_that_count_padding(golden, load, forward):
    # the authors average over padding too, whose states depend on the kernel: computed like any query, or left zero
    _, tokens, lengths = forward
    model = scfm.models.load(checkpoints()["pretrained"])
    model.config.query_only = QueryOnlySpec(sees_itself=False, projected=True).to_dict()
    batch_length = golden["fwd.gene"].shape[1]
    pad_value = golden["fwd.expr"][golden["fwd.padding_mask"]]
    tokens = padded(tokens, batch_length, model.vocabulary.specials["pad"], pad_value[0] if len(pad_value) else 0)
    states = model.hidden_states(tokens, [-1])[-1].reshape(len(lengths), batch_length, -1)
    keys = tokens.channels["keys"].reshape(len(lengths), batch_length, 1)
    weights = golden["fwd.expr"][..., None]
    for name, x in (("slow", states), ("nested", states * keys)):
        assert_close(x.mean(axis=1), golden[f"fwd.cell_emb_avgpool_{name}"])
        weighted = torch.as_tensor((x * weights).sum(axis=1))
        assert_close(F.normalize(weighted, dim=1), golden[f"fwd.cell_emb_wpool_{name}"])


def test_golden_scgpt_masked_outputs_and_losses(golden, load, forward):
    model, tokens, lengths = forward
    values = unpad(golden["mlm.masked_expr"], lengths)
    masked = replace(tokens, values=values)
    expression = model.heads["expression"](masked)[:, 0]
    mvc = model.heads["mvc"](masked)[:, 0]
    cells = torch.as_tensor(model.embed_cells(masked, "cls_raw"))
    assert_close(expression, unpad(golden["mlm.mlm_output"], lengths))
    assert_close(mvc, unpad(golden["mlm.mvc_output"], lengths))
    assert_close(cells, golden["mlm.cell_emb"])
    mask, target = values == MASKED, tokens.values
    assert_close(mean_squares(expression, target, mask), golden["mlm.loss_mse"])
    assert_close(mean_squares(mvc, target, mask), golden["mlm.loss_mvc"])
    assert_close(relative_error(expression, target, mask), golden["mlm.mre"])
    for name in [n for n in golden if n.startswith("mlm.loss_ecs_thr")]:
        assert_close(similarity_loss(cells, threshold_in(name)), golden[name])
    # without dropout the second pass of the contrastive loss is the first one
    cosine = F.cosine_similarity(cells[:, None], cells[None], dim=-1) / 0.5
    assert_close(F.cross_entropy(cosine, torch.arange(len(cells))), golden["mlm.loss_cce"])


@pytest.mark.parametrize("values", [None, "mlm.masked_expr"])
def test_golden_scgpt_expression_from_a_cell_prompt(golden, forward, values):
    model, tokens, lengths = forward
    recorded = golden["generate.output" if values is None else "generate.output_with_values"]
    given = None if values is None else unpad(golden[values], lengths)
    prompted = replace(tokens, values=given, per_cell={"prompt": golden["mlm.cell_emb"]})
    assert_close(model.heads["expression"](prompted)[:, 0], unpad(recorded, lengths))


def test_golden_scgpt_prompt_is_hidden_state_0_of_the_first_token(golden, forward):
    model, tokens, lengths = forward
    with torch.inference_mode():
        inputs = model.transformer.embed_input(to_batch(tokens))
        inputs[torch.as_tensor(tokens.offsets[:-1])] = torch.as_tensor(golden["mlm.cell_emb"])
        states = model.transformer.hidden_states(to_batch(replace(tokens, values=None)), inputs=inputs)
    prompted = replace(tokens, per_cell={"prompt": golden["mlm.cell_emb"]})
    assert_close(model.hidden_states(prompted, [-1])[-1], states.final)
    assert lengths.sum() == len(inputs)


# the generative pass


@pytest.fixture
def generative(golden, load):
    model = load("pretrained")
    known = tokens_from(model, golden["gen.pcpt_gene"], golden["gen.pcpt_expr"])
    questions = tokens_from(model, golden["gen.gen_gene"])
    return model, known, questions, model.ask(known, questions)


def test_golden_scgpt_generative_pass(golden, generative):
    model, known, questions, asked = generative
    keys = asked.channels["keys"]
    states = model.hidden_states(asked)
    for part, where, lengths in (("pcpt", keys, known.lengths), ("gen", ~keys, questions.lengths)):
        recorded = layers_of(golden, "gen", f"_{part}")
        assert recorded.keys() == set(range(1, model.transformer.n_layers + 1))
        for k, x in recorded.items():
            assert_close(states[k][where], unpad(x, lengths))
    expression = model.heads["expression"](asked)[:, 0]
    assert_close(expression[keys], unpad(golden["gen.pcpt_preds"], known.lengths))
    assert_close(expression[~keys], unpad(golden["gen.gen_preds"], questions.lengths))
    cells = model.embed_cells(asked, "cls_raw")
    assert_close(cells, golden["gen.cell_emb"])
    width = golden["gen.pcpt_gene"].shape[1]
    mvc = model.heads["mvc"](asked)[:, 0]
    assert_close(mvc[keys], unpad(golden["gen.mvc_output"][:, :width], known.lengths))
    assert_close(mvc[~keys], unpad(golden["gen.mvc_output"][:, width:], questions.lengths))


def test_golden_scgpt_generative_losses_and_cell_prompt(golden, generative):
    model, _, questions, asked = generative
    new = ~asked.channels["keys"]
    prompted = replace(asked, per_cell={"prompt": model.embed_cells(asked, "cls_raw")})
    expression = model.heads["expression"](asked)[new, 0]
    mvc = model.heads["mvc"](asked)[new, 0]
    from_prompt = model.heads["expression"](prompted)[new, 0]
    assert_close(from_prompt, unpad(golden["gen.cellprompt_gen_preds"], questions.lengths))
    assert_close(model.embed_cells(prompted, "cls_raw"), golden["gen.cellprompt_cell_emb"])
    target = unpad(golden["gen.gen_expr_target"], questions.lengths)
    everywhere = np.ones(len(target), dtype=bool)
    losses = [mean_squares(x, target, everywhere) for x in (expression, mvc, from_prompt)]
    assert_close(losses, golden["gen.losses_mse_mvc_gen"])
    assert_close(relative_error(expression, target, everywhere), golden["gen.mre"])
    cells = torch.as_tensor(model.embed_cells(asked, "cls_raw"))
    assert_close(similarity_loss(cells, GENERATIVE_THRESHOLD), golden["gen.loss_ecs"])


def test_golden_scgpt_perceived_tokens_alone(golden, generative):
    model, known, _, _ = generative
    assert_close(model.embed_cells(known, "cls_raw"), golden["gen.pcptonly_cell_emb"])
    assert_close(model.heads["expression"](known)[:, 0], unpad(golden["gen.pcptonly_preds"], known.lengths))


def test_golden_scgpt_generate_answers_by_gene_name(golden, generative):
    model, known, questions, _ = generative
    one = questions[:1]
    names = [model.vocabulary.names[i] for i in one.ids]
    answers = model.generate(known, names)
    assert answers.shape == (len(known), len(names))
    assert_close(answers[0], golden["gen.gen_preds"][0, : len(names)])
    prompted = model.generate(known, names[:3], cells=golden["gen.cell_emb"])
    assert_close(prompted[0], golden["gen.cellprompt_gen_preds"][0, :3])


# fine-tuned models


def test_golden_scgpt_annotation(golden, load):
    model = load("annotation")
    tokens = tokens_from(model, golden["ann.genes"], golden["ann.values"])
    logits = model.heads["cell_classifier"](tokens)
    assert_close(logits, golden["ann.cls_output"])
    np.testing.assert_array_equal(logits.argmax(axis=1), golden["ann.pred"])
    assert_close(model.embed_cells(tokens, "cls_raw"), golden["ann.cell_emb"])
    loss = F.cross_entropy(torch.as_tensor(logits), torch.as_tensor(golden["ann.labels"]).long())
    assert_close(loss, golden["ann.loss_cls"])
    few = tokens[: len(golden["ann.mlm_output"])]
    assert_close(model.heads["expression"](few)[:, 0], unpad(golden["ann.mlm_output"], few.lengths))


@pytest.fixture
def integration(golden, load):
    model = load("integration")
    obs = scfm_obs()
    batch = {"batch": obs["batch_id"].to_numpy()[golden["int.cells"]]}
    tokens = tokens_from(model, golden["int.genes"], golden["int.values"], batch)
    return model, tokens, replace(tokens, values=unpad(golden["int.masked_values"], tokens.lengths))


def scfm_obs():
    import anndata

    return anndata.read_h5ad(case("scgpt") / "cells.h5ad").obs


def test_golden_scgpt_integration_masks(golden):
    masked = golden["int.values"].copy()
    for row, positions in zip(masked, golden["rand.int_mask_choice"], strict=True):
        row[positions[positions >= 0]] = MASKED
    np.testing.assert_array_equal(masked, golden["int.masked_values"])


def test_golden_scgpt_integration_states_and_embedding(golden, integration):
    model, tokens, masked = integration
    few = masked[: len(golden["int.final_hidden"])]
    states = model.hidden_states(few, [0, -1])
    assert_close(states[0], unpad(golden["int.total_embs_after_dsbn"], few.lengths))
    assert_close(states[-1], unpad(golden["int.final_hidden"], few.lengths))
    assert_close(model.embed_cells(masked, "cls_raw"), golden["int.cell_emb"])
    assert_close(model.embed_cells(tokens), golden["int.X_scGPT"])


def test_golden_scgpt_integration_outputs_and_losses(golden, integration):
    model, tokens, masked = integration
    expression = model.heads["expression"](masked)[:, 0]
    nonzero = model.heads["nonzero"](masked)[:, 0]
    mvc, mvc_logit = model.heads["mvc"](masked).T
    mvc_nonzero = torch.as_tensor(mvc_logit).sigmoid().numpy()
    domains = torch.as_tensor(model.heads["batch_discriminator"](masked))
    for name, ours in (
        ("mlm_output", expression),
        ("mlm_zero_probs", nonzero),
        ("mvc_output", mvc),
        ("mvc_zero_probs", mvc_nonzero),
    ):
        assert_close(ours, unpad(golden[f"int.{name}"], tokens.lengths))
    assert_close(domains, golden["int.dab_output"])
    sampled = unpad(golden["int.mlm_sampled"], tokens.lengths)
    assert_close(np.where(sampled == 0, 0, expression), sampled)
    ecs = similarity_loss(torch.as_tensor(model.embed_cells(masked, "cls_raw")), INTEGRATION_THRESHOLD)
    assert_close(ecs, golden["int.loss_ecs"])
    mask, target = masked.values == MASKED, tokens.values
    batch = torch.as_tensor(tokens.per_cell["batch"]).long()
    losses = [
        mean_squares(expression, target, mask),
        log_likelihood_loss(nonzero, target > 0, mask),
        mean_squares(mvc, target, mask),
        log_likelihood_loss(mvc_nonzero, target > 0, mask),
        10 * float(ecs),
        float(F.cross_entropy(domains, batch)),
    ]
    assert_close(losses, golden["int.losses"])


def test_golden_scgpt_integration_needs_the_batch_of_each_cell(integration):
    model, tokens, _ = integration
    with pytest.raises(scfm.errors.ConfigError, match="needs 'batch' of each cell"):
        model.embed_cells(replace(tokens, per_cell={}))


def test_golden_scgpt_integration_takes_the_batch_from_obs(load):
    import anndata

    model = load("integration")
    cells = anndata.read_h5ad(case("scgpt") / "cells.h5ad")
    tokens = model.tokenize(cells, gene_key="feature_name", context={"batch": "batch_id"})
    np.testing.assert_array_equal(tokens.per_cell["batch"], cells.obs["batch_id"])
    assert np.isfinite(model.embed_cells(tokens)[tokens.per_cell["n_detected"] > 0]).all()
    with pytest.raises(scfm.errors.TokenizerError, match="needs context 'batch'"):
        model.tokenize(cells, gene_key="feature_name")


def test_golden_scgpt_perturbation(golden, load):
    model = load("perturbation")
    tokens = tokens_of(
        golden["pert.genes"],
        np.full(len(golden["pert.genes"]), golden["pert.genes"].shape[1]),
        golden["pert.values"],
        flag=golden["pert.flags"].astype(np.int64),
    )
    assert_close(model.hidden_states(tokens[:1], [0])[0], golden["pert.total_embs_cell0"])
    predicted = model.heads["coefficient"](tokens)[:, 0] * tokens.values + model.heads["offset"](tokens)[:, 0]
    assert_close(predicted, golden["pert.mlm_output"].ravel())


# files


@pytest.mark.parametrize("layout", ["Wqkv.", "_impl.Wqkv.", "in_proj_"])
def test_golden_scgpt_every_attention_layout_is_the_same_model(golden, load, layout, tmp_path):
    folder = checkpoints()["pretrained"]
    for name in ("args.json", "vocab.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    state = torch.load(folder / "best_model.pt", weights_only=True)
    state = {k.replace("self_attn.Wqkv.", f"self_attn.{layout}"): v for k, v in state.items()}
    if "_impl" in layout:
        state = {k.replace("self_attn.out_proj", "self_attn._impl.out_proj"): v for k, v in state.items()}
    assert any(f"self_attn.{layout}" in k for k in state)
    torch.save(state, tmp_path / "best_model.pt")
    tokens = tokens_from(load("pretrained"), golden["embed.gene"], golden["embed.expr"])
    np.testing.assert_array_equal(
        scfm.models.load(tmp_path).embed_cells(tokens), load("pretrained").embed_cells(tokens)
    )


@pytest.mark.parametrize("kind", ["pretrained", "annotation", "integration", "perturbation"])
def test_golden_scgpt_own_layout_gives_identical_results(golden, load, kind, tmp_path):
    model = load(kind)
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    tokens = tokens_from(model, golden["embed.gene"][:3], golden["embed.expr"][:3], {"batch": np.zeros(3, dtype=int)})
    np.testing.assert_array_equal(again.embed_cells(tokens), model.embed_cells(tokens))
    assert again.heads.keys() == model.heads.keys()
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    for specs in ("term_specs", "head_specs", "readout_specs", "stack_spec", "query_only_spec", "cell_channels"):
        assert getattr(again.config, specs) == getattr(model.config, specs)
    assert {n: h.labels for n, h in again.heads.items()} == {n: h.labels for n, h in model.heads.items()}


def test_golden_scgpt_constants_that_the_arrays_hardly_show(load):
    config = load("integration").config
    assert config.stack_spec.eps == 1e-5
    assert config.domain_eps == 6.1e-5
    assert config.term_specs["gene"].eps == 1e-5
    assert config.term_specs["value"].clip == 512
