"""UCE gives the numbers of the authors' code, one cell at a time, on the recorded case."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from golden_cases import arrays, assert_close, case, tokens_of
from torch.nn import functional as F

import scfm
from scfm.models._reading import read_tensors
from scfm.models._run import to_batch
from scfm.models.families._uce_genes import species_in

GROUPS = {"hf_": "human", "hn_": "human", "mo_": "mouse", "ck_": "chicken"}
CELLS = {"human": "cells.h5ad", "mouse": "cells_mouse.h5ad", "chicken": "cells_chicken.h5ad"}


@pytest.fixture(scope="module")
def golden():
    return arrays("uce")


@pytest.fixture(scope="module")
def config():
    return json.loads((case("uce") / "config.json").read_text())


def load():
    return scfm.models.load(case("uce") / "checkpoint")


@pytest.fixture
def model():
    return load()


@pytest.fixture(params=GROUPS)
def group(request, golden):
    """A recorded group of cells, and the model with the genes of their species."""
    species = GROUPS[request.param]
    recorded = {k.removeprefix(request.param): v for k, v in golden.items() if k.startswith(request.param)}
    return recorded, load().for_context({"species": species})


def ids_of(model, rows):
    """Vocabulary ids of rows of the authors' token table."""
    place = {int(row): i for i, row in enumerate(model.tokenizer.rows)}
    return np.vectorize(place.__getitem__, otypes=[np.int32])(rows)


def sentences(model, rows, lengths):
    return tokens_of(ids_of(model, rows), lengths)


# cell embeddings


def test_golden_uce_cell_embeddings_of_every_species(group):
    recorded, model = group
    ours = model.embed_cells(sentences(model, recorded["tokens"], recorded["length"]))
    assert_close(ours, recorded["emb_single"])
    assert_close(ours, recorded["emb_batched_inf_mask"])
    assert_close(np.linalg.norm(ours, axis=1), np.ones(len(ours)))


def test_golden_uce_official_batches_are_right_for_the_longest_cells(group, config):
    # padding is attended there, so a cell differs from itself alone unless it is the longest of its batch
    recorded, model = group
    ours = model.embed_cells(sentences(model, recorded["tokens"], recorded["length"]))
    lengths, size = recorded["length"], config["batch_size"]
    longest = np.concatenate(
        [lengths[i : i + size] == lengths[i : i + size].max() for i in range(0, len(lengths), size)]
    )
    assert_close(ours[longest], recorded["emb_official_batched"][longest])
    if not longest.all():
        assert np.abs(ours - recorded["emb_official_batched"])[~longest].max() > 1e-3


def test_golden_uce_from_counts_to_embedding(group, golden):
    # the draws are the authors', everything before and after them is ours
    recorded, model = group
    adata = anndata.read_h5ad(case("uce") / CELLS[model.vocabulary.species])
    adata = adata[recorded["obs_names"], recorded["var_names"]].copy()
    source = scfm.counts.find(adata)
    match = scfm.genes.match(source.var, model.vocabulary, policy="published")
    (block,) = source.blocks(adata.n_obs)
    chromosomes = sorted({int(row) for row in recorded["tokens"].ravel()} & chromosome_rows(model))
    codes = np.unique(recorded["gene_chrom_code"])
    first = chromosomes[0] - codes[np.isin(codes, recorded["chrom_order"])].min()
    order = np.where(
        recorded["chrom_order"] < 0, -1, ids_of(model, np.maximum(recorded["chrom_order"], codes.min()) + first)
    )
    draws = {"genes": match.columns[recorded["choice_idx"]], "chromosomes": order}
    tokens = model.tokenizer.tokenize_block(block, match, draws=draws)
    np.testing.assert_array_equal(tokens.lengths, recorded["length"])
    assert_close(model.embed_cells(tokens), recorded["emb_single"])


def chromosome_rows(model):
    specials = model.vocabulary.specials
    return {int(model.tokenizer.rows[i]) for role, i in specials.items() if role.startswith("chromosome ")}


# states


def test_golden_uce_states_of_a_cell_alone(golden, model):
    tokens = sentences(model, golden["hf_tokens"], golden["hf_length"])[1]
    states = model.hidden_states(tokens)
    assert_close(states[model.transformer.n_layers], golden["hf_s1_layer_last"])
    assert_close(states[-1], golden["hf_s1_gene_output"])


def test_golden_uce_input_and_the_states_of_the_longest_cells_of_an_official_batch(golden, model):
    n = len(golden["hf_b0_mask"])
    lengths = golden["hf_length"][:n]
    np.testing.assert_array_equal(golden["hf_b0_mask"].sum(axis=1), lengths)
    tokens = sentences(model, golden["hf_tokens"][:n], lengths)
    term = model.transformer.terms["gene"]
    with torch.inference_mode():
        unit = F.normalize(term.table[torch.as_tensor(tokens.ids).long()], dim=-1)
        encoded = term.mlp(unit)
    states = model.hidden_states(tokens)
    for i, cell in enumerate(range(n)):
        here = slice(tokens.offsets[cell], tokens.offsets[cell + 1])
        assert_close(unit[here], golden["hf_b0_input"][i, : lengths[i]])
        assert_close(encoded[here], golden["hf_b0_encoder"][i, : lengths[i]])
        assert_close(states[0][here], golden["hf_b0_pos"][i, : lengths[i]])
        if lengths[i] == lengths.max():
            for k in range(1, model.transformer.n_layers + 1):
                # the recorded states are 2e-5 away from those in double precision
                assert_close(states[k][here], golden[f"hf_b0_layer{k}"][i], tolerance=2e-5)
            assert_close(states[-1][here], golden["hf_b0_gene_output"][i])


def test_uce_gene_embedding_counts_a_cell_once(golden, model):
    tokens = sentences(model, golden["hf_tokens"], golden["hf_length"])
    genes = model.embed_genes(tokens)
    states = model.hidden_states(tokens, [-1])[-1]
    gene = int(np.bincount(tokens.ids, weights=model.vocabulary.is_gene[tokens.ids]).argmax())
    means = []
    for i in range(len(tokens)):
        here = slice(tokens.offsets[i], tokens.offsets[i + 1])
        mine = tokens.ids[here] == gene
        if mine.any():
            means.append(states[here][mine].mean(axis=0))
    row = genes.ids.tolist().index(gene)
    assert genes.n_cells[row] == len(means) < (tokens.ids == gene).sum()
    assert_close(genes.vectors[row], np.mean(means, axis=0))


# the expression head


def asked_genes(golden, model):
    return [model.vocabulary.names[i] for i in ids_of(model, golden["head_token_ids"])]


@pytest.mark.parametrize(
    ("array", "changes"),
    [
        ("head_logits_unit_protein", {}),
        ("head_logits_raw_protein", {"genes": "table"}),
        ("head_logits_raw_protein_gene_first", {"genes": "table", "gene_first": True}),
    ],
)
def test_golden_uce_is_a_gene_expressed(golden, model, array, changes):
    head = model.transformer.heads["expressed"]
    head.spec = replace(head.spec, **changes)
    tokens = sentences(model, golden["hf_tokens"], golden["hf_length"])[golden["head_cells"]]
    genes = asked_genes(golden, model)
    assert_close(model.heads["expressed"](tokens, genes=genes)[..., 0], golden[array])
    cells = golden["hf_emb_single"][golden["head_cells"]]
    assert_close(model.heads["expressed"](tokens, cells, genes)[..., 0], golden[array])
    rows = model.tokenizer.rows[[model.vocabulary.index[name] for name in genes]]
    np.testing.assert_array_equal(golden["hf_gene_token_id"][golden["head_gene_cols"]], rows)


def test_golden_uce_gene_layer_of_raw_proteins(golden, model):
    raw = model.transformer.terms["gene"].table[torch.as_tensor(ids_of(model, golden["head_token_ids"])).long()]
    with torch.inference_mode():
        assert_close(model.transformer.heads["expressed"].mlp(raw), golden["head_gene_layer_raw"])


def test_uce_head_at_the_tokens_is_the_head_of_their_genes(golden, model):
    tokens = sentences(model, golden["hf_tokens"], golden["hf_length"])[:1]
    each = model.heads["expressed"](tokens)
    genes = [model.vocabulary.names[i] for i in tokens.ids]
    assert_close(each, model.heads["expressed"](tokens, genes=genes)[0])


def test_golden_uce_pretraining_example_with_its_gradients(golden, model):
    tokens = sentences(model, golden["pt_tokens"], golden["pt_length"])
    assert_close(model.embed_cells(tokens), golden["pt_emb"])
    queries = ids_of(model, golden["hf_gene_token_id"][golden["pt_query_cols"]])
    transformer = model.transformer
    batch = to_batch(tokens)
    cells = transformer.embed(batch)
    logits = torch.stack(
        [
            transformer.head("expressed", to_batch(tokens[i]), cells[i : i + 1], torch.as_tensor(query))[0, :, 0]
            for i, query in enumerate(queries)
        ]
    )
    loss = F.binary_cross_entropy_with_logits(logits, torch.as_tensor(golden["pt_labels"]).float())
    loss.backward()
    assert_close(logits.detach(), golden["pt_logits_unit_protein"])
    assert_close(loss.detach(), golden["pt_loss"])
    gradients = {
        "encoder.0.weight": transformer.terms["gene"].mlp.linears[0].weight,
        "transformer_encoder.layers.0.self_attn.in_proj_weight": transformer.encoder.layers[0].qkv.weight,
        "gene_embedding_layer.0.bias": transformer.heads["expressed"].mlp.linears[0].bias,
        "decoder.3.bias": transformer.output.linears[-1].bias,
    }
    assert {f"pt_grad:{name}" for name in gradients} == {name for name in golden if name.startswith("pt_grad:")}
    for name, parameter in gradients.items():
        assert_close(parameter.grad, golden[f"pt_grad:{name}"])


# species


def test_golden_uce_a_species_is_added_from_proteins_and_places(golden, config, model):
    folder = case("uce") / "checkpoint" / "model_files"
    proteins = read_tensors(next(folder.glob("protein_embeddings/Gallus*")))
    places = pd.read_csv(folder / "chicken_to_chrom_pos.csv", dtype={"chromosome": str})
    made = scfm.models.add_species(model, "chicken", proteins, places, seed=config["chicken"]["taxonomy_id"])
    read = model.for_context({"species": "chicken"})
    assert made.tokenizer == read.tokenizer
    assert torch.equal(made.transformer.terms["gene"].table, read.transformer.terms["gene"].table)
    tokens = sentences(made, golden["ck_tokens"], golden["ck_length"])
    assert_close(made.embed_cells(tokens), golden["ck_emb_single"])


def test_uce_species_of_a_call_picks_the_genes(model):
    mouse = anndata.read_h5ad(case("uce") / CELLS["mouse"])
    scfm.tl.embed(mouse, model, context={"species": "mouse"}, key_added="x", progress=False)
    assert np.isfinite(mouse.obsm["X_x"]).all()
    assert model.vocabulary.species == "human"
    other = model.for_context({"species": "mouse"})
    assert other.vocabulary.species == "mouse"
    assert other.for_context({"species": "human"}).tokenizer == model.tokenizer
    shared = other.transformer.encoder.layers[0].qkv.weight
    assert shared.data_ptr() == model.transformer.encoder.layers[0].qkv.weight.data_ptr()


@pytest.mark.parametrize("species", ["axolotl", ["mouse", "human"]])
def test_uce_unknown_species_is_an_error_that_lists_the_valid_ones(model, species):
    mouse = anndata.read_h5ad(case("uce") / CELLS["mouse"])
    with pytest.raises(scfm.errors.ConfigError, match=r"has the genes of human, mouse"):
        scfm.tl.embed(mouse, model, context={"species": species}, progress=False)


def test_uce_averages_several_sentences_of_a_cell(model):
    adata = anndata.read_h5ad(case("uce") / CELLS["human"])
    for seed in range(3):
        scfm.tl.embed(adata, model, seed=seed, key_added=f"s{seed}", progress=False)
    scfm.tl.embed(adata, model, n_samples=3, key_added="mean", progress=False)
    each = np.stack([adata.obsm[f"X_s{seed}"] for seed in range(3)])
    mean = each.mean(axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert_close(adata.obsm["X_mean"], mean)
    assert_close(adata.obs["mean_spread"], 1 - (each * mean).sum(axis=-1).mean(axis=0))
    assert (adata.obs["mean_spread"].dropna() > 0).all()
    assert "s0_spread" not in adata.obs
    scfm.tl.embed(adata, model, key_added="mean", progress=False)
    assert "mean_spread" not in adata.obs
    with pytest.raises(scfm.errors.ConfigError, match="at least one sample"):
        scfm.tl.embed(adata, model, n_samples=0, progress=False)


def test_uce_keeps_cells_without_genes_as_nan(model):
    adata = anndata.read_h5ad(case("uce") / CELLS["human"])
    scfm.tl.embed(adata, model, key_added="x", progress=False)
    empty = np.asarray(adata[:, adata.var["in_vocab"].to_numpy(dtype=bool)].X.sum(axis=1)).ravel() == 0
    assert empty.any()
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_x"]).any(axis=1), empty)


def test_uce_symbols_that_differ_in_case_only_are_one_gene(model):
    table = read_tensors(next((case("uce") / "checkpoint").rglob("Homo_sapiens*")))
    twice = [name for name in table if name.upper() != name and name.upper() in table]
    assert twice
    for name in twice:
        row = model.transformer.terms["gene"].table[model.vocabulary.index[name.upper()]]
        last = [v for k, v in table.items() if k.upper() == name.upper()][-1]
        torch.testing.assert_close(row, last)


# files


@pytest.mark.parametrize("species", ["human", "mouse", "chicken"])
def test_golden_uce_own_layout_gives_identical_results(model, species, tmp_path):
    model = model.for_context({"species": species})
    model.save_pretrained(tmp_path)
    again = scfm.models.load(tmp_path)
    tokens = model.tokenize(case("uce") / CELLS[species])
    ours, theirs = model.transformer.state_dict(), again.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # the last bit may depend on where in memory a weight lies
    assert_close(again.embed_cells(tokens), model.embed_cells(tokens), tolerance=1e-6)
    assert_close(again.heads["expressed"](tokens), model.heads["expressed"](tokens), tolerance=1e-6)
    assert again.tokenizer == model.tokenizer
    assert again.card == model.card
    for specs in ("term_specs", "head_specs", "readout_specs", "stack_spec", "output_spec"):
        assert getattr(again.config, specs) == getattr(model.config, specs)


def test_golden_uce_constants_that_the_arrays_hardly_show(model, config):
    spec = model.config.term_specs["gene"]
    assert spec.frozen and spec.unit and spec.scale == model.transformer.width**0.5
    assert spec.mlp.end == ("gelu", "norm")
    assert model.config.stack_spec.activation == "relu"
    assert model.config.stack_spec.dropout == config["dropout"]
    assert model.tokenizer.n_draws == config["sample_size"]


def writable(tmp_path):
    shutil.copytree(case("uce") / "checkpoint", tmp_path / "checkpoint")
    shutil.copyfile(case("uce") / "config.json", tmp_path / "config.json")
    folder = tmp_path / "checkpoint" / "model_files"
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    return folder


def test_uce_weight_sets_are_told_apart_by_their_file_names(tmp_path):
    folder = writable(tmp_path)
    name = next(p for p in folder.glob("*layer*.torch"))
    shutil.copyfile(name, folder / "another.torch")
    with pytest.raises(scfm.errors.CheckpointError, match=rf"weight sets {name.stem}, another|another, {name.stem}"):
        scfm.models.load(tmp_path / "checkpoint")
    assert (
        scfm.models.load(tmp_path / "checkpoint", checkpoint="another").transformer.n_layers
        == load().transformer.n_layers
    )


def test_uce_species_without_its_protein_table_is_not_offered(tmp_path):
    folder = writable(tmp_path)
    next(folder.glob("protein_embeddings/Homo_sapiens*")).unlink()
    model = scfm.models.load(tmp_path / "checkpoint")
    assert model.vocabulary.species == "mouse"
    assert "human" not in model.species
    shutil.rmtree(folder / "protein_embeddings")
    with pytest.raises(scfm.errors.CheckpointError, match=r"none of the protein tables.*figshare"):
        scfm.models.load(tmp_path / "checkpoint")


def test_uce_number_of_heads_must_be_known(tmp_path):
    writable(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(scfm.errors.CheckpointError, match="number of attention heads is not known"):
        scfm.models.load(tmp_path / "checkpoint")


def test_uce_chromosomes_of_another_release_are_noticed(tmp_path):
    folder = writable(tmp_path)
    places = pd.read_csv(folder / "species_chrom.csv")
    more = pd.DataFrame(
        {"gene_symbol": "X", "chromosome": [f"scaffold{i}" for i in range(40)], "start": 1, "species": "pig"}
    )
    pd.concat([places, more]).to_csv(folder / "species_chrom.csv", index=False)
    with pytest.raises(scfm.errors.CheckpointError, match="different releases"):
        scfm.models.load(tmp_path / "checkpoint")


def test_uce_archive_in_the_place_of_weights_is_named(tmp_path):
    folder = writable(tmp_path)
    weights = next(folder.glob("*layer*.torch"))
    weights.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 300)
    with pytest.raises(scfm.errors.CheckpointError, match=r"\.torch is a tar archive"):
        scfm.models.load(tmp_path / "checkpoint")


def test_uce_species_are_found_by_the_files_of_the_authors(config):
    folder = case("uce") / "checkpoint" / "model_files"
    found = species_in(folder, next(folder.glob("*layer*.torch")), config["sample_size"])
    assert next(iter(found)) == "human"
    assert "chicken" in found
    assert not found["chicken"].in_weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, p: (v, p.drop(columns="start")), "no column start"),
        (lambda v, p: ({k: x[:3] for k, x in v.items()}, p), r"shapes \(3,\)"),
        (lambda v, p: ({}, p), "shapes none"),
    ],
)
def test_uce_added_species_must_fit(model, change, message):
    folder = case("uce") / "checkpoint" / "model_files"
    proteins = read_tensors(next(folder.glob("protein_embeddings/Gallus*")))
    places = pd.read_csv(folder / "chicken_to_chrom_pos.csv", dtype={"chromosome": str})
    with pytest.raises(scfm.errors.ConfigError, match=message):
        scfm.models.add_species(model, "chicken", *change(proteins, places))


def test_only_models_of_fixed_gene_vectors_take_other_genes(model):
    mini = scfm.models.load("scfm-mini")
    with pytest.raises(scfm.errors.ConfigError, match="does not read proteins"):
        scfm.models.add_species(mini, "chicken", {}, pd.DataFrame())
    with pytest.raises(scfm.errors.ConfigError, match="knows no others"):
        scfm.models.with_genes(mini, model.tokenizer, torch.zeros(3, 3))
    with pytest.raises(scfm.errors.ConfigError, match="has shape"):
        scfm.models.with_genes(model, model.tokenizer, torch.zeros(3, 3))


def test_heads_that_read_no_genes_are_not_asked_for_some(golden, model):
    niche = scfm.models.load(case("nicheformer") / "checkpoint")
    tokens = tokens_of(np.array([[5, 7, 3, 40, 41]]), np.array([5]))
    with pytest.raises(scfm.errors.ConfigError, match="does not read genes"):
        niche.heads["mlm"](tokens, genes=list(niche.vocabulary.names[-2:]))
    one = sentences(model, golden["hf_tokens"], golden["hf_length"])[:1]
    with pytest.raises(scfm.errors.GeneMatchError, match="not in the vocabulary"):
        model.heads["expressed"](one, genes=["no such gene"])
