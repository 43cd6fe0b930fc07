"""Batches by a token budget: every cell once, in the order asked, whatever happens to memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfm.models._run import Budget, plan, run
from scfm.tokenizers import Tokens

CPU = torch.device("cpu")


def ragged(lengths) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(ids=np.arange(offsets[-1], dtype=np.int32), offsets=offsets)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120))
def test_every_cell_is_in_one_batch_and_no_batch_is_over_budget(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan(lengths, budget)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == [*range(len(lengths))]
    assert all(len(b) == 1 or lengths[b].sum() <= budget for b in batches)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
def test_results_belong_to_their_cells(lengths, budget):
    tokens = ragged(lengths)
    seen = {}
    for cells, part, total in run(tokens, lambda b: b.channels["ids"].sum(), Budget(budget, CPU), CPU):
        assert int(total) == int(part.ids.sum())
        for i, cell in enumerate(cells):
            seen[int(cell)] = part[i].ids.tolist()
    assert seen == {i: tokens[i].ids.tolist() for i, n in enumerate(lengths) if n > 0}


def test_a_device_out_of_memory_gets_smaller_batches_and_loses_no_cell(caplog):
    tokens = ragged([300] * 20)

    def small_device(batch):
        if batch.n_tokens > 700:
            raise torch.OutOfMemoryError("out of memory")
        return batch.n_cells

    budget = Budget(4000, CPU)
    with caplog.at_level(logging.WARNING, logger="scfm"):
        done = [int(c) for cells, _, _ in run(tokens, small_device, budget, CPU) for c in cells]
    assert sorted(done) == [*range(20)]
    assert budget.tokens < 700
    assert "ran out of memory" in caplog.text


def test_one_cell_that_does_not_fit_is_an_error():
    def no_room(batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        next(run(ragged([500]), no_room, Budget(4000, CPU), CPU))
