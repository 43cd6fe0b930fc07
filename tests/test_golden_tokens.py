"""The token arrays of every recorded published system, from its own files, counts and recorded draws."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm import genes
from scfm.counts import CountBlock
from scfm.tokenizers import LogValues, QuantileBins, Tokens, families, quantile_bins
from scfm.tokenizers._cells import Slots, gather

GOLDEN = Path(os.environ.get("SCFM_GOLDEN", Path(__file__).parent / "golden"))


def case(family: str) -> Path:
    folder = GOLDEN / family / "tiny"
    if not folder.is_dir():
        pytest.skip(f"no recorded case of {family} in {GOLDEN}")
    return folder


def arrays(folder: Path) -> dict[str, Any]:
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def block(matrix: Any) -> CountBlock:
    csr = sp.csr_matrix(matrix)
    data = csr.data.astype(np.float64 if csr.dtype == np.float64 else np.float32)
    return CountBlock(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), data, csr.shape[1])


def match(names: Any, vocabulary: genes.GeneVocabulary) -> Any:
    return genes.match(pd.DataFrame(index=pd.Index(np.asarray(names, dtype=str))), vocabulary, policy="published")


def padded(values: Any, offsets: np.ndarray, width: int, fill: float) -> np.ndarray:
    out = np.full((len(offsets) - 1, width), fill, dtype=np.asarray(values).dtype)
    for i, (a, b) in enumerate(pairwise(offsets)):
        out[i, : b - a] = values[a:b]
    return out


def dense(tokens: Tokens, values: np.ndarray, width: int) -> np.ndarray:
    out = np.zeros((len(tokens), width), dtype=values.dtype)
    out[np.repeat(np.arange(len(tokens)), tokens.lengths), tokens.ids] = values
    return out


def assert_one_ulp(ours: np.ndarray, golden: np.ndarray, maxulp: int = 1) -> None:
    """float32 logarithms differ in the last bit between the machines' own libraries, whatever the code."""
    assert np.array_equal(ours == 0, golden == 0)
    np.testing.assert_array_max_ulp(ours, golden, maxulp=maxulp)


class _Numbers(pickle.Unpickler):
    """Reads dictionaries of plain values and numpy scalars, nothing else."""

    allowed = frozenset({("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not a number")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def numbers(path: Path) -> Any:
    return _Numbers(io.BytesIO(path.read_bytes())).load()


# Geneformer


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def geneformer_tokenizer(folder: Path) -> Any:
    files = folder / "checkpoint" / "geneformer"
    width = json.loads(one(folder, "checkpoint/Geneformer-*/config.json").read_text())["max_position_embeddings"]
    return families.geneformer(
        names=families.by_id(numbers(one(files, "**/token_dictionary_*.pkl"))),
        medians=numbers(one(files, "**/gene_median_dictionary_*.pkl")),
        aliases=numbers(one(files, "**/ensembl_mapping_dict_*.pkl")),
        max_length=width,
    )


@pytest.fixture(params=["geneformer_v1", "geneformer_v2"])
def geneformer(request: pytest.FixtureRequest) -> Any:
    folder = case(request.param)
    return folder, arrays(folder), geneformer_tokenizer(folder)


def test_golden_geneformer_tokens(geneformer: Any) -> None:
    folder, golden, tokenizer = geneformer
    cells = ad.read_h5ad(folder / "cells.h5ad")
    tokens = tokenizer.tokenize_block(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    np.testing.assert_array_equal(tokens.per_cell["total"], golden["n_counts"])
    with_genes = np.flatnonzero(tokens.per_cell["n_detected"])
    np.testing.assert_array_equal(with_genes, golden["cell_index"])
    kept = tokens[with_genes]
    np.testing.assert_array_equal(kept.lengths, golden["length"])
    np.testing.assert_array_equal(padded(kept.ids, kept.offsets, golden["tokens"].shape[1], 0), golden["tokens"])
    width = golden["attention_mask"].shape[1]
    np.testing.assert_array_equal(np.arange(width) < kept.lengths[:, None], golden["attention_mask"])


def test_golden_geneformer_ranking_is_bit_equal(geneformer: Any) -> None:
    folder, golden, tokenizer = geneformer
    cells = ad.read_h5ad(folder / "cells.h5ad")
    ranking = tokenizer.ranking(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    ranking = ranking[np.flatnonzero(ranking.lengths)]
    np.testing.assert_array_equal(ranking.lengths, golden["rank_length_full"])
    width = golden["rank_tokens_full"].shape[1]
    np.testing.assert_array_equal(padded(ranking.ids, ranking.offsets, width, -1), golden["rank_tokens_full"])
    scores = padded(ranking.channels["score"], ranking.offsets, width, np.nan)
    np.testing.assert_array_equal(scores, golden["rank_values_full"])


def test_golden_geneformer_official_lists_differ_only_in_ties_and_explicit_zeros(geneformer: Any) -> None:
    folder, golden, tokenizer = geneformer
    cells = ad.read_h5ad(folder / "cells.h5ad")
    ranking = tokenizer.ranking(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    for row, cell in enumerate(golden["cell_index"]):
        official = golden["official_rank_tokens_full"][row][: golden["official_rank_length_full"][row]]
        ours = ranking[int(cell)]
        score = dict(zip(ours.ids, ours.channels["score"], strict=True))
        found = np.array([score.get(t, 0.0) for t in official])
        np.testing.assert_array_equal(found[: len(score)], ours.channels["score"])
        assert not found[len(score) :].any()


def test_golden_geneformer_official_inputs_agree_where_recorded_as_equal(geneformer: Any) -> None:
    folder, golden, tokenizer = geneformer
    cells = ad.read_h5ad(folder / "cells.h5ad")
    tokens = tokenizer.tokenize_block(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    ranking = tokenizer.ranking(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    for row, cell in enumerate(golden["cell_index"]):
        ours = tokens[int(cell)].ids
        official = golden["official_tokens"][row][: golden["official_length"][row]]
        assert (not np.array_equal(ours, official)) == golden["official_differs"][row]
        assert (set(ours) == set(official)) == golden["official_same_set"][row]
        per_10k = ranking[int(cell)].channels["score"] * tokenizer.scale[0][ranking[int(cell)].ids]
        counts = dict(zip(ranking[int(cell)].ids, per_10k, strict=True))
        np.testing.assert_allclose(
            golden["official_counts_column"][row][: len(official)], [counts.get(t, 0.0) for t in official], rtol=1e-6
        )


def test_golden_geneformer_sums_duplicated_ids(geneformer: Any) -> None:
    folder, golden, tokenizer = geneformer
    cells = ad.read_h5ad(folder / "cells_duplicates.h5ad")
    ranking = tokenizer.ranking(block(cells.X), match(cells.var["ensembl_id"], tokenizer.vocabulary))
    width = golden["dup_summed_rank_tokens"].shape[1]
    fill = golden["dup_summed_rank_tokens"].min(initial=0)
    np.testing.assert_array_equal(padded(ranking.ids, ranking.offsets, width, fill), golden["dup_summed_rank_tokens"])
    scores = padded(ranking.channels["score"], ranking.offsets, width, np.nan)
    np.testing.assert_allclose(scores, golden["dup_summed_rank_values"], rtol=2e-7)


# Nicheformer


@pytest.fixture(scope="module")
def nicheformer() -> Any:
    folder = case("nicheformer")
    golden = arrays(folder)
    names = ad.read_h5ad(folder / "model_means" / "model.h5ad").var_names
    means = {p.name.removesuffix("_mean_script.npy"): np.load(p) for p in (folder / "model_means").glob("*.npy")}
    table = pd.read_csv(folder / "orthologs.csv").dropna().drop_duplicates("Gene stable ID")
    orthologues = dict(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))
    width = json.loads((folder / "checkpoint_hf" / "config.json").read_text())["context_length"]
    tokenizer = families.nicheformer(list(names), means, max_length=width, orthologues=orthologues)
    matrices, obs = [], []
    for name in ("cells.h5ad", "mouse_cells.h5ad"):
        cells = ad.read_h5ad(folder / name)
        matrices.append((block(cells.X), match(cells.var_names, tokenizer.vocabulary)))
        obs.append(cells.obs)
    return golden, tokenizer, matrices, obs, means


def niche_context(obs: pd.DataFrame) -> dict[str, Any]:
    return {"species": obs["organism"], "assay": obs["assay"], "modality": obs["modality"]}


def niche_tokens(tokenizer: Any, matrices: Any, obs: Any, ranking: bool = False) -> list[Tokens]:
    run = tokenizer.ranking if ranking else tokenizer.tokenize_block
    return [run(b, m, context=niche_context(o)) for (b, m), o in zip(matrices, obs, strict=True)]


def test_golden_nicheformer_technology_scales(nicheformer: Any) -> None:
    golden, _, _, _, means = nicheformer
    for name, mean in means.items():
        np.testing.assert_array_equal(families.technology_scale(mean), golden[f"mean_used_{name}"])


def test_golden_nicheformer_scores_are_bit_equal(nicheformer: Any) -> None:
    golden, tokenizer, matrices, obs, _ = nicheformer
    first = families.NICHEFORMER_GENES_FROM
    width = len(tokenizer.vocabulary)
    ranked = niche_tokens(tokenizer, matrices, obs, ranking=True)
    scores = np.concatenate([dense(t, t.channels["score"], width)[:, first:] for t in ranked])
    np.testing.assert_array_equal(scores, golden["scores"])
    np.testing.assert_array_equal(
        np.concatenate([t.per_cell["n_detected"] for t in ranked]), golden["n_genes_detected"]
    )
    aligned = []
    for b, m in matrices:
        slots = Slots.of(m, tokenizer.vocabulary)
        cells = gather(b, slots)
        table = np.zeros((b.n_cells, width), dtype=np.float32)
        table[cells.rows, cells.slots] = cells.counts
        aligned.append(table[:, first:])
    np.testing.assert_array_equal(np.concatenate(aligned), golden["X_aligned"])


@pytest.mark.parametrize(("ties", "array"), [("quicksort", "tokens"), ("id", "tokens_stable_sort")])
def test_golden_nicheformer_tokens(nicheformer: Any, ties: Any, array: str) -> None:
    golden, tokenizer, matrices, obs, _ = nicheformer
    goal = golden[array]
    tokens = niche_tokens(replace(tokenizer, ties=ties), matrices, obs)
    n_context = len(tokenizer.context)
    longest = tokenizer.max_length - n_context
    ours = np.concatenate([padded(t.ids, t.offsets, tokenizer.max_length, 0) for t in tokens])
    np.testing.assert_array_equal(ours[:, n_context:], goal[:, :longest])
    for i, name in enumerate(("specie", "assay", "modality")):
        np.testing.assert_array_equal(ours[:, i], golden[name])
    ranked = niche_tokens(replace(tokenizer, ties=ties), matrices, obs, ranking=True)
    uncut = np.concatenate(
        [padded(t.ids, t.offsets, int(goal.shape[1] + t.lengths.max()), 0)[:, : goal.shape[1]] for t in ranked]
    )
    np.testing.assert_array_equal(uncut, goal)


def test_golden_nicheformer_model_input(nicheformer: Any) -> None:
    golden, tokenizer, matrices, obs, _ = nicheformer
    tokens = niche_tokens(replace(tokenizer, ties="quicksort"), matrices, obs)
    pad = tokenizer.vocabulary.specials["pad"]
    ours = np.concatenate([padded(t.ids, t.offsets, tokenizer.max_length, pad) for t in tokens])
    np.testing.assert_array_equal(ours, golden["input_ids"])
    np.testing.assert_array_equal(ours == pad, golden["key_padding_mask"])


def test_golden_nicheformer_hub_input_without_technology_mean(nicheformer: Any) -> None:
    golden, tokenizer, matrices, obs, _ = nicheformer
    flat = replace(tokenizer, scale=np.ones_like(tokenizer.scale), ties="quicksort")
    tokens = niche_tokens(flat, matrices, obs)
    for array, fill in (("hf_input_ids", 0), ("hf_input_ids_pad1", 1)):
        ours = np.concatenate([padded(t.ids, t.offsets, tokenizer.max_length, fill) for t in tokens])
        np.testing.assert_array_equal(ours, golden[array])
    np.testing.assert_array_equal(ours != fill, golden["hf_attention_mask"])


# scGPT


@pytest.fixture(scope="module")
def scgpt() -> Any:
    folder = case("scgpt")
    golden = arrays(folder)
    cells = ad.read_h5ad(folder / "cells.h5ad")
    tokens = json.loads((folder / "checkpoint" / "pretrained" / "vocab.json").read_text())
    return golden, cells, tokens


def test_golden_scgpt_bins_and_edges_of_single_rows(scgpt: Any) -> None:
    golden, _, _ = scgpt
    rows = sorted({name.rsplit(".", 1)[0] for name in golden if name.startswith("binning.")})
    assert rows
    for row in rows:
        case_name, n_bins = row.rsplit(".n", 1)
        values = golden[f"{case_name}.n51.input"]
        draws = golden.get(f"{row}.rand")
        random, edges = quantile_bins(values, int(n_bins), draws=draws)
        np.testing.assert_array_equal(random, golden[f"{row}.out"])
        highest, _ = quantile_bins(values, int(n_bins))
        if f"{row}.out_oneside" in golden:
            np.testing.assert_array_equal(highest, golden[f"{row}.out_oneside"])
            np.testing.assert_array_equal(edges, golden[f"{row}.edges"])


def _order_rows(golden: dict[str, Any], name: str, cut_cells: np.ndarray, n_cells: int) -> np.ndarray:
    order = np.full((n_cells, golden[name].shape[1]), -1)
    order[cut_cells] = golden[name]
    return order


def test_golden_scgpt_zero_shot_tokens(scgpt: Any) -> None:
    golden, cells, vocabulary = scgpt
    max_length = int(golden["embed.max_length"])
    tokenizer = replace(families.scgpt(vocabulary, max_length), bins=QuantileBins(ties="random"))
    found = match(cells.var["feature_name"], tokenizer.vocabulary)
    np.testing.assert_array_equal(found.columns, golden["embed.id_in_vocab"])
    order = _order_rows(golden, "rand.embed_perm", golden["embed.sampled_cells"], cells.n_obs)
    tokens = tokenizer.tokenize_block(
        block(cells.X), found, draws={"ties": golden["rand.embed_binning"], "order": order}
    )
    lengths = tokens.per_cell["n_detected"] + 1
    np.testing.assert_array_equal(lengths, golden["embed.n_tokens"])
    np.testing.assert_array_equal(tokens.per_cell["n_dropped"], np.maximum(0, lengths - max_length))
    pad = tokenizer.vocabulary.specials["pad"]
    np.testing.assert_array_equal(padded(tokens.ids, tokens.offsets, max_length, pad), golden["embed.gene"])
    np.testing.assert_array_equal(padded(tokens.values, tokens.offsets, max_length, -2), golden["embed.expr"])
    batches = [
        tokens[i : i + int(golden["embed.batch_size"])] for i in range(0, len(tokens), golden["embed.batch_size"])
    ]
    np.testing.assert_array_equal([b.lengths.max() for b in batches], golden["embed.batch_seq_len"])
    first = len(golden["fwd.gene"])
    np.testing.assert_array_equal(
        padded(tokens[:first].ids, tokens[:first].offsets, max_length, pad), golden["fwd.gene"]
    )
    expr = padded(tokens[:first].values, tokens[:first].offsets, max_length, -2)
    np.testing.assert_array_equal(expr, golden["fwd.expr"])
    ids = padded(tokens[:first].ids, tokens[:first].offsets, max_length, pad)
    np.testing.assert_array_equal(ids == pad, golden["fwd.padding_mask"])


def prepared(scgpt: Any) -> tuple[dict[str, Any], ad.AnnData, Any, dict[str, int]]:
    """The recorded fine-tuning preparation: matched genes with at least three counts."""
    golden, cells, vocabulary = scgpt
    columns = match(cells.var["feature_name"], families.scgpt(vocabulary).vocabulary).columns
    enough = np.asarray(cells.X.sum(axis=0)).ravel() >= 3
    kept = np.flatnonzero((columns >= 0) & enough)
    np.testing.assert_array_equal(kept, golden["prep.kept_genes"])
    np.testing.assert_array_equal(columns[kept], golden["prep.gene_ids"])
    cells = cells[:, kept].copy()
    return golden, cells, match(cells.var["feature_name"], families.scgpt(vocabulary).vocabulary), vocabulary


def test_golden_scgpt_preparation(scgpt: Any) -> None:
    golden, cells, found, vocabulary = prepared(scgpt)
    plain = replace(families.scgpt(vocabulary, None), first={}, zeros="measured")
    shape = golden["prep.X_binned"].shape
    bins = replace(plain, bins=QuantileBins(ties="random"))
    tokens = bins.tokenize_block(block(cells.X), found, draws={"ties": golden["rand.prep"]})
    np.testing.assert_array_equal(tokens.values.reshape(shape), golden["prep.X_binned"])
    logs = replace(plain, bins=LogValues()).tokenize_block(block(cells.X), found)
    assert_one_ulp(logs.values.reshape(shape), golden["prep.X_log1p"])
    edges = [np.append(0, quantile_bins(row)[1]) for row in golden["prep.X_log1p"]]
    np.testing.assert_array_equal(edges, golden["prep.bin_edges"])
    width = golden["pert.genes"].shape[1]
    n_cells = len(golden["pert.genes"])
    np.testing.assert_array_equal(tokens.ids.reshape(shape)[:n_cells, :width], golden["pert.genes"])
    assert_one_ulp(logs.values.reshape(shape)[:n_cells, :width], golden["pert.values"])


def test_golden_scgpt_annotation_tokens(scgpt: Any) -> None:
    golden, cells, found, vocabulary = prepared(scgpt)
    width = golden["ann.genes"].shape[1]
    tokenizer = replace(families.scgpt(vocabulary, width, cls_value=0.0), bins=QuantileBins(ties="random"))
    lengths = np.asarray((cells.X > 0).sum(axis=1)).ravel()
    order = _order_rows(golden, "rand.ann_choice", lengths > width - 1, cells.n_obs)
    tokens = tokenizer.tokenize_block(block(cells.X), found, draws={"ties": golden["rand.prep"], "order": order})
    pad = tokenizer.vocabulary.specials["pad"]
    np.testing.assert_array_equal(padded(tokens.ids, tokens.offsets, width, pad), golden["ann.genes"])
    np.testing.assert_array_equal(padded(tokens.values, tokens.offsets, width, -2), golden["ann.values"])


def test_golden_scgpt_integration_tokens_with_zeros(scgpt: Any) -> None:
    golden, cells, found, vocabulary = prepared(scgpt)
    width = golden["int.genes"].shape[1]
    rows = golden["int.cells"]
    tokenizer = replace(
        families.scgpt(vocabulary, width, cls_value=0.0), bins=QuantileBins(ties="random"), zeros="measured"
    )
    tokens = tokenizer.tokenize_block(
        block(cells.X[rows]), found, draws={"ties": golden["rand.prep"][rows], "order": golden["rand.int_choice"]}
    )
    np.testing.assert_array_equal(tokens.ids.reshape(len(rows), width), golden["int.genes"])
    np.testing.assert_array_equal(tokens.values.reshape(len(rows), width), golden["int.values"])


def test_golden_scgpt_generative_parts(scgpt: Any) -> None:
    golden, cells, vocabulary = scgpt
    tokenizer = families.scgpt(vocabulary, None)
    found = match(cells.var["feature_name"], tokenizer.vocabulary)
    tokens = tokenizer.tokenize_block(block(cells.X[golden["gen.cells"]]), found)
    pad = tokenizer.vocabulary.specials["pad"]
    permutations = iter(golden["rand.gen_perms"])
    seen = {
        name: (golden[f"gen.{name}_gene"], golden[f"gen.{value}"])
        for name, value in (("pcpt", "pcpt_expr"), ("gen", "gen_expr_target"))
    }
    for row, cell in enumerate(tokens):
        n = cell.n_tokens - 1
        split = next(permutations)[:n] + 1
        n_generated = int(n * golden["gen.ratio"])
        halves = {"pcpt": np.append(0, split[n_generated:]), "gen": split[:n_generated]}
        for name, at in halves.items():
            ids, values = seen[name]
            width = ids.shape[1]
            if len(at) > width:
                at = at[np.append(0, next(permutations)[: width - 1] + 1)]
            np.testing.assert_array_equal(ids[row, : len(at)], cell.ids[at])
            np.testing.assert_array_equal(values[row, : len(at)], cell.values[at])
            assert (ids[row, len(at) :] == pad).all()


# scBERT


def test_golden_scbert_tokens() -> None:
    folder = case("scbert")
    golden = arrays(folder)
    reference = ad.read_h5ad(folder / "checkpoint" / "panglao_10000.h5ad").var_names
    cells = ad.read_h5ad(folder / "cells.h5ad")
    tokenizer = families.scbert(list(reference))
    found = match(cells.var_names, tokenizer.vocabulary)
    tokens = tokenizer.tokenize_block(block(cells.X), found)
    np.testing.assert_array_equal(tokens.values.reshape(golden["tokens"].shape), golden["tokens"])
    np.testing.assert_array_equal(tokens.ids.reshape(golden["tokens"].shape)[0], np.arange(len(reference) + 1))
    logs = replace(tokenizer, bins=LogValues(base=2.0), last={}).tokenize_block(block(cells.X), found)
    assert_one_ulp(logs.values.reshape(golden["lognorm"].shape), golden["lognorm"], maxulp=2)


# scMulan


def test_golden_scmulan_prompts() -> None:
    torch = pytest.importorskip("torch")
    folder = case("scmulan")
    golden = arrays(folder)
    meta = torch.load(folder / "checkpoint" / "meta_info.pt", weights_only=True)
    n_levels = torch.load(folder / "checkpoint" / "ckpt_scMulan.pt", weights_only=True)["model_args"][
        "expression_level"
    ]
    listed = pd.read_csv(one(folder, "checkpoint/total_gene_list*.txt"), sep="\t")["Approved symbol"].tolist()
    candidates = scmulan_candidates(pd.read_csv(one(folder, "checkpoint/GeneSymbolRef*.csv"), index_col=0))
    aliases = {name: next(iter(found)) for name, found in candidates.items() if len(found) == 1}
    tokenizer = families.scmulan(meta["token_set"], meta["gene_set"], listed, aliases, n_levels)
    cells = ad.read_h5ad(folder / "cells.h5ad")
    found = match(cells.var_names, tokenizer.vocabulary)

    np.testing.assert_array_equal(cells.var_names, golden["gsu_query"])
    names = np.array(tokenizer.vocabulary.names)
    for query, column, status, modified in zip(
        golden["gsu_query"], found.columns, golden["gsu_status"], golden["gsu_modified"], strict=True
    ):
        expected = {"No Change": query, "Changed": modified}.get(status)
        assert (names[column] if column >= 0 else None) == expected
        if status == "Multiple Candidates":
            assert "|".join(sorted(candidates[query])) == modified

    uniform = gather(block(cells.X), Slots.of(found, tokenizer.vocabulary))
    table = np.zeros((cells.n_obs, len(names)), dtype=np.float32)
    table[uniform.rows, uniform.slots] = uniform.counts
    np.testing.assert_array_equal(
        table[:, [tokenizer.vocabulary.index[g] for g in golden["gsu_genes"]]], golden["gsu_X"]
    )

    logs = replace(tokenizer, bins=LogValues(), zeros="all", order="vocabulary", last={})
    values = logs.tokenize_block(block(cells.X), found).values
    assert_one_ulp(values.reshape(golden["lognorm_gene_set"].shape), golden["lognorm_gene_set"])

    tokens = tokenizer.tokenize_block(block(cells.X), found)
    width = golden["prompt_ids"].shape[1]
    np.testing.assert_array_equal(tokens.lengths, golden["prompt_len"])
    np.testing.assert_array_equal(padded(tokens.ids, tokens.offsets, width, -1), golden["prompt_ids"])
    np.testing.assert_array_equal(padded(tokens.values, tokens.offsets, width, -1), golden["prompt_expr"])


def scmulan_candidates(table: pd.DataFrame) -> dict[str, set[str]]:
    """Approved symbols that each alias or previous symbol may stand for."""
    candidates: dict[str, set[str]] = {}
    approved = table[table["Status"] == "Approved"]
    for column in ("Alias symbol", "Previous symbol"):
        for name, symbol in approved[[column, "Approved symbol"]].dropna().itertuples(index=False):
            candidates.setdefault(name.replace("_", "-"), set()).add(symbol.replace("_", "-"))
    return candidates


# scFoundation


@pytest.fixture(scope="module")
def scfoundation() -> Any:
    folder = case("scfoundation")
    golden = arrays(folder)
    listed = pd.read_csv(one(folder, "checkpoint/OS_scRNA_gene_index*.tsv"), sep="\t", keep_default_na=False)
    tokenizer = families.scfoundation(listed["gene_name"].tolist())
    cells = ad.read_h5ad(folder / "cells.h5ad")
    return golden, tokenizer, cells, match(cells.var["gene_name"], tokenizer.vocabulary)


def test_golden_scfoundation_tokens(scfoundation: Any) -> None:
    golden, tokenizer, cells, found = scfoundation
    tokens = tokenizer.tokenize_block(block(cells.X), found)
    width = golden["tok_positions"].shape[1]
    np.testing.assert_array_equal(tokens.lengths, golden["tok_lengths"])
    np.testing.assert_array_equal(padded(tokens.ids, tokens.offsets, width, -1), golden["tok_positions"])
    np.testing.assert_array_equal(padded(tokens.values, tokens.offsets, width, np.nan), golden["tok_values"])
    rows = dense(tokens, tokens.values, len(tokenizer.vocabulary))
    np.testing.assert_array_equal(rows, golden["gene_x_t4_F"])
    counts = gather(block(cells.X), Slots.of(found, tokenizer.vocabulary))
    table = np.zeros((cells.n_obs, len(tokenizer.vocabulary)), dtype=np.float32)
    table[counts.rows, counts.slots] = counts.counts
    np.testing.assert_array_equal(table[:, : golden["aligned_counts"].shape[1]], golden["aligned_counts"])
    np.testing.assert_array_equal(rows[:, :-2], golden["input_T"])
    np.testing.assert_array_equal(np.column_stack([rows[:, :-2], counts.depth]), golden["input_A"])
    first = golden["gb_pos_ids_enc"]
    few = tokens[: len(first)]
    np.testing.assert_array_equal(padded(few.ids, few.offsets, first.shape[1], len(tokenizer.vocabulary)), first)
    np.testing.assert_array_equal(np.arange(first.shape[1]) >= few.lengths[:, None], golden["gb_enc_padmask"])
    np.testing.assert_array_equal(rows[: len(golden["ft_x"]), :-2], golden["ft_x"])
    plain = tokenizer.tokenize_block(block(cells.X), found, context={"target_fold": 1})
    goal = golden["mae_target"]
    np.testing.assert_array_equal(dense(plain, plain.values, len(tokenizer.vocabulary))[: len(goal)], goal)


_TARGETS = {
    "t": lambda x: {"target_depth": 10.0**x},
    "f": lambda x: {"target_fold": x},
    "a": lambda x: {"target_log_add": x},
}


def test_golden_scfoundation_depth_tokens(scfoundation: Any) -> None:
    golden, tokenizer, cells, found = scfoundation
    identity = match(list(tokenizer.vocabulary.names[:-2]), tokenizer.vocabulary)
    runs = [name for name in golden if name.startswith("TS__cell_")]
    assert runs
    for run in runs:
        _, _, target, normalised, _ = run.removeprefix("TS__").split("_")
        context = _TARGETS[target[0]](float(target[1:]))
        if normalised == "T":
            tokens = replace(tokenizer, values="given").tokenize_block(
                block(golden["input_T"]), identity, context=context
            )
        else:
            tokens = tokenizer.tokenize_block(block(cells.X), found, context=context)
        depths = tokens.values[np.stack([tokens.offsets[1:] - 2, tokens.offsets[1:] - 1], axis=1)]
        np.testing.assert_allclose(depths[: len(golden[run])], golden[run], rtol=2e-7, err_msg=run)


def test_golden_scfoundation_bulk_depth_tokens(scfoundation: Any) -> None:
    golden, tokenizer, _, _ = scfoundation
    identity = match(list(tokenizer.vocabulary.names[:-2]), tokenizer.vocabulary)
    counts = golden["bulk_input_F"]
    totals = counts.sum(axis=1, keepdims=True)
    logs = np.log1p(counts / (totals / np.median(totals)))
    for rows, scale, run in (
        (logs, "log10", "TS__bulk_all_F_ce"),
        (golden["bulk_input_T"], "plain", "TS__bulk_max_T_ce"),
    ):
        bulk = replace(tokenizer, values="given", scale=scale)
        tokens = bulk.tokenize_block(block(rows), identity, context={"target_fold": 1})
        depths = tokens.values[np.stack([tokens.offsets[1:] - 2, tokens.offsets[1:] - 1], axis=1)]
        np.testing.assert_allclose(depths, golden[run], rtol=2e-7)


def test_golden_scfoundation_keeps_depth_tokens_that_the_official_code_loses(scfoundation: Any) -> None:
    golden, tokenizer, _, _ = scfoundation
    identity = match(list(tokenizer.vocabulary.names[:-2]), tokenizer.vocabulary)
    tokens = tokenizer.tokenize_block(block(golden["trap_frac_input"]), identity)
    official = golden["trap_frac_pos_ids"][0]
    np.testing.assert_array_equal(tokens.ids[: len(official)], official)
    np.testing.assert_array_equal(tokens.ids[-2:], [len(tokenizer.vocabulary) - 2, len(tokenizer.vocabulary) - 1])


# UCE


def uce_tokenizer(folder: Path, species: str, n_draws: int) -> Any:
    torch = pytest.importorskip("torch")
    files = folder / "checkpoint" / "model_files"
    config = json.loads((folder / "config.json").read_text())
    tables = {"human": "Homo_sapiens", "mouse": "Mus_musculus", "chicken": "Gallus_gallus"}
    table = torch.load(one(files, f"protein_embeddings/{tables[species]}.*"), weights_only=True)
    new = species not in numbers(files / "species_offsets.pkl")
    offsets = numbers(files / (f"{species}_offsets.pkl" if new else "species_offsets.pkl"))
    places = pd.read_csv(
        files / (f"{species}_to_chrom_pos.csv" if new else "species_chrom.csv"), dtype={"chromosome": str}
    )
    first_chromosome = config[species]["chrom_token_offset"] if new else config["chrom_token_offset"]
    labels = sorted(set(places["species"] + "_" + places["chromosome"]))
    here = places[places["species"] == species].drop_duplicates("gene_symbol")
    symbols = list(dict.fromkeys(name.upper() for name in table))
    return families.uce(
        genes={name: offsets[species] + i for i, name in enumerate(symbols)},
        chromosomes={c: first_chromosome + labels.index(f"{species}_{c}") for c in here["chromosome"].unique()},
        chromosome_of=dict(zip(here["gene_symbol"], here["chromosome"], strict=True)),
        start_of=dict(zip(here["gene_symbol"], here["start"], strict=True)),
        species=species,
        n_draws=n_draws,
    )


@pytest.fixture(params=["hf_", "hn_", "mo_", "ck_"])
def uce(request: pytest.FixtureRequest) -> Any:
    prefix = request.param
    folder = case("uce")
    golden = {k.removeprefix(prefix): v for k, v in arrays(folder).items() if k.startswith(prefix)}
    config = json.loads((folder / "config.json").read_text())
    species, name = {"mo_": ("mouse", "cells_mouse"), "ck_": ("chicken", "cells_chicken")}.get(
        prefix, ("human", "cells")
    )
    cells = ad.read_h5ad(folder / f"{name}.h5ad")[golden["obs_names"], golden["var_names"]].copy()
    tokenizer = uce_tokenizer(folder, species, config["sample_size"])
    return golden, config, cells, tokenizer, match(cells.var_names, tokenizer.vocabulary)


def test_golden_uce_tokens_chromosomes_and_starts(uce: Any) -> None:
    golden, config, _, tokenizer, found = uce
    np.testing.assert_array_equal(tokenizer.rows[found.columns], golden["gene_token_id"])
    np.testing.assert_array_equal(tokenizer.start[found.columns], golden["gene_start"])
    codes = tokenizer.rows[tokenizer.chromosome[found.columns]] - chromosome_offset(config, tokenizer)
    np.testing.assert_array_equal(codes, golden["gene_chrom_code"])


def chromosome_offset(config: dict[str, Any], tokenizer: Any) -> int:
    return config.get(tokenizer.vocabulary.species, config)["chrom_token_offset"]


def chromosome_order(golden: dict[str, Any], config: dict[str, Any], tokenizer: Any, name: str = "chrom_order") -> Any:
    ids = {int(row): i for i, row in enumerate(tokenizer.rows)}
    offset = chromosome_offset(config, tokenizer)
    return np.array([[ids[offset + int(c)] if c >= 0 else -1 for c in row] for row in golden[name]])


def test_golden_uce_weights(uce: Any) -> None:
    golden, _, cells, tokenizer, found = uce
    weights = tokenizer.weights(block(cells.X), found)
    columns = np.concatenate([np.flatnonzero(row) for row in cells.X.toarray()])
    table = np.zeros(cells.shape, dtype=np.float32)
    table[np.repeat(np.arange(cells.n_obs), weights.lengths), columns] = weights.values
    np.testing.assert_allclose(table, golden["p"], atol=1e-7)


@pytest.mark.parametrize("recorded", ["genes", "uniform"])
def test_golden_uce_sentences(uce: Any, recorded: str) -> None:
    golden, config, cells, tokenizer, found = uce
    order = chromosome_order(golden, config, tokenizer)
    draws = {"genes": found.columns[golden["choice_idx"]], "chromosomes": order}
    if recorded == "uniform":
        draws = {"uniform": replay_uniform(config["np_seed"], golden), "chromosomes": order}
    tokens = tokenizer.tokenize_block(block(cells.X), found, draws=draws)
    np.testing.assert_array_equal(tokens.lengths, golden["length"])
    width = golden["tokens"].shape[1]
    np.testing.assert_array_equal(padded(tokenizer.rows[tokens.ids], tokens.offsets, width, 0), golden["tokens"])
    np.testing.assert_array_equal(np.arange(width) < tokens.lengths[:, None], golden["mask"])


def replay_uniform(seed: int, golden: dict[str, Any]) -> np.ndarray:
    """The uniform numbers behind the recorded draws: numpy's legacy generator, draws then a shuffle per cell."""
    generator = np.random.RandomState(seed)
    out = np.empty(golden["choice_idx"].shape)
    for i, order in enumerate(golden["chrom_order"]):
        out[i] = generator.random_sample(out.shape[1])
        codes = np.sort(order[order >= 0])
        generator.shuffle(codes)
        np.testing.assert_array_equal(codes, order[order >= 0])
    return out


def test_golden_uce_pretraining_sentences() -> None:
    folder = case("uce")
    everything = arrays(folder)
    golden = {k.removeprefix("hf_"): v for k, v in everything.items() if k.startswith("hf_")}
    config = json.loads((folder / "config.json").read_text())
    tokenizer = uce_tokenizer(folder, "human", config["sample_size"])
    cells = ad.read_h5ad(folder / "cells.h5ad")[golden["obs_names"], golden["var_names"]][everything["pt_rows"]].copy()
    counts = cells.X.toarray()
    for row, hidden in enumerate(everything["pt_masked_cols"]):
        counts[row, hidden[hidden >= 0]] = 0
    found = match(cells.var_names, tokenizer.vocabulary)
    tokens = tokenizer.tokenize_block(
        block(counts),
        found,
        draws={
            "genes": found.columns[everything["pt_choice_idx"]],
            "chromosomes": chromosome_order(everything, config, tokenizer, "pt_chrom_order"),
        },
    )
    np.testing.assert_array_equal(tokens.lengths, everything["pt_length"])
    width = everything["pt_tokens"].shape[1]
    np.testing.assert_array_equal(padded(tokenizer.rows[tokens.ids], tokens.offsets, width, 0), everything["pt_tokens"])
