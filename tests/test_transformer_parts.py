"""Input terms, read-outs, heads and the configuration do what their specs say, against numpy and published counts."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformer_cases import (
    READOUTS,
    ROWS,
    assert_near,
    offsets_of,
    ragged_batch,
    segments_of,
    shake,
    small_model,
    small_stack,
)

from scfm.errors import ConfigError
from scfm.transformer import (
    CellTransformer,
    CellTransformerConfig,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
    pack,
    read_out,
)
from scfm.transformer._layers import MLP, Term

WIDTH = 24


def random_term(spec: TermSpec) -> Term:
    term = Term(spec, WIDTH)
    shake(term)
    generator = torch.Generator().manual_seed(3)
    for buffer in term.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return term.eval()


def numpy_part(cell: np.ndarray, values: np.ndarray, part: PartSpec) -> np.ndarray:
    """One part of a read-out for the (L, d) states of one cell."""
    nothing = np.full(cell.shape[1], np.nan)
    if part.kind == "token":
        return cell[part.index] if -len(cell) <= part.index < len(cell) else nothing
    inner = slice(part.skip_first, max(len(cell) - part.skip_last, part.skip_first))
    cell, values = cell[inner], values[inner]
    if not len(cell):
        return nothing
    if part.kind == "weighted":
        return (cell * values[:, None]).sum(0)
    return cell.mean(0) if part.kind == "mean" else cell.max(0)


parts = st.one_of(
    st.builds(PartSpec, kind=st.just("token"), index=st.integers(-4, 3)),
    st.builds(
        PartSpec,
        kind=st.sampled_from(["mean", "max", "weighted"]),
        skip_first=st.integers(0, 3),
        skip_last=st.integers(0, 3),
    ),
)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    chosen=st.lists(parts, min_size=1, max_size=3),
    unit=st.booleans(),
)
def test_every_readout_equals_a_loop_over_cells(lengths: list[int], chosen: list[PartSpec], unit: bool) -> None:
    rng = np.random.default_rng(sum(lengths))
    hidden = rng.normal(size=(sum(lengths), 4)).astype(np.float32)
    values = rng.random(sum(lengths)).astype(np.float32)
    bounds = offsets_of(lengths)
    expected = np.stack(
        [
            np.concatenate([numpy_part(hidden[a:b], values[a:b], part) for part in chosen])
            for a, b in itertools.pairwise(bounds)
        ]
    )
    if unit:
        expected = expected / np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    spec = ReadoutSpec(tuple(chosen), unit=unit)
    ours = read_out(torch.from_numpy(hidden), segments_of(lengths), spec, torch.from_numpy(values))
    assert_near(ours, torch.from_numpy(expected).float(), 1e-6)


def test_a_weighted_readout_without_values_is_an_error() -> None:
    model = small_model()
    batch = ragged_batch()
    del batch.channels["values"]
    with pytest.raises(ConfigError, match="needs token values"):
        model.embed(batch, "weighted")


def test_tokens_without_a_value_weigh_nothing() -> None:
    hidden = torch.randn(3, 4)
    values = torch.tensor([torch.nan, 2.0, 1.0])
    ours = read_out(hidden, segments_of([3]), READOUTS["weighted"], values)
    assert_near(ours[0], F.normalize(2 * hidden[1] + hidden[2], dim=0), 1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_table_term_is_its_row_brought_to_unit_length_mapped_normed_and_scaled(frozen: bool) -> None:
    mlp = MLPSpec((10, WIDTH), end=("gelu", "norm"))
    term = random_term(TermSpec("table", rows=9, width=10, unit=True, mlp=mlp, norm=True, scale=3.0, frozen=frozen))
    ids = torch.tensor([4, 4, 0, 8, 1, 4])
    rows = term.table[ids] / term.table[ids].norm(dim=1, keepdim=True)
    linear, inner = term.mlp.linears[0], term.mlp.norms[0]
    mapped = F.layer_norm(F.gelu(rows @ linear.weight.T + linear.bias), (WIDTH,), inner.weight, inner.bias, 1e-5)
    expected = 3.0 * F.layer_norm(mapped, (WIDTH,), term.norm.weight, term.norm.bias, 1e-5)
    assert_near(term(ids), expected)
    assert ("table" in dict(term.named_parameters())) is not frozen
    assert "table" in term.state_dict()


def test_a_scalar_term_is_an_mlp_of_the_clipped_number() -> None:
    mlp = MLPSpec((1, WIDTH, WIDTH), between=("relu",), end=("norm",))
    term = random_term(TermSpec("scalar", "values", mlp=mlp, clip=2.0))
    x = torch.tensor([0.0, 1.5, 2.0, 700.0])
    assert_near(term(x), term.mlp(x.clamp(max=2.0)[:, None]))
    assert_near(term(x)[3], term(x)[2], 0.0)


def test_soft_bins_spread_a_number_over_rows() -> None:
    term = random_term(TermSpec("bins", "values", rows=6, alpha=0.7))
    bins = {name: p.detach().numpy().astype(np.float64) for name, p in term.bins.named_parameters()}
    x = np.array([0.0, 0.3, 4.0])
    hidden = x[:, None] * bins["first.weight"][:, 0] + bins["first.bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    logits = 0.7 * hidden + hidden @ bins["second.weight"].T + bins["second.bias"]
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ours = term(torch.tensor([*x, np.nan], dtype=torch.float32))
    assert_near(ours[:3], torch.from_numpy(share @ bins["table.weight"]).float())
    assert_near(ours[3], term.bins.mask.weight[0], 0.0)


@pytest.mark.parametrize(
    ("spec", "present", "absent"),
    [
        (TermSpec("table", rows=5, norm=True, optional=True), [3, 0], -1),
        (TermSpec("table", rows=5, mlp=MLPSpec((WIDTH, WIDTH)), optional=True), [3, 0], -1),
        (TermSpec("scalar", mlp=MLPSpec((1, WIDTH), end=("norm",)), optional=True), [0.0, 2.5], float("nan")),
    ],
)
def test_an_optional_term_adds_nothing_where_it_is_absent(spec: TermSpec, present: list[float], absent: float) -> None:
    term = random_term(spec)
    mixed = torch.tensor([present[0], absent, present[1], absent])
    ours = term(mixed)
    assert_near(ours[[0, 2]], term(torch.tensor(present)), 1e-6)
    assert torch.equal(ours[[1, 3]], torch.zeros(2, WIDTH))
    assert torch.isfinite(torch.autograd.grad(ours.sum(), [*term.parameters()])[0]).all()


bags = st.lists(st.lists(st.integers(0, 11), max_size=6), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(bag=bags, measured=st.one_of(st.none(), st.lists(st.booleans(), min_size=12, max_size=12)))
def test_the_bag_is_the_weighted_sum_less_the_centre_of_the_measured_genes(
    bag: list[list[int]], measured: list[bool] | None
) -> None:
    term = random_term(TermSpec("bag", "bag", rows=12, norm=True))
    rng = np.random.default_rng(1)
    weights = [rng.random(len(genes)).astype(np.float32) for genes in bag]
    table, center = term.table.detach().numpy(), term.center.numpy()
    seen = np.ones(12, bool) if measured is None else np.array(measured)
    expected = []
    for genes, w in zip(bag, weights, strict=True):
        x = w @ table[genes] - (center * seen) @ table
        expected.append(F.layer_norm(torch.from_numpy(x), (WIDTH,), term.norm.weight, term.norm.bias, 1e-5))
    batch = pack(
        {},
        np.zeros(len(bag) + 1, np.int64),
        bags={
            "bag": (
                np.array([g for genes in bag for g in genes], np.int32),
                np.concatenate(weights),
                offsets_of([len(g) for g in bag]),
            )
        },
        measured=None if measured is None else seen,
    )
    assert_near(term.bag(batch), torch.stack(expected))


def test_the_bag_joins_the_first_token_of_its_cell_also_beside_cells_without_tokens() -> None:
    terms = {"gene": TermSpec("table", rows=ROWS), "bag": TermSpec("bag", "bag", rows=12)}
    model = small_model(terms=terms)
    lengths = [0, 3, 0, 1, 0]
    bag = (np.arange(5, dtype=np.int32), np.ones(5, np.float32), np.arange(6))
    batch = ragged_batch(lengths, bags={"bag": bag})
    joined = model.embed_input(batch) - model.terms["gene"](batch.channels["ids"])
    expected = torch.zeros(4, WIDTH)
    expected[[0, 3]] = model.terms["bag"].bag(batch)[[1, 3]]
    assert_near(joined, expected, 1e-6)


def test_two_bags_stand_one_behind_the_other() -> None:
    terms = {
        "one": TermSpec("bag", "bag", rows=12, width=WIDTH - 3),
        "two": TermSpec("bag", "few", rows=12, width=3, start=WIDTH - 3),
    }
    model = small_model(terms=terms)
    bag = (np.arange(5, dtype=np.int32), np.ones(5, np.float32), np.array([0, 2, 5]))
    few = (np.arange(2, dtype=np.int32), np.ones(2, np.float32), np.array([0, 0, 2]))
    batch = ragged_batch([1, 1], bags={"bag": bag, "few": few})
    expected = torch.cat([model.terms["one"].bag(batch), model.terms["two"].bag(batch)], dim=1)
    assert_near(model.embed_input(batch), expected, 1e-6)
    assert not expected[0, -3:].any()


def test_a_batch_without_the_bag_that_a_model_needs_is_named() -> None:
    model = small_model(terms={"bag": TermSpec("bag", "bag", rows=12)})
    with pytest.raises(ConfigError, match="holds no bag 'bag'"):
        model(ragged_batch())


def test_an_mlp_takes_its_steps_in_order() -> None:
    mlp = MLP(MLPSpec((3, 5, 4, 2), between=("leaky_relu", "norm"), end=("tanh",), slope=0.2, last_bias=False)).eval()
    shake(mlp)
    x = torch.randn(7, 3)
    h = x
    for linear, norm in zip(mlp.linears[:2], mlp.norms, strict=True):
        h = F.leaky_relu(h @ linear.weight.T + linear.bias, 0.2)
        h = F.layer_norm(h, h.shape[1:], norm.weight, norm.bias)
    assert_near(mlp(x), torch.tanh(h @ mlp.linears[2].weight.T), 1e-6)
    assert mlp.linears[2].bias is None


@pytest.mark.parametrize(
    ("step", "function"),
    [
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", partial(F.gelu, approximate="tanh")),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
    ],
)
def test_steps_are_what_they_are_called(step: str, function) -> None:
    mlp = MLP(MLPSpec((4, 4), end=(step,)))
    x = torch.randn(5, 4)
    assert_near(mlp(x), function(mlp.linears[0](x)), 0.0)


def test_domains_are_standardised_with_their_own_moments() -> None:
    model = small_model(domains=2)
    plain = small_model()
    model.domain_mean.copy_(torch.randn(2, WIDTH))
    model.domain_var.copy_(torch.rand(2, WIDTH) + 0.5)
    batch = ragged_batch((2, 3), per_cell={"domain": np.array([1, 0])})
    x = plain.embed_input(batch)
    domain = torch.tensor([1, 1, 0, 0, 0])
    expected = (x - model.domain_mean[domain]) / (model.domain_var[domain] + 6.1e-5).sqrt()
    assert_near(model.embed_input(batch), expected)
    with pytest.raises(ConfigError, match="needs 'domain' of each cell"):
        model.embed_input(ragged_batch((2, 3)))


HEADS = {
    "words": HeadSpec("tied", MLPSpec((WIDTH, WIDTH), end=("relu", "norm"))),
    "value": HeadSpec("tokens", MLPSpec((WIDTH, 8, 1), between=("leaky_relu",))),
    "label": HeadSpec("cells", MLPSpec((WIDTH, 5)), readout="mean"),
    "mvc": HeadSpec(
        "pairs",
        MLPSpec((WIDTH, 16), end=("sigmoid",)),
        readout="first",
        outputs=(("value", False), ("nonzero", True)),
        cell_width=WIDTH,
    ),
}


def test_heads_read_tokens_cells_and_pairs() -> None:
    model = small_model(heads=HEADS)
    batch = ragged_batch()
    states, heads = model(batch), model.heads
    expected = heads["words"].mlp(states) @ model.terms["gene"].table.T + heads["words"].bias
    assert_near(model.head("words", batch), expected)
    assert_near(model.head("value", batch), heads["value"].mlp(states))
    assert_near(model.head("label", batch), heads["label"].mlp(model.embed(batch, "mean")))
    genes = heads["mvc"].mlp(model.terms["gene"](batch.channels["ids"]))
    cells = model.embed(batch, "first")[batch.segments.cell]
    forms = [(heads["mvc"].forms[name](genes) * cells).sum(-1) for name in ("value", "nonzero")]
    assert_near(model.head("mvc", batch), torch.stack(forms, -1))
    with pytest.raises(ConfigError, match="no head 'word'; it has"):
        model.head("word", batch)


def everything() -> CellTransformer:
    """A model that uses every kind of parameter and buffer at once."""
    terms = {
        "value": TermSpec("scalar", "values", mlp=MLPSpec((1, WIDTH), end=("gelu",)), optional=True),
        "gene": TermSpec("table", rows=ROWS, norm=True),
        "fixed": TermSpec("table", rows=ROWS, width=7, frozen=True, unit=True, mlp=MLPSpec((7, WIDTH))),
        "bag": TermSpec("bag", "bag", rows=12),
        "bins": TermSpec("bins", "values", rows=4),
    }
    stack = small_stack(norm="pre", final_norms=2, attention="performer", n_features=10, activation="gelu")
    model = small_model(stack, terms, domains=2, sum_norm=True, heads=HEADS, output=MLPSpec((WIDTH, WIDTH)))
    for buffer in model.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(buffer))))
    return model


def test_a_saved_model_gives_identical_results(tmp_path: Path) -> None:
    model = everything()
    bag = (np.arange(3, dtype=np.int32), np.ones(3, np.float32), np.arange(4))
    batch = ragged_batch((3, 2, 1), bags={"bag": bag}, per_cell={"domain": np.array([0, 1, 1])})
    model.save_pretrained(tmp_path)
    loaded, info = CellTransformer.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
    assert not loaded.training
    saved, again = model.state_dict(), loaded.state_dict()
    assert saved.keys() == again.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)
    assert {n for n, _ in model.named_buffers()} == {n for n, _ in loaded.named_buffers()}
    for pooling in READOUTS:
        torch.testing.assert_close(
            loaded.embed(batch, pooling), model.embed(batch, pooling), rtol=0, atol=0, equal_nan=True
        )
    for head in HEADS:
        torch.testing.assert_close(loaded.head(head, batch), model.head(head, batch), rtol=0, atol=0)


def test_the_configuration_survives_json(tmp_path: Path) -> None:
    config = everything().config
    config.save_pretrained(tmp_path)
    loaded = CellTransformerConfig.from_pretrained(tmp_path)
    for name in ("stack_spec", "term_specs", "head_specs", "readout_specs", "output_spec", "query_only_spec"):
        assert getattr(loaded, name) == getattr(config, name), name


def test_an_unknown_switch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="StackSpec has no setting 'depth'"):
        StackSpec.build({"depth": 3})
    with pytest.raises(ConfigError, match=r"StackSpec.norm is 'middle'; it must be one of pre, post"):
        small_stack(norm="middle")
    with pytest.raises(ConfigError, match="unknown step 'swish'"):
        MLPSpec((1, 2), end=("swish",))
    with pytest.raises(ConfigError, match="no setting 'sum_nrom'"):
        make_config(encoder=small_stack(), terms={}, readouts={}, sum_nrom=True)
    config = everything().config
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "decoder_layers": 3}))
    with pytest.raises(ConfigError, match="no setting 'decoder_layers'"):
        CellTransformerConfig.from_pretrained(tmp_path)
