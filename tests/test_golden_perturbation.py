"""Genes removed from, or put in front of, a cell's list shift its embedding as in Geneformer's own code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_cases import arrays, assert_close, case

import scfm
from scfm.models._perturbation import Perturber
from scfm.tokenizers import Tokens

LAYERS = {"layer-1": -2, "layer0": -1}
"""The authors' names of layers and ours."""


class Perturbation:
    """The recorded cells of one generation of Geneformer, and what happens to their lists."""

    def __init__(self, family: str) -> None:
        checkpoint = case(family) / "checkpoint"
        self.recorded = arrays(family)
        self.model = scfm.models.load(next(p for p in sorted(checkpoint.iterdir()) if (p / "config.json").is_file()))
        self.folder: Path = case(family)
        specials = self.model.vocabulary.specials
        # <cls> stays in front and <eos> behind, where there are any
        self.front = 1 if "cls" in specials else 0
        self.back = 1 if "eos" in specials else 0
        self.lists = [row[:n] for row, n in zip(self.recorded["tokens"], self.recorded["length"], strict=True)]
        self.longest = self.recorded["tokens"].shape[1]

    def genes(self, ids: np.ndarray) -> np.ndarray:
        return ids[self.front : len(ids) - self.back]

    def around(self, ids: np.ndarray, genes: np.ndarray) -> np.ndarray:
        return np.concatenate([ids[: self.front], genes, ids[len(ids) - self.back :]])

    def delete(self, ids: np.ndarray, gene: int) -> np.ndarray:
        return ids[ids != gene]

    def overexpress(self, ids: np.ndarray, gene: int) -> np.ndarray:
        moved = np.concatenate([[gene], self.delete(self.genes(ids), gene)])
        return self.around(ids, moved[: self.longest - self.front - self.back])

    def original(self, ids: np.ndarray, gene: int) -> np.ndarray:
        """What the authors compare with: cut by the overflow, which counts an absent gene twice."""
        overflow = max(0, len(self.overexpress(ids, gene)) + int(gene not in ids) - self.longest)
        genes = self.genes(ids)
        return self.around(ids, genes[: len(genes) - overflow])

    def states(self, lists: list[np.ndarray], layer: int) -> list[np.ndarray]:
        tokens = packed(lists)
        hidden = self.model.hidden_states(
            tokens, [layer if layer == -1 else self.model.transformer.n_layers + 1 + layer]
        )
        (states,) = hidden.values()
        return [states[a:b] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]

    def gene_cosines(self, before: np.ndarray, after: np.ndarray, gene: int, states) -> dict[int, float]:
        """Cosine of each remaining gene's state before and after."""
        old, new = (dict(zip(ids, x, strict=True)) for ids, x in zip((before, after), states, strict=True))
        remaining = [t for t in self.genes(before) if t != gene and t in new]
        return {int(t): cosine(old[t], new[t]) for t in remaining}

    def cell_value(self, before: np.ndarray, after: np.ndarray, gene: int, states) -> float:
        if self.front:
            return cosine(states[0][0], states[1][0])
        return float(np.mean([*self.gene_cosines(before, after, gene, states).values()]))

    def embedding(self, states: np.ndarray) -> np.ndarray:
        return states[0] if self.front else states.mean(axis=0)


def packed(lists: list[np.ndarray]) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return Tokens(ids=np.concatenate(lists).astype(np.int32), offsets=offsets)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture(scope="module", params=["geneformer_v1", "geneformer_v2"])
def case_of(request):
    return Perturbation(request.param)


def pairs(perturbation: Perturbation, kind: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Lists before and after, of the cells that take part."""
    gene = int(perturbation.recorded["isp_target_token"])
    lists = dict(enumerate(perturbation.lists))
    if kind == "delete":
        return {i: (x, perturbation.delete(x, gene)) for i, x in lists.items() if gene in x}
    return {i: (perturbation.original(x, gene), perturbation.overexpress(x, gene)) for i, x in lists.items()}


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_perturbed_lists(case_of, kind):
    recorded, changed = case_of.recorded, pairs(case_of, kind)
    lengths = recorded[f"isp_{kind}_lengths"]
    assert [*changed] == [*np.flatnonzero(lengths)]
    for i, (before, after) in changed.items():
        np.testing.assert_array_equal(after, recorded[f"isp_{kind}_tokens"][i, : lengths[i]])
        if kind == "overexpress":
            n = recorded["isp_overexpress_original_lengths"][i]
            np.testing.assert_array_equal(before, recorded["isp_overexpress_original_tokens"][i, :n])


@pytest.mark.parametrize("layer", [*LAYERS])
@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_effect_of_a_perturbation(case_of, kind, layer):
    gene = int(case_of.recorded["isp_target_token"])
    expected = case_of.recorded[f"isp_{kind}_cos_{layer}"]
    ours = np.full(len(expected), np.nan)
    for i, (before, after) in pairs(case_of, kind).items():
        ours[i] = case_of.cell_value(before, after, gene, case_of.states([before, after], LAYERS[layer]))
    assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_shift_towards_a_state(case_of, kind):
    import anndata

    recorded = case_of.recorded
    disease = anndata.read_h5ad(case_of.folder / "cells.h5ad").obs["disease"].to_numpy()[recorded["cell_index"]]
    ours = {state: np.full(len(disease), np.nan) for state in ("case", "ctrl")}
    for i, lists in pairs(case_of, kind).items():
        if disease[i] == "case":
            before, after = map(case_of.embedding, case_of.states([*lists], LAYERS["layer-1"]))
            for state, shift in ours.items():
                goal = recorded[f"state_emb_{state}"]
                shift[i] = cosine(after, goal) - cosine(before, goal)
    for state, shift in ours.items():
        assert_close(shift, recorded[f"isp_{kind}_shift_to_{state}"])


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_every_gene_in_turn(case_of, kind):
    recorded = case_of.recorded
    before = case_of.lists[int(recorded["isp_all_cell"])]
    genes = case_of.genes(before)[0 if kind == "delete" else 1 :]
    np.testing.assert_array_equal(genes, recorded[f"isp_all_{kind}_tokens"])
    affected = recorded["isp_all_affected_tokens"]
    np.testing.assert_array_equal(affected, case_of.genes(before))
    values, table = [], np.full((len(genes), len(affected)), np.nan)
    for row, gene in enumerate(genes):
        after = getattr(case_of, kind)(before, gene)
        states = case_of.states([before, after], LAYERS["layer-1"])
        values.append(case_of.cell_value(before, after, gene, states))
        shifts = case_of.gene_cosines(before, after, gene, states)
        table[row] = [shifts.get(int(t), np.nan) for t in affected]
    assert_close(values, recorded[f"isp_all_{kind}_cos"])
    if kind == "delete":
        assert_close(table, recorded["isp_all_delete_gene_cos_official"])
    else:
        assert_misattributed(table, recorded["isp_all_overexpress_gene_cos_official"])


def assert_misattributed(ours: np.ndarray, official: np.ndarray) -> None:
    """The authors' code writes each row's cosines one gene too low: the values are ours, their places are not."""
    for row, (right, wrong) in enumerate(zip(ours, official, strict=True)):
        values = right[~np.isnan(right)]
        places = np.delete(np.arange(len(right)), row + 1)[1:]
        assert_close(wrong[places], values[: len(places)])


def perturber(perturbation: Perturbation, **options) -> Perturber:
    tokens = packed(perturbation.lists)
    is_gene = perturbation.model.vocabulary.is_gene
    n_genes = np.array([is_gene[x].sum() for x in perturbation.lists])
    return Perturber(perturbation.model, replace(tokens, per_cell={"n_detected": n_genes}), **options)


@pytest.mark.parametrize("layer", [*LAYERS])
@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_effect_of_a_perturbation_in_one_call(case_of, kind, layer):
    gene = int(case_of.recorded["isp_target_token"])
    effect = perturber(case_of, hidden_layer=LAYERS[layer]).apply((gene,), kind)
    expected = case_of.recorded[f"isp_{kind}_cos_{layer}"]
    np.testing.assert_array_equal(effect.cells, np.flatnonzero(~np.isnan(expected)))
    assert_close(effect.cosine, expected[effect.cells])


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_golden_shift_towards_a_state_in_one_call(case_of, kind):
    recorded = case_of.recorded
    states = {state: recorded[f"state_emb_{state}"] for state in ("case", "ctrl")}
    gene = int(recorded["isp_target_token"])
    effect = perturber(case_of, hidden_layer=-2, towards=states).apply((gene,), kind)
    for state, ours in effect.shifts.items():
        expected = recorded[f"isp_{kind}_shift_to_{state}"][effect.cells]
        there = ~np.isnan(expected)  # the authors look at the cells of one state only
        assert there.any()
        assert_close(ours[there], expected[there])


def test_a_cell_that_is_nearly_full_loses_no_gene_to_one_more(case_of):
    """The authors' code counts an absent gene twice, and takes a gene of such a cell away on one side."""
    whole = next(x for x in case_of.lists if len(x) == case_of.longest)
    nearly = case_of.around(whole, case_of.genes(whole)[:-1])
    gene = next(i for i in np.flatnonzero(case_of.model.vocabulary.is_gene) if i not in whole)
    case_of.lists, lists = [nearly], case_of.lists
    try:
        effect = perturber(case_of).apply((int(gene),), "overexpress")
    finally:
        case_of.lists = lists
    after = case_of.overexpress(nearly, gene)
    assert len(after) == case_of.longest
    states = case_of.states([nearly, after], case_of.model.config.hidden_layer)
    assert_close(effect.cosine, [case_of.cell_value(nearly, after, gene, states)])
