"""Attention over packed cells: every implementation is the softmax it stands for, and nothing crosses cells."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_cases import (
    assert_near,
    lengths_with_gaps,
    offsets_of,
    ragged_batch,
    segments_of,
    small_model,
    small_stack,
)

from scfm.errors import ConfigError
from scfm.transformer import ATTENTION_NAMES, IMPLEMENTATIONS, Segments, choose
from scfm.transformer._attention import performer_attention, query_only_attention

CPU = torch.device("cpu")


def random_qkv(n: int, heads: int, head_dim: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, heads, head_dim, generator=generator, requires_grad=True) for _ in range(3)]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """One (T, T) matrix per head with everything invisible masked; rows that see nothing are zero."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)


def same_cell(segments: Segments) -> Tensor:
    return segments.cell[:, None] == segments.cell[None]


def assert_same_with_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    assert_near(ours, theirs, 2e-6)
    if not ours.numel():
        return
    form = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
    a = torch.autograd.grad((ours * form).sum(), leaves)
    b = torch.autograd.grad((theirs * form).sum(), leaves)
    for x, y in zip(a, b, strict=True):
        assert_near(x, y, 5e-6)


@pytest.mark.parametrize("name", ["packed_eager", "packed_sdpa"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=lengths_with_gaps,
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 5, 8]),
    causal=st.booleans(),
    seed=st.integers(0, 9),
)
def test_packed_attention_is_the_masked_dense_softmax(
    name: str, lengths: list[int], heads: int, head_dim: int, causal: bool, seed: int
) -> None:
    segments = segments_of(lengths)
    q, k, v = random_qkv(sum(lengths), heads, head_dim, seed)
    visible = same_cell(segments)
    visible = visible.tril() if causal else visible
    ours = IMPLEMENTATIONS[name](q, k, v, segments, segments, causal=causal)
    assert_same_with_gradients(ours, dense_attention(q, k, v, visible), [q, k, v])


@pytest.mark.parametrize("name", ["packed_eager", "packed_sdpa"])
def test_queries_and_keys_may_be_different_tokens_of_a_cell(name: str) -> None:
    at, to = segments_of([1, 2, 0, 2]), segments_of([4, 3, 1, 3])
    q = random_qkv(5, 2, 4, 0)[0]
    _, k, v = random_qkv(11, 2, 4, 1)
    visible = at.cell[:, None] == to.cell[None]
    ours = IMPLEMENTATIONS[name](q, k, v, at, to)
    assert_same_with_gradients(ours, dense_attention(q, k, v, visible), [q, k, v])


@pytest.mark.parametrize("attention", ["full", "causal"])
@settings(max_examples=15, deadline=None)
@given(lengths=lengths_with_gaps)
def test_models_agree_between_implementations(attention: str, lengths: list[int]) -> None:
    model = small_model(small_stack(attention=attention))
    batch = ragged_batch(lengths)
    states = []
    for name in ("packed_eager", "packed_sdpa"):
        model.config._attn_implementation = name
        states.append(model(batch))
    assert_near(*states)


def test_attention_dropout_acts_in_training_only() -> None:
    model = small_model(small_stack(attention_dropout=0.5))
    batch = ragged_batch()
    for name in ("packed_eager", "packed_sdpa"):
        model.config._attn_implementation = name
        torch.testing.assert_close(model.eval()(batch), model(batch), rtol=0, atol=0)
        assert not torch.equal(model.train()(batch), model(batch))


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=5),
    sees_itself=st.booleans(),
    seed=st.integers(0, 9),
)
def test_query_only_tokens_see_their_cell_and_are_not_seen(
    keys: list[list[bool]], sees_itself: bool, seed: int
) -> None:
    segments = segments_of([len(cell) for cell in keys])
    flat = torch.tensor([flag for cell in keys for flag in cell], dtype=torch.bool)
    q, k, v = random_qkv(len(flat), 2, 4, seed)
    visible = same_cell(segments) & flat[None]
    if sees_itself:
        visible = visible | torch.eye(len(flat), dtype=torch.bool)
    at, to = segments.select(~flat.numpy()), segments.select(flat.numpy())
    own = (k[~flat], v[~flat]) if sees_itself else None
    ours = query_only_attention(q[~flat], k[flat], v[flat], at, to, own)
    theirs = dense_attention(q, k, v, visible)[~flat]
    assert_near(ours, theirs, 2e-6)
    if not bool(flat.all()):
        form = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
        a = torch.autograd.grad((ours * form).sum(), [q, k, v], allow_unused=True)
        b = torch.autograd.grad((theirs * form).sum(), [q, k, v])
        for x, y in zip(a, b, strict=True):
            assert_near(torch.zeros_like(y) if x is None else x, y, 5e-6)


@pytest.mark.parametrize("implementation", ["packed_eager", "packed_sdpa"])
@pytest.mark.parametrize("sees_itself", [True, False])
@pytest.mark.parametrize("projected", [True, False])
def test_a_block_with_query_only_tokens_is_the_masked_dense_block(
    implementation: str, sees_itself: bool, projected: bool
) -> None:
    model = small_model(query_only={"sees_itself": sees_itself, "projected": projected})
    model.config._attn_implementation = implementation
    lengths = (6, 4, 4, 1)
    keys = torch.tensor([bool(int(x)) for x in "110100101111111"])
    batch = ragged_batch(lengths, keys=keys.numpy())
    visible = same_cell(batch.segments) & keys[None]
    if sees_itself:
        visible = visible | torch.eye(len(keys), dtype=torch.bool)
    inputs = model.embed_input(batch).detach().requires_grad_()
    x = inputs
    for block in model.encoder.layers:
        q, k, v = block.qkv(x).unflatten(-1, (3, 4, 6)).unbind(1)
        context = dense_attention(q, k, v, visible).flatten(1)
        branch = block.out(context)
        if not projected:
            branch = torch.where(keys[:, None], branch, context)
        x = block.norm1(x + branch)
        x = block.norm2(x + block.down(block.up(x).relu()))
    final = model.hidden_states(batch, (), inputs=inputs).final
    first = model.encoder.layers[0]
    assert_same_with_gradients(final, x, [inputs, first.qkv.weight, first.out.weight, first.out.bias])


def test_query_only_tokens_do_not_change_the_others() -> None:
    model = small_model()
    keys = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    batch = ragged_batch((5, 2), keys=keys.numpy())
    alone = ragged_batch((3, 2))
    alone.channels["ids"][:] = batch.channels["ids"][keys]
    assert_near(model(batch)[keys], model(alone), 1e-6)


def dense_performer(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, segments: Segments) -> Tensor:
    """FAVOR+ with its kernel matrix written out, one cell at a time: (L, L) weights per head."""
    m, d = projection.shape
    out = []
    for a, b in zip(segments.bounds, segments.bounds[1:], strict=False):
        if a == b:
            continue
        qs, ks = (x[a:b].transpose(0, 1) * d**-0.25 for x in (q, k))
        q_raw, k_raw = (torch.einsum("hld,md->hlm", x, projection) for x in (qs, ks))
        q_norm, k_norm = (x.pow(2).sum(-1, keepdim=True) / 2 for x in (qs, ks))
        q_phi = m**-0.5 * (torch.exp(q_raw - q_norm - q_raw.amax(-1, keepdim=True)) + 1e-4)
        k_phi = m**-0.5 * (torch.exp(k_raw - k_norm - k_raw.max()) + 1e-4)
        kernel = torch.einsum("hlm,hnm->hln", q_phi, k_phi)
        weights = kernel / kernel.sum(-1, keepdim=True)
        out.append(torch.einsum("hln,nhd->lhd", weights, v[a:b]))
    return torch.cat(out) if out else torch.zeros_like(q)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_with_gaps, heads=st.integers(1, 3), features=st.sampled_from([3, 8, 20]), seed=st.integers(0, 9))
def test_performer_is_the_normalised_kernel(lengths: list[int], heads: int, features: int, seed: int) -> None:
    segments = segments_of(lengths)
    q, k, v = random_qkv(sum(lengths), heads, 8, seed)
    projection = torch.randn(features, 8, generator=torch.Generator().manual_seed(seed))
    ours = performer_attention(q, k, v, segments, segments, projection)
    theirs = dense_performer(q, k, v, projection, segments)
    assert_near(ours, theirs)
    if ours.numel():
        a = torch.autograd.grad(ours.square().sum(), [q, k, v])
        b = torch.autograd.grad(theirs.square().sum(), [q, k, v])
        for x, y in zip(a, b, strict=True):
            assert_near(x, y, 2e-5)


def test_performer_features_approximate_the_softmax() -> None:
    model = small_model(small_stack(attention="performer", n_features=5000, head_dim=6))
    segments = segments_of([12])
    q, k, v = (x.detach() * 0.5 for x in random_qkv(12, 4, 6, 0))
    projection = model.encoder.layers[0].projection
    ours = performer_attention(q, k, v, segments, segments, projection)
    exact = dense_attention(q, k, v, same_cell(segments))
    assert (ours - exact).abs().max() < 0.15 * exact.abs().max()


def test_performer_refuses_query_only_tokens() -> None:
    model = small_model(small_stack(attention="performer", n_features=10))
    with pytest.raises(ConfigError, match="no query-only tokens"):
        model(ragged_batch((2, 1), keys=torch.tensor([True, False, True]).numpy()))


LONG_CELL = """
import resource, sys
import torch
from scfm.transformer import Segments, StackSpec
from scfm.transformer._layers import Block, Route
from scfm.transformer._packing import pack
import numpy as np

torch.set_num_threads(1)
block = Block(StackSpec(1, 200, 10, 64, 800, norm="pre", attention="performer", n_features=266)).eval()
torch.nn.init.normal_(block.projection)
x = torch.randn(int(sys.argv[1]), 200)
route = Route(pack({}, np.array([0, len(x)])), "packed_sdpa")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.inference_mode():
    block(x, route)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_a_performer_layer_over_17000_genes_stays_below_a_gigabyte() -> None:
    """The peak of the process counts in full pages what torch allocates; a softmax matrix would take 11 GB."""
    done = subprocess.run([sys.executable, "-c", LONG_CELL, "17000"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9


def test_an_unknown_implementation_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown attn_implementation 'fast'; there are eager, sdpa"):
        choose("fast", CPU, torch.float32)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_what_runs_here_is_used(name: str) -> None:
    assert choose(name, CPU, torch.float32) == ATTENTION_NAMES[name]
    assert choose(None, CPU, torch.float32) == "packed_sdpa"


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "flash_attention_3"])
def test_what_is_missing_falls_back_with_one_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    batch = ragged_batch()
    expected = model(batch)
    model.config._attn_implementation = name
    with caplog.at_level(logging.WARNING, logger="scfm"):
        for _ in range(3):
            torch.testing.assert_close(model(batch), expected, rtol=0, atol=0)
    lines = [r.getMessage() for r in caplog.records]
    assert lines == [f"attn_implementation={name!r} is not available here (it needs a CUDA device); using 'sdpa'"]


def test_the_offsets_of_cells_select_and_rank_tokens() -> None:
    segments = segments_of([2, 0, 3, 3, 1])
    assert segments.rank.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0]
    assert segments.cell.tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 4]
    assert segments.runs == [(0, 1, 2), (1, 1, 0), (2, 2, 3), (4, 1, 1)]
    assert [x.tolist() for x in segments.first] == [[0, 2, 5, 8], [0, 2, 3, 4]]
    keep = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool).numpy()
    assert segments.select(keep).offsets.tolist() == offsets_of([1, 0, 0, 3, 1]).tolist()
