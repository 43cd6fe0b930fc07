"""The transformer equals independent implementations with the same random weights, and does not mix cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F
from transformer_cases import (
    READOUTS,
    ROWS,
    assert_near,
    cell_of,
    lengths_with_gaps,
    padded,
    ragged_batch,
    shake,
    small_model,
    small_stack,
)
from transformers import BertConfig, BertModel

from scfm.errors import ConfigError
from scfm.transformer import CellTransformer, MLPSpec, TermSpec, make_config, read_out

POSITIONS = 16


def bert_pair(seed: int = 0) -> tuple[CellTransformer, BertModel]:
    """Our model and a `BertModel` with the same weights; its segment row lies in our position table."""
    model = small_model(
        small_stack(eps=1e-12),
        {"gene": TermSpec("table", rows=ROWS), "position": TermSpec("table", "positions", rows=POSITIONS)},
        sum_norm=True,
        sum_eps=1e-12,
    )
    stack = model.config.stack_spec
    bert = BertModel(
        BertConfig(
            vocab_size=ROWS,
            pad_token_id=None,
            hidden_size=stack.width,
            num_hidden_layers=stack.n_layers,
            num_attention_heads=stack.n_heads,
            intermediate_size=stack.ff,
            max_position_embeddings=POSITIONS,
            hidden_act="relu",
            layer_norm_eps=1e-12,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    ).eval()
    shake(bert, seed)
    with torch.no_grad():
        e = bert.embeddings
        model.terms["gene"].table.copy_(e.word_embeddings.weight)
        model.terms["position"].table.copy_(e.position_embeddings.weight + e.token_type_embeddings.weight[0])
        model.sum_norm.load_state_dict(e.LayerNorm.state_dict())
        for ours, theirs in zip(model.encoder.layers, bert.encoder.layer, strict=True):
            s, o = theirs.attention.self, theirs.attention.output
            for name in ("weight", "bias"):
                fused = torch.cat([getattr(x, name) for x in (s.query, s.key, s.value)])
                getattr(ours.qkv, name).copy_(fused)
            pairs = {"out": o.dense, "norm1": o.LayerNorm, "up": theirs.intermediate.dense}
            pairs |= {"down": theirs.output.dense, "norm2": theirs.output.LayerNorm}
            for name, source in pairs.items():
                getattr(ours, name).load_state_dict(source.state_dict())
    return model, bert


def torch_pair(norm: str, activation: str, final_norms: int) -> tuple[CellTransformer, nn.TransformerEncoder]:
    """Our model and a `torch.nn.TransformerEncoder` with the same weights."""
    model = small_model(small_stack(norm=norm, activation=activation, final_norms=final_norms))
    stack = model.config.stack_spec
    layer = nn.TransformerEncoderLayer(
        stack.width,
        stack.n_heads,
        stack.ff,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=norm == "pre",
    )
    last = nn.LayerNorm(stack.width) if final_norms else None
    theirs = nn.TransformerEncoder(layer, stack.n_layers, norm=last, enable_nested_tensor=False)
    shake(theirs)
    names = {"out": "self_attn.out_proj", "up": "linear1", "down": "linear2", "norm1": "norm1", "norm2": "norm2"}
    with torch.no_grad():
        for ours, source in zip(model.encoder.layers, theirs.layers, strict=True):
            ours.qkv.weight.copy_(source.self_attn.in_proj_weight)
            ours.qkv.bias.copy_(source.self_attn.in_proj_bias)
            for name, key in names.items():
                getattr(ours, name).load_state_dict(source.get_submodule(key).state_dict())
        if last is not None:
            model.encoder.final_norms[0].load_state_dict(last.state_dict())
    # in training mode torch takes its documented path; without dropout the numbers are the same
    return model, theirs.train()


def probe(x: torch.Tensor) -> torch.Tensor:
    """A fixed random linear form, so that gradients of all outputs are compared at once."""
    return (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum()


def test_every_hidden_state_equals_bert() -> None:
    model, bert = bert_pair()
    batch = ragged_batch()
    ids, mask = padded(batch.channels["ids"], batch.segments)
    theirs = bert(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    ours = model.hidden_states(batch)
    assert sorted(ours.layers) == [*range(len(theirs))]
    for k, state in ours.layers.items():
        assert_near(state, theirs[k][mask])
    torch.testing.assert_close(ours.final, ours.layers[model.n_layers], rtol=0, atol=0)


def test_gradients_equal_bert() -> None:
    model, bert = bert_pair()
    batch = ragged_batch()
    ids, mask = padded(batch.channels["ids"], batch.segments)
    probe(bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]).backward()
    probe(model(batch)).backward()
    assert_near(model.terms["gene"].table.grad, bert.embeddings.word_embeddings.weight.grad)
    assert_near(model.terms["position"].table.grad, bert.embeddings.position_embeddings.weight.grad)
    first, theirs = model.encoder.layers[0], bert.encoder.layer[0]
    assert_near(first.qkv.weight.grad[: model.width], theirs.attention.self.query.weight.grad)
    assert_near(first.down.bias.grad, theirs.output.dense.bias.grad)
    assert_near(first.norm1.weight.grad, theirs.attention.output.LayerNorm.weight.grad)


@pytest.mark.parametrize(("norm", "activation", "final_norms"), [("post", "relu", 0), ("pre", "gelu", 1)])
def test_states_and_gradients_equal_torch_encoder(norm: str, activation: str, final_norms: int) -> None:
    model, encoder = torch_pair(norm, activation, final_norms)
    batch = ragged_batch()
    inputs = model.embed_input(batch).detach().requires_grad_()
    x, mask = padded(inputs, batch.segments)
    theirs = encoder(x, src_key_padding_mask=~mask)[mask]
    expected = torch.autograd.grad(probe(theirs), [inputs, *encoder.layers[0].parameters()])
    final = model.hidden_states(batch, (), inputs=inputs).final
    assert_near(final, theirs)
    first = model.encoder.layers[0]
    names = ("qkv.weight", "qkv.bias", "out.weight", "out.bias", "up.weight", "up.bias", "down.weight", "down.bias")
    names += ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    ours = torch.autograd.grad(probe(final), [inputs, *(first.get_parameter(n) for n in names)])
    for a, b in zip(ours, expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("attention", ["full", "causal", "performer"])
@pytest.mark.parametrize("implementation", ["packed_eager", "packed_sdpa"])
def test_a_cell_alone_equals_the_cell_packed_with_others(attention: str, implementation: str) -> None:
    model = small_model(small_stack(attention=attention, n_features=10 if attention == "performer" else 0))
    model.config._attn_implementation = implementation
    batch = ragged_batch()
    together = model.embed(batch, "four")
    for i in range(batch.n_cells):
        assert_near(together[i], model.embed(cell_of(batch, i), "four")[0], 1e-6)


def test_a_cell_does_not_feel_what_its_neighbours_hold() -> None:
    model = small_model()
    a, b = ragged_batch(seed=1), ragged_batch(seed=2)
    begin, end = a.segments.bounds[4:6]
    b.channels["ids"][begin:end] = a.channels["ids"][begin:end]
    torch.testing.assert_close(model(a)[begin:end], model(b)[begin:end], rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_with_gaps)
def test_cells_without_tokens_get_nan_and_change_nothing(lengths: list[int]) -> None:
    model = small_model()
    batch = ragged_batch(lengths)
    full = [n for n in lengths if n]
    for pooling in ("mean", "first", "max"):
        cells = model.embed(batch, pooling)
        assert cells.isnan().all(1).tolist() == [n == 0 for n in lengths]
        if full:
            packed = model.embed(ragged_batch(full), pooling)
            assert_near(cells[~cells.isnan().any(1)], packed, 1e-6)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["first", "ends"])
def test_rows_of_the_last_layer_equal_the_full_computation(norm: str, pooling: str) -> None:
    stack = small_stack(norm=norm, final_norms=1 if norm == "pre" else 0, qkv_bias=norm == "post")
    model = small_model(stack, output=MLPSpec((24, 12), end=("gelu", "norm")))
    batch = ragged_batch()
    full = read_out(model(batch), batch.segments, READOUTS[pooling])
    assert_near(model.embed(batch, pooling), full, 1e-6)
    for layer in range(model.n_layers):
        state = model.hidden_states(batch, [layer]).layers[layer]
        assert_near(model.embed(batch, pooling, layer), read_out(state, batch.segments, READOUTS[pooling]), 1e-6)


def test_the_last_layer_is_computed_for_the_wanted_rows_only() -> None:
    model = small_model()
    batch = ragged_batch()
    seen: list[int] = []
    hooks = [b.up.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0]))) for b in model.encoder.layers]
    model.embed(batch, "first")
    assert seen == [batch.n_tokens, batch.n_tokens, batch.n_cells]
    seen.clear()
    model.embed(batch, "mean", 1)
    assert seen == [batch.n_tokens]
    for hook in hooks:
        hook.remove()


def test_hidden_layers_count_from_the_input_and_from_the_end() -> None:
    model = small_model(small_stack(norm="pre", final_norms=1))
    batch = ragged_batch()
    states = model.hidden_states(batch)
    mean = READOUTS["mean"]
    for layer in range(model.n_layers):
        expected = read_out(states.layers[layer], batch.segments, mean)
        assert_near(model.embed(batch, "mean", layer), expected, 0.0)
        assert_near(model.embed(batch, "mean", layer - model.n_layers - 1), expected, 0.0)
    last = read_out(states.final, batch.segments, mean)
    assert_near(model.embed(batch, "mean", -1), last, 0.0)
    assert_near(model.embed(batch, "mean", model.n_layers), last, 0.0)
    assert_near(states.final, model.encoder.final_norms[0](states.layers[model.n_layers]), 0.0)
    assert_near(states.layers[0], model.embed_input(batch), 0.0)


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_does_not_exist_is_named(layer: int) -> None:
    with pytest.raises(ConfigError, match=f"hidden_layer={layer} does not exist; this model has 3 layers"):
        small_model().embed(ragged_batch(), "mean", layer)


def test_an_untrained_stack_with_zero_residual_is_the_identity() -> None:
    config = make_config(
        encoder=small_stack(norm="pre", zero_residual=True),
        terms={"gene": TermSpec("table", rows=ROWS)},
        readouts=READOUTS,
    )
    model = CellTransformer(config).eval()
    batch = ragged_batch()
    torch.testing.assert_close(model(batch), model.embed_input(batch), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["full", "causal", "performer"])
def test_bfloat16_points_the_same_way_as_float32(attention: str) -> None:
    stack = small_stack(
        n_layers=6, width=64, n_heads=4, head_dim=16, ff=128, attention=attention, norm="post", n_features=40
    )
    terms = {
        "gene": TermSpec("table", rows=200),
        "value": TermSpec("scalar", "values", mlp=MLPSpec((1, 64, 64), between=("relu",), end=("norm",))),
        "bins": TermSpec("bins", "values", rows=10),
    }
    model = small_model(stack, terms, sum_norm=True)
    batch = ragged_batch((300, 120, 120, 30, 1), rows=200)
    batch.channels["values"].abs_()  # as expression is; a weighted sum of both signs would cancel
    with torch.inference_mode():
        exact = {p: model.embed(batch, p) for p in ("mean", "first", "weighted")}
        model.to(torch.bfloat16)
        for pooling, reference in exact.items():
            ours = model.embed(batch, pooling)
            assert ours.dtype == torch.bfloat16
            assert F.cosine_similarity(ours.float(), reference).min() >= 0.999
