"""scFoundation gives the numbers of the authors' code on the recorded case."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from golden_cases import arrays, assert_close, case
from torch.nn import functional as F

import scfm
from scfm import genes
from scfm.counts import CountBlock
from scfm.models._reading import read_tensors
from scfm.models._run import to_batch
from scfm.tokenizers import Tokens
from scfm.transformer import CellTransformer, PackedBatch
from scfm.transformer._attention import FAVOR_EPS, favor_features, performer_attention
from scfm.transformer._decoder import every_gene, keys_only
from scfm.transformer._model import _orthogonal_features

WEIGHTS_OF = {"ce": "cell", "rde": "rde"}
"""The authors' names of weight sets, and ours."""
AIMS = {
    "t": lambda x: {"target_depth": 10.0**x},
    "f": lambda x: {"target_fold": x},
    "a": lambda x: {"target_log_add": x},
}
N_DEPTHS = 2


@pytest.fixture(scope="module")
def golden():
    return arrays("scfoundation")


@pytest.fixture(scope="module")
def load():
    models = {name: scfm.models.load(case("scfoundation") / "checkpoint", checkpoint=name) for name in scfm_sets()}
    return models.__getitem__


def scfm_sets() -> list[str]:
    return [str(name) for name in read_tensors(next((case("scfoundation") / "checkpoint").rglob("*.ckpt")))]


@pytest.fixture(scope="module")
def gene_model(load):
    return load("gene")


@pytest.fixture(scope="module")
def cells():
    return anndata.read_h5ad(case("scfoundation") / "cells.h5ad")


def aim_of(text: str) -> dict[str, float]:
    """What the authors' ``t4``, ``f1`` or ``a5`` asks for."""
    return AIMS[text[0]](float(text[1:]))


def tokens_of_table(model, table: np.ndarray, aim: dict[str, float], **settings) -> Tokens:
    """Tokens of rows (n, G) in the order of the vocabulary, whose values are taken as they are."""
    n, n_genes = table.shape
    rows, columns = np.nonzero(table)
    block = CountBlock(
        np.searchsorted(rows, np.arange(n + 1)).astype(np.int64),
        columns.astype(np.int32),
        table[rows, columns],
        n_genes,
    )
    names = [str(name) for name in model.vocabulary.names[:n_genes]]
    tokenizer = replace(model.tokenizer, values="given", **settings)
    return tokenizer.tokenize_block(block, genes.match(names, model.vocabulary, policy="published"), context=aim)


def states_of(model: CellTransformer, batch: PackedBatch) -> list[torch.Tensor]:
    with torch.inference_mode():
        states = model.hidden_states(batch)
    return [*states.layers.values(), states.final]


# cells


@pytest.mark.parametrize(
    "run", ["all_t4_F_ce", "max_t4_F_ce", "all_t4.5_F_rde", "all_f1_F_rde", "all_f2.5_F_rde", "all_a5_F_rde"]
)
def test_golden_scfoundation_cell_embeddings_from_counts(golden, load, cells, run):
    pooling, aim, _, version = run.split("_")
    adata = cells.copy()
    scfm.tl.embed(
        adata,
        load(WEIGHTS_OF[version]),
        pooling=pooling,
        context=aim_of(aim),
        gene_matching="published",
        key_added="x",
        progress=False,
    )
    assert_close(adata.obsm["X_x"], golden[f"cell_{run}"])


def test_golden_scfoundation_cell_embeddings_of_normalised_values(golden, load, cells):
    model = load("cell")
    given = tokens_of_table(model, golden["input_T"], aim_of("t4"))
    assert_close(model.embed_cells(given), golden["cell_all_t4_T_ce"])
    # the authors' third mode takes normalised values and the true total: what scfm finds in the counts
    recorded = golden["cell_all_f1_A_ce"]
    tokens = model.tokenize(cells, context=aim_of("f1"))
    assert_close(model.embed_cells(tokens[: len(recorded)]), recorded)


def test_golden_scfoundation_bulk_embeddings(golden, load):
    model = load("cell")
    counts = golden["bulk_input_F"]
    totals = counts.sum(axis=1, keepdims=True)
    logs = np.log1p(counts / (totals / np.median(totals)))
    assert_close(model.embed_cells(tokens_of_table(model, logs, aim_of("f1"))), golden["bulk_all_F_ce"])
    plain = tokens_of_table(model, golden["bulk_input_T"], aim_of("f1"), scale="plain")
    assert_close(model.embed_cells(plain, "max"), golden["bulk_max_T_ce"])


@pytest.mark.parametrize("name", ["single0", "single4"])
def test_golden_scfoundation_states_of_one_cell(golden, load, cells, name):
    model = load("cell")
    tokens = model.tokenize(cells)[[int(name.removeprefix("single"))]]
    values = torch.as_tensor(tokens.values)
    with torch.inference_mode():
        assert_close(model.transformer.terms["value"](values), golden[f"{name}_token_emb"])
    first, *layers, final = states_of(model.transformer, to_batch(tokens))
    assert_close(first, golden[f"{name}_enc_in"])
    for k, layer in enumerate(layers):
        assert_close(layer, golden[f"{name}_enc_layer{k}"])
    assert f"{name}_enc_layer{len(layers)}" not in golden
    assert_close(final, golden[f"{name}_enc_out"])


def test_golden_scfoundation_official_embedding_without_the_source_depth(golden, load):
    model = load("cell")
    tokens = tokens_of_table(model, golden["trap_frac_input"], aim_of("t4"))
    counted = replace(model.tokenizer, values="log1p")
    names = [str(name) for name in model.vocabulary.names[:-N_DEPTHS]]
    rows, columns = np.nonzero(golden["trap_frac_input"])
    block = CountBlock(
        np.array([0, len(columns)]), columns.astype(np.int32), golden["trap_frac_input"][rows, columns], len(names)
    )
    tokens = counted.tokenize_block(block, genes.match(names, model.vocabulary, policy="published"))
    lost = Tokens(tokens.ids[:-1], np.array([0, tokens.n_tokens - 1]), tokens.values[:-1])
    np.testing.assert_array_equal(lost.ids[None], golden["trap_frac_pos_ids"])
    assert_close(model.embed_cells(lost)[0], golden["trap_frac_cell_all_t4_F_ce"])
    ours = model.embed_cells(tokens)
    assert np.abs(ours[0] - golden["trap_frac_cell_all_t4_F_ce"]).max() > 0.1


# genes


def test_golden_scfoundation_genes_in_their_cells(golden, gene_model, cells):
    recorded = golden["gene_f1_F"]
    tokens = gene_model.tokenize(cells, context=aim_of("f1"))[: len(recorded)]
    assert_close(gene_model.decode(tokens), recorded)
    some = [str(name) for name in gene_model.vocabulary.names[5:2:-1]]
    assert_close(gene_model.decode(tokens, some), recorded[:, 5:2:-1])
    mean = gene_model.embed_genes(tokens)
    assert_close(mean.vectors[:-N_DEPTHS], recorded.mean(axis=0))
    assert (mean.n_cells == len(recorded)).all()


def test_golden_scfoundation_genes_beside_the_data(golden, gene_model, cells):
    recorded = golden["gene_f1_F"]
    few = cells[: len(recorded)].copy()
    scfm.tl.embed(few, gene_model, context=aim_of("f1"), gene_matching="published", key_added="x", progress=False)
    index = gene_model.vocabulary.index
    known = [name in index for name in few.var["gene_name"]]
    order = [index[name] for name in few.var["gene_name"] if name in index]
    assert_close(few.varm["x"][known], recorded.mean(axis=0)[order])
    assert np.isnan(few.varm["x"][np.logical_not(known)]).all()


@pytest.mark.parametrize("aim", ["t4", "f1"])
def test_golden_scfoundation_predicted_expression(golden, gene_model, cells, aim):
    predicted = gene_model.heads["expression"](gene_model.tokenize(cells, context=aim_of(aim)))
    assert_close(predicted[..., 0], golden[f"gene_expression_{aim}_F"])


def decoder_attention(block, x: torch.Tensor, peak: torch.Tensor | None = None):
    """Queries, keys, values (n x rows, heads, d) of the rows (n, rows, width) that a layer of the decoder reads."""
    spec = block.spec
    flat = block.norm1(x.flatten(0, 1))
    return block.qkv(flat).unflatten(-1, (3, spec.n_heads, spec.head_dim)).unbind(1)


def key_maximum(block, k: torch.Tensor) -> torch.Tensor:
    return torch.stack([favor_features(x, block.projection, per_row=False)[1] for x in k.unbind(1)]).amax()


def test_golden_scfoundation_features_of_the_linear_attention(golden, gene_model, cells):
    transformer = gene_model.transformer
    batch = to_batch(gene_model.tokenize(cells, context=aim_of("f1"))[:1])
    block = transformer.decoder.layers[0]
    with torch.inference_mode():
        x = transformer.decoder.enter(decoder_rows(transformer, batch))
        q, k, _ = decoder_attention(block, x[None])
        peak, ratio = key_maximum(block, k), block.spec.n_features**-0.5
        queries = [favor_features(y, block.projection, per_row=True)[0] for y in q.unbind(1)]
        keys = [favor_features(y, block.projection, per_row=False) for y in k.unbind(1)]
    assert_close(ratio * (torch.stack(queries) + FAVOR_EPS), golden["g0_kernel_q_layer0"])
    scaled = [features * (own - peak).exp() for features, own in keys]
    assert_close(ratio * (torch.stack(scaled) + FAVOR_EPS), golden["g0_kernel_k_layer0"])


def test_golden_scfoundation_new_features_are_drawn_as_recorded(golden):
    torch.manual_seed(0)
    assert_close(_orthogonal_features(*golden["redraw_seed0"].shape), golden["redraw_seed0"])


def test_golden_scfoundation_values_as_a_curve(golden, gene_model, load):
    value = gene_model.transformer.terms["value"]
    *numbers, mask, padding = golden["grid_values"].tolist()
    state = read_tensors(next((case("scfoundation") / "checkpoint").rglob("*.ckpt")))["gene"]["state_dict"]
    with torch.inference_mode():
        assert_close(value.bins.weights(torch.tensor([*numbers, mask, padding])), golden["grid_weight"])
        assert_close(value(torch.tensor([*numbers, np.nan])), golden["grid_emb"][:-1])
    # padding has a row of its own, which is not read: there is none
    assert_close(state["model.token_emb.emb_pad.weight"][0], golden["grid_emb"][-1])


# a batch as the authors' code sees it: one key maximum for all of its cells


def decoder_rows(transformer: CellTransformer, batch: PackedBatch) -> torch.Tensor:
    """(n x rows, width) what the decoder reads, before the map to its width."""
    states = transformer(keys_only(batch))
    return every_gene(batch, states, transformer.terms["gene"], transformer.terms["value"], transformer.decoder_rows)


def decoded_in_one_batch(transformer: CellTransformer, batch: PackedBatch, found: dict[str, torch.Tensor]):
    """States (n, rows, d) of cells whose keys share a maximum; ``found`` takes what lies between."""
    decoder = transformer.decoder
    segments = decoder.segments(batch.n_cells, batch.device)
    with torch.inference_mode():
        rows = decoder_rows(transformer, batch)
        x = decoder.enter(rows)
        found |= {"in_full": rows, "embed": x}
        for i, block in enumerate(decoder.layers):
            q, k, v = decoder_attention(block, x[None])
            peaks = key_maximum(block, k).expand(batch.n_cells)
            mixed = block.out(performer_attention(q, k, v, segments, segments, block.projection, peaks).flatten(1))
            x = x + mixed
            thought = block.down(F.gelu(block.up(block.norm2(x))))
            x = x + thought
            found |= {f"attn{i}": mixed, f"ff{i}": thought}
        first, last = decoder.final_norms
        found |= {"stack": x, "out": first(x), "norm": last(first(x))}
    return found["norm"].unflatten(0, (batch.n_cells, -1))


@pytest.mark.parametrize("run", ["gene_batch_f1_F", "gene_batch_f1_A"])
def test_golden_scfoundation_genes_of_an_official_batch(golden, gene_model, cells, run):
    tokens = gene_model.tokenize(cells, context=aim_of("f1"))[: len(golden[run])]
    assert_close(decoded_in_one_batch(gene_model.transformer, to_batch(tokens), {})[:, :-N_DEPTHS], golden[run])


def test_golden_scfoundation_states_of_an_official_batch(golden, gene_model, cells):
    transformer = gene_model.transformer
    padded = ~golden["gb_enc_padmask"]
    tokens = gene_model.tokenize(cells, context=aim_of("f1"))[: len(padded)]
    batch = to_batch(tokens)
    with torch.inference_mode():
        values = transformer.terms["value"](batch.channels["values"])
    assert_close(values, golden["gb_token_emb"][padded])
    first, *layers, final = states_of(transformer, batch)
    assert_close(first, golden["gb_enc_in"][padded])
    for k, layer in enumerate(layers):
        assert_close(layer, golden[f"gb_enc_layer{k}"][padded])
    assert_close(final, golden["gb_enc_out"][padded])
    found: dict[str, torch.Tensor] = {}
    decoded_in_one_batch(transformer, batch, found)
    recorded = {name.removeprefix("gb_dec_"): golden[name] for name in golden if name.startswith("gb_dec_")}
    assert set(recorded) == set(found)
    for name, array in recorded.items():
        assert_close(found[name].unflatten(0, (len(tokens), -1))[: len(array)], array)
    full = np.zeros(golden["gb_token_emb_dec"].shape[:2], dtype=np.float32)
    for row, cell in zip(full, tokens, strict=False):
        row[cell.ids] = cell.values
    with torch.inference_mode():
        assert_close(transformer.terms["value"](torch.as_tensor(full.ravel())), flat(golden["gb_token_emb_dec"]))


def flat(recorded: np.ndarray) -> np.ndarray:
    return recorded.reshape(-1, *recorded.shape[2:])


def masked_batch(golden) -> PackedBatch:
    """The recorded rows with their masked genes as tokens that ask: no keys, and no value."""
    rows, hidden = golden["mae_input"], golden["mae_mask"]
    seen = (golden["mae_target"] > 0) & ~hidden
    kept = seen | hidden
    values = np.where(hidden, np.nan, rows)[kept].astype(np.float32)
    tokens = Tokens(
        ids=np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape)[kept],
        offsets=np.concatenate([[0], np.cumsum(kept.sum(axis=1))]),
        values=values,
        channels={"keys": seen[kept]},
    )
    return to_batch(tokens)


def test_golden_scfoundation_training_objective_of_an_official_batch(golden, gene_model):
    transformer = gene_model.transformer
    states = decoded_in_one_batch(transformer, masked_batch(golden), {})
    with torch.inference_mode():
        predicted = transformer.heads["expression"](states)[..., 0]
    assert_close(predicted, golden["mae_pred"])
    asked = torch.as_tensor(golden["mae_mask"])
    loss = F.mse_loss(predicted[asked], torch.as_tensor(golden["mae_target"])[asked])
    assert_close(loss, golden["mae_loss_masked_mse"])


def test_golden_scfoundation_masked_genes_of_a_cell_alone(golden, gene_model):
    # one cell has no other to share a maximum with
    transformer = gene_model.transformer
    one = masked_batch({name: golden[name][:1] for name in ("mae_input", "mae_mask", "mae_target")})
    with torch.inference_mode():
        assert_close(transformer.decode(one), decoded_in_one_batch(transformer, one, {}))


# the fine-tuned classifier


def classifier(golden, vectors: np.ndarray) -> torch.Tensor:
    """The recorded head: standardised by running statistics, then two maps."""
    weights = {name.removeprefix("ft_"): torch.as_tensor(golden[name]) for name in golden if name.startswith("ft_")}
    x = (torch.as_tensor(vectors) - weights["bn_running_mean"]) / (weights["bn_running_var"] + 1e-6).sqrt()
    x = F.linear(x, weights["fc1_0_weight"], weights["fc1_0_bias"]).relu()
    last = max(int(name.split("_")[1]) for name in weights if name.startswith("fc1_"))
    return F.linear(x, weights[f"fc1_{last}_weight"], weights[f"fc1_{last}_bias"])


def test_golden_scfoundation_classifier_on_genes_without_depths(golden, gene_model):
    rows = golden["ft_x"]
    cell, ids = np.nonzero(rows)
    tokens = Tokens(
        ids=ids.astype(np.int32),
        offsets=np.searchsorted(cell, np.arange(len(rows) + 1)).astype(np.int64),
        values=rows[cell, ids],
    )
    assert_close(classifier(golden, gene_model.embed_cells(tokens, "max")), golden["ft_logits_single"])
    # padded rows of a batch enter the authors' maximum: the longest cell has none
    longest = int(tokens.lengths.argmax())
    assert_close(golden["ft_logits_single"][longest], golden["ft_logits_batch"][longest])
    assert np.abs(golden["ft_logits_single"] - golden["ft_logits_batch"]).max() > 1e-3


# files


@pytest.mark.parametrize("name", scfm_sets())
def test_golden_scfoundation_own_layout_gives_identical_results(load, cells, name, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    tokens = model.tokenize(cells)
    np.testing.assert_array_equal(again.embed_cells(tokens), model.embed_cells(tokens))
    np.testing.assert_array_equal(again.decode(tokens), model.decode(tokens))
    np.testing.assert_array_equal(again.heads["expression"](tokens), model.heads["expression"](tokens))
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    for specs in ("term_specs", "head_specs", "readout_specs", "stack_spec", "decoder_spec"):
        assert getattr(again.config, specs) == getattr(model.config, specs)


def test_golden_scfoundation_weight_sets_are_three_models(load, cells):
    tokens = load("cell").tokenize(cells)
    one, two, three = (load(name).embed_cells(tokens) for name in scfm_sets())
    assert min(np.abs(one - two).max(), np.abs(one - three).max(), np.abs(two - three).max()) > 0.1
