"""Gene embeddings: from models, from tables of every kind, their neighbours, and cells made of them."""

from __future__ import annotations

import gzip
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sequence_cases
import torch
from golden_cases import case
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import CheckpointError, ConfigError, GeneMatchError, ScfmError
from scfm.models import GeneTable, gene_table
from scfm.tokenizers import RankValueTokenizer
from scfm.transformer import CellTransformer, MLPSpec, PartSpec, ReadoutSpec, StackSpec, TermSpec, make_config

GENES = ("TP53", "CD3E", "LYZ", "NKG7", "MS4A1")
OLD = {"SEPT1": "SEPTIN1", "IL8": "CXCL8"}
WIDTH = 4


@pytest.fixture(scope="module")
def geneformer():
    return scfm.models.load(case("geneformer_v2") / "checkpoint" / "Geneformer-V2-tiny")


@pytest.fixture
def cells():
    found = anndata.read_h5ad(case("geneformer_v2") / "cells.h5ad")
    found.obs["label"] = pd.Categorical(["a/b" if i % 3 else "c" for i in range(found.n_obs)])
    return found


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


def small(names=GENES, n_obs: int = 6) -> anndata.AnnData:
    counts = np.random.default_rng(1).poisson(2.0, size=(n_obs, len(names))).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=list(names)))


@pytest.fixture
def table():
    return gene_table(dict(zip(GENES, vectors(len(GENES)), strict=True)))


# from models


def test_contextual_vectors_are_those_of_embed(cells, geneformer):
    scfm.tl.embed(cells, geneformer, groupby="label", key_added="both", progress=False)
    scfm.tl.embed_genes(cells, geneformer, groupby="label", key_added="genes", progress=False)
    for suffix in ("", "_groups", "_n_cells"):
        np.testing.assert_array_equal(cells.varm[f"genes{suffix}"], cells.varm[f"both{suffix}"])
    assert "X_genes" not in cells.obsm
    report = scfm.get.report(cells, "genes")
    assert report["parameters"]["gene_embeddings"] == "contextual"
    assert list(report["groups"]) == ["a/b", "c"]


def test_input_vectors_need_no_counts(cells, geneformer):
    scfm.tl.embed(cells, geneformer, gene_embeddings="input", key_added="both", progress=False)
    bare = anndata.AnnData(var=cells.var, obs=cells.obs)
    scfm.tl.embed_genes(bare, geneformer, kind="input", key_added="genes")
    np.testing.assert_array_equal(bare.varm["genes"], cells.varm["both"])


def test_default_key_does_not_take_the_place_of_cell_vectors(cells, geneformer):
    scfm.tl.embed(cells, geneformer, progress=False)
    name = scfm.get._slots.key_of(geneformer.card.name)
    before = scfm.get.report(cells, name).to_dict()
    scfm.tl.embed_genes(cells, geneformer, progress=False)
    assert scfm.get.report(cells, name).to_dict() is before or set(cells.uns["scfm"]) == {name, f"{name}_genes"}
    with pytest.raises(ConfigError, match="is that of cell vectors"):
        scfm.tl.embed_genes(cells, geneformer, key_added=name, progress=False)


def test_later_run_without_groups_removes_those_of_an_earlier_one(cells, geneformer):
    scfm.tl.embed_genes(cells, geneformer, groupby="label", key_added="g", progress=False)
    scfm.tl.embed_genes(cells, geneformer, key_added="g", progress=False)
    assert {"g_groups", "g_n_cells"}.isdisjoint(cells.varm)


def test_copy_leaves_the_object_alone_and_results_survive_a_file(cells, geneformer, tmp_path):
    out = scfm.tl.embed_genes(cells, geneformer, groupby="label", copy=True, key_added="org/x", progress=False)
    assert not len(cells.varm) and "scfm" not in cells.uns
    out.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.varm["org_x_groups"], out.varm["org_x_groups"])
    assert str(scfm.get.report(back, "org/x")).startswith("model:")


# from tables


def save_with(how: str, folder: Path) -> Path:
    names, rows = list(GENES), vectors(len(GENES))
    frame = pd.DataFrame(rows, index=pd.Index(names, name="gene"))
    path = folder / f"table.{how}"
    lines = [f"{n}\t" + "".join(f"{v!r} " for v in row.tolist()) for n, row in zip(names, rows, strict=True)]
    w2v = [
        f"{len(names)} {WIDTH}",
        *(" ".join([n, *map(repr, row.tolist())]) for n, row in zip(names, rows, strict=True)),
    ]
    writers = {
        "txt": lambda: path.write_text("\n".join(lines) + "\n"),
        "w2v.txt": lambda: path.write_text("\n".join(w2v) + "\n"),
        "txt.gz": lambda: path.write_bytes(gzip.compress("\n".join(lines).encode())),
        "csv": lambda: frame.to_csv(path),
        "headless.csv": lambda: frame.to_csv(path, header=False),
        "tsv": lambda: frame.to_csv(path, sep="\t"),
        "csv.gz": lambda: frame.to_csv(path),
        "parquet": lambda: frame.rename(columns=str).to_parquet(path),
        "flat.parquet": lambda: frame.rename(columns=str).reset_index().to_parquet(path),
        "npz": lambda: np.savez(path, genes=np.array(names), matrix=rows),
        "lists.pickle": lambda: path.write_bytes(
            pickle.dumps(dict(zip(names, rows.astype(float).tolist(), strict=True)))
        ),
        "pkl": lambda: path.write_bytes(pickle.dumps({n: row[None] for n, row in zip(names, rows, strict=True)}, 4)),
        "h5ad": lambda: anndata.AnnData(rows, obs=pd.DataFrame(index=names)).write_h5ad(path),
        "sparse.h5ad": lambda: anndata.AnnData(sp.csr_matrix(rows), obs=pd.DataFrame(index=names)).write_h5ad(path),
        "pt": lambda: torch.save({n: torch.tensor(row) for n, row in zip(names, rows, strict=True)}, path),
    }
    writers[how]()
    return path


KINDS = (
    *("txt", "w2v.txt", "txt.gz", "csv", "headless.csv", "tsv", "csv.gz", "parquet", "flat.parquet", "npz", "pkl"),
    *("lists.pickle", "h5ad", "sparse.h5ad", "pt"),
)


@pytest.mark.parametrize("how", KINDS)
def test_vectors_are_read_from_every_kind_of_file(how, tmp_path):
    if "parquet" in how:
        pytest.importorskip("pyarrow")
    adata = small([*GENES[::-1], "NOTAGENE"])
    scfm.tl.embed_genes(adata, save_with(how, tmp_path))
    np.testing.assert_allclose(adata.varm["table"][:-1], vectors(len(GENES))[::-1], rtol=0, atol=1e-6)
    assert np.isnan(adata.varm["table"][-1]).all()


def test_vectors_are_read_from_memory(table, geneformer):
    rows = vectors(len(GENES))
    frame = pd.DataFrame(rows, index=GENES)
    cells = anndata.AnnData(np.zeros((2, len(GENES))), var=frame[[]], varm={"g": rows})
    sources = (
        frame,
        frame.reset_index(),
        dict(zip(GENES, rows, strict=True)),
        anndata.AnnData(rows, obs=frame[[]]),
        table,
        gene_table(rows, names=GENES),
        gene_table(cells, key="g"),
    )
    for source in sources:
        np.testing.assert_array_equal(gene_table(source).vectors, rows)
    own = gene_table(geneformer)
    assert len(own) == geneformer.vocabulary.is_gene.sum()


@pytest.mark.parametrize("ending", ["npz", "parquet", "csv", "tsv"])
def test_table_that_was_saved_is_read_again(table, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    table.save(tmp_path / f"genes.{ending}")
    back = gene_table(tmp_path / f"genes.{ending}")
    assert back.names == table.names
    np.testing.assert_array_equal(back.vectors, table.vectors)
    assert [p.name for p in tmp_path.iterdir()] == [f"genes.{ending}"]
    with pytest.raises(ConfigError, match="written as"):
        table.save(tmp_path / "genes.xlsx")


def test_old_symbols_aliases_and_ids_find_their_vector(tmp_path):
    names = [*GENES, *OLD.values()]
    source = dict(zip(names, vectors(len(names)), strict=True))
    adata = small([*OLD, "ENSG00000141510.12", "CD3E"])
    scfm.tl.embed_genes(adata, source, key_added="t")
    expected = [source["SEPTIN1"], source["CXCL8"], source["TP53"], source["CD3E"]]
    np.testing.assert_array_equal(adata.varm["t"], expected)
    scfm.tl.embed_genes(adata, source, key_added="t", gene_matching="published")
    assert np.isnan(adata.varm["t"][:3]).all()
    coverage = scfm.get.report(adata, "t")["coverage"]
    assert coverage["n_matched"] == 1
    counts = adata.X.toarray().sum(axis=0)
    assert coverage["count_coverage"] == pytest.approx(counts[3] / counts.sum())


def test_human_vectors_serve_mouse_data_through_orthologues():
    pairs = scfm.genes.orthologues().set_index("human_symbol").loc[list(GENES[1:])]
    adata = small(pairs["mouse_symbol"].tolist())
    source = gene_table(dict(zip(GENES, vectors(len(GENES)), strict=True)))
    with pytest.raises(GeneMatchError, match="orthologues"):
        scfm.tl.embed_genes(adata, source)
    scfm.tl.embed_genes(adata, source, orthologues=True, key_added="t")
    np.testing.assert_array_equal(adata.varm["t"], source.vectors[1:])
    assert any("translated" in note for note in scfm.get.report(adata, "t")["coverage"]["notes"])


def test_table_of_another_species_is_matched_exactly():
    zebrafish = gene_table({"tp53": [1.0, 0.0], "cd4-1": [0.0, 1.0]}, species="zebrafish")
    adata = small(["cd4-1", "tp53", "nothere"])
    scfm.tl.embed_genes(adata, zebrafish, key_added="t")
    np.testing.assert_array_equal(adata.varm["t"][:2], [[0, 1], [1, 0]])


def test_species_of_a_table_is_recognised():
    human = scfm.genes.table("human")["symbol"]
    mouse = scfm.genes.table("mouse")
    assert gene_table({key: [1.0] for key in human[human != ""][:300]}).species == "human"
    assert gene_table({key: [1.0] for key in mouse["symbol"][mouse["symbol"] != ""][:300]}).species == "mouse"
    assert gene_table({key: [1.0] for key in mouse["ensembl_id"][:300]}).species == "mouse"
    assert gene_table({"AT1G01010": [1.0]}).species == "unknown"


def test_first_row_of_a_repeated_name_counts_and_it_is_said(caplog):
    frame = pd.DataFrame(vectors(3), index=["TP53", "CD3E", "TP53"])
    found = gene_table(frame)
    np.testing.assert_array_equal(found.vectors, vectors(3)[:2])
    assert found.n_repeated == 1
    assert "TP53" in caplog.text


def test_rows_of_nan_are_no_vectors_and_other_nan_is_an_error():
    rows = vectors(3)
    rows[1] = np.nan
    assert gene_table(pd.DataFrame(rows, index=GENES[:3])).names == (GENES[0], GENES[2])
    rows[2, 1] = np.inf
    with pytest.raises(CheckpointError, match="vector of 'LYZ' holds NaN or infinite"):
        gene_table(pd.DataFrame(rows, index=GENES[:3]))


class Evil:
    def __reduce__(self):
        return Path, ("evil",)


def write(path: Path, data: str | bytes) -> Path:
    (path.write_bytes if isinstance(data, bytes) else path.write_text)(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pickle", pickle.dumps({"TP53": Evil()}), "nothing was executed"),
        ("a.pickle", pickle.dumps(pd.DataFrame({"a": [1]})), "nothing was executed"),
        ("a.pickle", pickle.dumps([1, 2]), "holds list, but a dictionary"),
        ("a.pickle", pickle.dumps({"TP53": [1.0, 2.0]})[:-5], "cannot be read as a pickled"),
        ("a.pickle", pickle.dumps({"TP53": [1.0], "B": [1.0, 2.0], "C": [2.0]}), r"that of 'B' is not 1 long"),
        ("a.pickle", pickle.dumps({"TP53": "text"}), "under 'TP53' is no vector of numbers but str"),
        ("a.pickle", pickle.dumps({"TP53": np.zeros((2, 3))}), r"has shape \(2, 3\)"),
        ("a.pickle", pickle.dumps({}), "no vector of a gene"),
        ("a.pickle", b"<html>", "is a web page"),
        ("a.txt", "3 2\nTP53 1 2\nCD3E 1 2\n", "promises 3 genes and holds 2"),
        ("a.txt", "TP53\t1 2 \nCD3E\t1 \n", "line 2: a name and 2 numbers"),
        ("a.txt", "TP53\t1 x \n", "something else than numbers"),
        ("a.txt", b"\xff\xfe\x00", "not text of names and numbers"),
        ("a.csv", "gene,a,b\nTP53,1,x\n", "columns without numbers"),
        ("a.csv", "a,b\n1,2\n", "no names of genes"),
        ("a.csv", "", "cannot be read as a table"),
        ("a.npz", b"PK\x03\x04broken", "cannot be read as arrays"),
        ("a.npy", np.zeros(3).tobytes(), "not a numpy array"),
        ("a.parquet", b"nothing", "cannot be read as parquet"),
        ("a.pt", b"nothing at all", "not a torch file"),
        ("a.xlsx", b"", "tables of gene vectors are read from"),
    ],
)
def test_files_that_hold_no_vectors_are_explained(tmp_path, name, data, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ScfmError, match=message):
        gene_table(write(tmp_path / name, data))


def test_missing_table_says_where_the_authors_publish_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"is missing.*Zenodo records 10030426 and 10833191"):
        scfm.tl.embed_genes(small(), tmp_path / "GenePT_gene_embedding_ada_text.pickle")


def test_arrays_of_objects_and_arrays_without_names_are_explained(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array(["a"], dtype=object), x=np.zeros((1, 2)))
    with pytest.raises(CheckpointError, match="dtype=str"):
        gene_table(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 2)), y=np.zeros((1, 2)))
    with pytest.raises(CheckpointError, match="one array of vectors"):
        gene_table(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="which gene each row is"):
        gene_table(tmp_path / "c.npy")
    with pytest.raises(ConfigError, match="holds 3 vectors, and 2 names"):
        gene_table(tmp_path / "c.npy", names=["a", "b"])
    with pytest.raises(ConfigError, match="taken from a int"):
        gene_table(5)


def test_groups_of_a_table_are_refused(table):
    with pytest.raises(ConfigError, match="one vector per gene"):
        scfm.tl.embed_genes(small(), table, groupby="label")


@pytest.mark.parametrize("options", [{"kind": None}, {"kind": "output"}, {"groupby": "nothing"}, {"hidden_layer": 99}])
def test_impossible_arguments_are_refused(cells, geneformer, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        scfm.tl.embed_genes(cells, geneformer, progress=False, **options)
    with pytest.raises(ConfigError, match="embed_genes works on an AnnData"):
        scfm.tl.embed_genes("cells.h5ad", geneformer)


def test_nothing_is_written_where_no_gene_matches(table):
    adata = small(["X1", "X2"])
    with pytest.raises(GeneMatchError):
        scfm.tl.embed_genes(adata, table)
    assert not len(adata.varm) and "scfm" not in adata.uns


# neighbours


def test_nearest_genes_are_those_of_highest_cosine(table):
    adata = small()
    scfm.tl.embed_genes(adata, table, key_added="t")
    found = scfm.get.nearest_genes(adata, "t", ["CD3E", "LYZ"], n=3)
    assert list(found.columns) == ["gene", "rank", "neighbour", "cosine"]
    assert found["gene"].tolist() == ["CD3E"] * 3 + ["LYZ"] * 3
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    cosines = pd.Series(unit @ unit[1], index=GENES).drop("CD3E").sort_values(ascending=False)[:3]
    np.testing.assert_allclose(found["cosine"][:3], cosines, atol=1e-6)
    assert found["neighbour"][:3].tolist() == cosines.index.tolist()


def test_genes_without_a_vector_are_no_neighbours_and_cannot_be_asked_for(table):
    source = {**dict(zip(GENES, table.vectors, strict=True)), "ACTB": np.zeros(WIDTH)}
    adata = small([*GENES, "ACTB", "NOTAGENE"])
    adata.var["ids"] = [f"id{i}" for i in range(adata.n_vars)]
    scfm.tl.embed_genes(adata, source, key_added="t")
    found = scfm.get.nearest_genes(adata, "t", "TP53", n=100)
    assert set(found["neighbour"]) == set(GENES[1:])
    by_id = scfm.get.nearest_genes(adata, "t", "id0", n=100)
    assert by_id["neighbour"].tolist() == found["neighbour"].tolist()
    for gene in ("ACTB", "NOTAGENE"):
        with pytest.raises(GeneMatchError, match=rf"{gene} has no vector.*5 of 7"):
            scfm.get.nearest_genes(adata, "t", gene)


def test_accessor_gives_vectors_and_neighbours(table):
    adata = small()
    adata.scfm.embed_genes(table, key_added="t")
    pd.testing.assert_frame_equal(adata.scfm.nearest_genes("t", "LYZ"), scfm.get.nearest_genes(adata, "t", "LYZ"))


def test_neighbours_within_a_group(cells, geneformer):
    scfm.tl.embed_genes(cells, geneformer, groupby="label", key_added="g", progress=False)
    vectors_of_c = cells.varm["g_groups"][:, 1]
    gene = cells.var_names[np.flatnonzero(~np.isnan(vectors_of_c).any(axis=1))[0]]
    found = scfm.get.nearest_genes(cells, "g", gene, n=1, group="c")
    unit = vectors_of_c / np.linalg.norm(vectors_of_c, axis=1, keepdims=True)
    cosines = pd.Series(unit @ unit[cells.var_names.get_loc(gene)], index=cells.var_names).drop(gene)
    assert found["neighbour"].tolist() == [cosines.idxmax()]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"key": "other"}, "has no 'other'"),
        ({"genes": "CD3"}, "is it CD3E"),
        ({"n": 0}, "n=0"),
        ({"group": "c"}, "groupby="),
    ],
)
def test_neighbours_that_cannot_be_found_are_explained(table, asked, message):
    adata = small()
    scfm.tl.embed_genes(adata, table, key_added="t")
    with pytest.raises(ScfmError, match=message):
        scfm.get.nearest_genes(adata, **{"key": "t", "genes": "CD3E", **asked})


def test_missing_cell_vectors_are_told_from_results_of_genes_only(table):
    adata = small()
    scfm.tl.embed_genes(adata, table, key_added="t")
    with pytest.raises(ConfigError, match=r"of genes only \(adata.varm\['t'\]\)"):
        scfm.get.embedding(adata, "t")


# cells


def test_cells_are_means_of_their_genes_weighted_by_log_expression(table):
    adata = small([*GENES, "NOTAGENE"])
    scfm.tl.average_genes(adata, table, scale="n_genes", key_added="w", progress=False)
    counts = adata.X.toarray()
    weights = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(adata.obsm["X_w"], weights[:, :-1] @ table.vectors / adata.n_vars, atol=1e-5)
    coverage = scfm.get.report(adata, "w")["coverage"]
    assert coverage["weight_coverage"] == pytest.approx(weights[:, :-1].sum() / weights.sum(), rel=1e-5)
    assert coverage["count_coverage"] == pytest.approx(counts[:, :-1].sum() / counts.sum())


def test_columns_of_one_gene_are_added_up_before_the_logarithm_unless_published(table):
    adata = small([*GENES, "ENSG00000141510"])
    merged = adata[:, :5].copy()
    counts = adata.X.toarray()
    counts[:, 0] += counts[:, 5]
    merged.X = sp.csr_matrix(counts[:, :5])
    scfm.tl.average_genes(adata, table, scale="weights", key_added="w", progress=False)
    scfm.tl.average_genes(merged, table, scale="weights", key_added="w", progress=False)
    np.testing.assert_allclose(adata.obsm["X_w"], merged.obsm["X_w"], atol=1e-6)


def test_mean_of_a_cell_depends_on_that_cell_alone_and_not_on_where_it_is(table, tmp_path):
    adata = small(n_obs=40)
    scfm.tl.average_genes(adata, table, key_added="w", progress=False)
    adata[:, ::-1].copy().write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    again = backed[np.arange(39, -1, -1)].to_memory()
    del again.obsm["X_w"]
    scfm.tl.average_genes(again, table, key_added="w", progress=False)
    np.testing.assert_allclose(again.obsm["X_w"][::-1], adata.obsm["X_w"], atol=1e-6)


def test_cells_without_a_vector_are_zero_and_reported(table, caplog):
    adata = small([*GENES, "NOTAGENE"])
    counts = adata.X.toarray()
    counts[2, :5] = 0
    adata.X = sp.csr_matrix(counts)
    scfm.tl.average_genes(adata, table, key_added="w", progress=False)
    assert not adata.obsm["X_w"][2].any()
    assert scfm.get.report(adata, "w")["tokens"]["empty_cells"] == 1
    assert "1 cells express no gene with a vector" in caplog.text


def test_counts_of_log_normalised_data_keep_their_true_totals(table):
    adata = small([*GENES, "NOTAGENE"], n_obs=30)
    raw = adata.copy()
    counts = adata.X.toarray()
    counts[:, 0] += 1
    raw.X = sp.csr_matrix(counts)
    logged = raw.copy()
    logged.X = sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    for one in (raw, logged):
        scfm.tl.average_genes(one, table, key_added="w", scale="n_genes", progress=False)
    np.testing.assert_allclose(logged.obsm["X_w"], raw.obsm["X_w"], atol=1e-4)


def test_cells_can_be_means_of_a_models_input_vectors(cells, geneformer):
    scfm.tl.average_genes(cells, geneformer, key_added="w", progress=False)
    assert cells.obsm["X_w"].shape == (cells.n_obs, geneformer.transformer.width)


@pytest.mark.parametrize("options", [{"scale": "sum"}, {"target_sum": 0}])
def test_impossible_means_are_refused(table, options):
    with pytest.raises(ConfigError):
        scfm.tl.average_genes(small(), table, progress=False, **options)


# sentences


def length_of_words(texts) -> np.ndarray:
    return np.array([[len(text), text.count(" "), text.count("CD3E")] for text in texts], dtype=float)


def test_sentences_are_embedded_by_any_encoder_or_by_vectors_at_hand():
    adata = small()
    counts = adata.X.toarray()
    counts[1] = 0
    adata.X = sp.csr_matrix(counts)
    texts = scfm.tl.cell_sentences(adata, n_genes=3)
    scfm.tl.embed_sentences(adata, length_of_words, n_genes=3)
    found = adata.obsm["X_genept_s"]
    assert np.isnan(found[1]).all()
    kept = [0, *range(2, adata.n_obs)]
    np.testing.assert_array_equal(found[kept], length_of_words(texts.iloc[kept]))
    by_text = {text: length_of_words([text])[0] for text in texts}
    for given in (by_text, length_of_words(texts)):
        scfm.tl.embed_sentences(adata, given, n_genes=3, key_added="given")
        np.testing.assert_array_equal(adata.obsm["X_given"], found)
    assert scfm.get.report(adata, "genept_s")["model"] == "length_of_words"


def test_sentences_name_genes_by_rank_of_their_counts():
    adata = small()
    adata.var["id"] = [f"id{i}" for i in range(adata.n_vars)]
    text = scfm.tl.cell_sentences(adata, n_genes=10, prefix="", gene_key="id").iloc[0]
    counts = dict(zip(adata.var["id"], adata.X.toarray()[0], strict=True))
    ranked = [counts[name] for name in text.split()]
    assert ranked == sorted(ranked, reverse=True)
    assert len(ranked) == sum(c > 0 for c in counts.values())


@pytest.mark.parametrize(
    ("encode", "options", "message"),
    [
        ({}, {}, "sentences have no vector"),
        (np.zeros((2, 3)), {}, "one row for each"),
        (lambda texts: np.zeros(len(texts)), {}, "shape"),
        (length_of_words, {"gene_key": "missing"}, "not in var"),
        (length_of_words, {"n_genes": 0}, "at least one gene"),
    ],
)
def test_sentences_that_cannot_be_embedded_are_explained(encode, options, message):
    with pytest.raises(ScfmError, match=message):
        scfm.tl.embed_sentences(small(), encode, **options)


# from sequences to frozen gene features


def test_protein_vectors_become_gene_vectors_and_frozen_gene_features(tmp_path):
    model = sequence_cases.esm2(tmp_path / "esm2_tiny")
    rng = np.random.default_rng(0)
    letters = {gene: "".join(rng.choice(list(sequence_cases.RESIDUES), 20)) for gene in GENES}
    proteins = scfm.tl.embed_sequences(letters, model, cache=False, progress=False)
    adata = small([*GENES[::-1], "NOTAGENE"])
    scfm.tl.embed_genes(adata, proteins, key_added="esm2")
    np.testing.assert_array_equal(adata.varm["esm2"][:-1], proteins.X[::-1])

    vocabulary = scfm.genes.GeneVocabulary(("<cls>", *GENES[:3]), "symbol", {"cls": 0})
    frozen = scfm.models.frozen_table(gene_table(proteins), vocabulary)
    np.testing.assert_array_equal(frozen[1:], proteins.X[:3])
    assert float(frozen[0].norm()) == pytest.approx(np.linalg.norm(proteins.X, axis=1).mean(), rel=1e-5)
    bare = scfm.genes.GeneVocabulary((*GENES, "ACTB"), "symbol")
    with pytest.raises(GeneMatchError, match=r"1 of 6 genes.*ACTB"):
        scfm.models.frozen_table(gene_table(proteins), bare)


def reader_of(vocabulary) -> RankValueTokenizer:
    return RankValueTokenizer(vocabulary, np.ones(len(vocabulary)), max_length=16, first=("cls",))


def test_transformer_on_frozen_protein_vectors_reads_any_species(tmp_path):
    protein_model = sequence_cases.esm2(tmp_path / "esm2_tiny")
    rng = np.random.default_rng(0)
    letters = {gene: "".join(rng.choice(list(sequence_cases.RESIDUES), 20)) for gene in GENES}
    human = gene_table(scfm.tl.embed_sequences(letters, protein_model, cache=False, progress=False))
    fish = {gene.lower(): text for gene, text in letters.items()}  # the same proteins under other names
    zebrafish = gene_table(
        scfm.tl.embed_sequences(fish, protein_model, cache=False, progress=False), species="zebrafish"
    )
    vocabularies = [
        scfm.genes.GeneVocabulary(("<cls>", *t.names), "symbol", {"cls": 0}, species=t.species)
        for t in (human, zebrafish)
    ]
    tables = [scfm.models.frozen_table(t, v) for t, v in zip((human, zebrafish), vocabularies, strict=True)]
    torch.manual_seed(0)
    network = CellTransformer(
        make_config(
            encoder=StackSpec(n_layers=1, width=8, n_heads=2, head_dim=4, ff=16),
            terms={
                "gene": TermSpec("table", rows=6, width=16, frozen=True, mlp=MLPSpec((16, 8), end=("gelu", "norm")))
            },
            readouts={"cls": ReadoutSpec((PartSpec("token", 0),))},
            readout="cls",
        )
    )
    network.terms["gene"].table.data = tables[0]
    assert "terms.gene.table" not in [name for name, p in network.named_parameters() if p.requires_grad]
    model = scfm.models.FoundationModel(network, reader_of(vocabularies[0]), scfm.models.ModelCard("ours", "custom"))
    fish_model = scfm.models.with_genes(model, reader_of(vocabularies[1]), tables[1])
    adata = small()
    scfm.tl.embed(adata, model, key_added="x", progress=False)
    other = anndata.AnnData(adata.X, var=pd.DataFrame(index=[g.lower() for g in GENES]))
    scfm.tl.embed(other, fish_model, key_added="x", progress=False)
    np.testing.assert_allclose(other.obsm["X_x"], adata.obsm["X_x"], atol=1e-6)
    assert np.ptp(adata.obsm["X_x"], axis=0).max() > 0


def test_protein_vectors_add_a_species_to_uce():
    model = scfm.models.load(case("uce") / "checkpoint")
    width = model.transformer.terms["gene"].table.shape[1]
    names = [f"gene{i}" for i in range(12)]
    proteins = GeneTable(tuple(names), np.random.default_rng(0).normal(size=(12, width)).astype(np.float32), "x", "fly")
    places = pd.DataFrame({"gene_symbol": names, "chromosome": ["2L"] * 6 + ["X"] * 6, "start": range(12)})
    fly = scfm.models.add_species(model, "fly", scfm.models.as_mapping(proteins), places)
    adata = small(names)
    scfm.tl.embed(adata, fly, key_added="uce", progress=False)
    assert np.isfinite(adata.obsm["X_uce"]).all()


# another species, and the command line


def mouse_of(human: anndata.AnnData) -> anndata.AnnData:
    """The same cells under mouse symbols; genes without an orthologue are called as they are."""
    pairs = scfm.genes.orthologues()
    partner = dict(zip(pairs["human_ensembl_id"], pairs["mouse_ensembl_id"], strict=True))
    mouse = anndata.AnnData(human.X, obs=human.obs.copy())
    mouse.var_names = [partner.get(name, f"unknown{i}") for i, name in enumerate(human.var["ensembl_id"])]
    return mouse


def test_tokenizer_reads_another_species_through_orthologues(cells, geneformer, caplog):
    mouse = mouse_of(cells)
    caplog.set_level("INFO")
    tokens = geneformer.tokenize(mouse, orthologues=True)
    named = ~mouse.var_names.str.startswith("unknown")
    expected = geneformer.tokenize(cells[:, named].copy())
    assert named.sum() > 20
    np.testing.assert_array_equal(np.sort(tokens.ids), np.sort(expected.ids))
    assert "were translated through the shipped one-to-one table" in caplog.text
    assert "of the vocabulary" in caplog.text or "counts:" in caplog.text


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_line_embeds_another_species_and_says_how_it_fitted(cells, tmp_path):
    mouse_of(cells).write_h5ad(tmp_path / "mouse.h5ad")
    model = case("geneformer_v2") / "checkpoint" / "Geneformer-V2-tiny"
    said = run(
        "embed",
        tmp_path / "mouse.h5ad",
        tmp_path / "o.h5ad",
        "--model",
        model,
        "--orthologues",
        "shipped",
        "--no-progress",
    )
    assert "orthologue" in said.splitlines()[0]
    assert "translated through the shipped" in said
    pairs = tmp_path / "pairs.csv"
    scfm.genes.orthologues()[["human_ensembl_id", "mouse_ensembl_id"]].to_csv(pairs, index=False)
    run(
        "embed", tmp_path / "mouse.h5ad", tmp_path / "p.h5ad", "--model", model, "--orthologues", pairs, "--no-progress"
    )
    one, two = (next(iter(anndata.read_h5ad(tmp_path / f"{n}.h5ad").obsm.values())) for n in "op")
    np.testing.assert_array_equal(one, two)


def test_command_line_embeds_sequences_and_genes(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "home"))
    model = sequence_cases.esm2(tmp_path / "esm2_tiny")
    (tmp_path / "a.fa").write_text("".join(f">p{i} GN={gene} PE=1\nMKTAYIAKQR{gene}\n" for i, gene in enumerate(GENES)))
    arguments = ("embed-sequences", tmp_path / "a.fa", tmp_path / "p.h5ad", "--model", model, "--no-progress")
    assert "5 genes x 16; 0 of 5 sequences from the cache" in run(*arguments, "--average-by", "gene_symbol")
    assert "5 of 5 sequences from the cache" in run(*arguments, "--average-by", "gene_symbol")
    cells = small([*GENES, "NOTAGENE"])
    cells.write_h5ad(tmp_path / "c.h5ad")
    said = run("embed-genes", tmp_path / "c.h5ad", tmp_path / "c.h5ad", "--source", tmp_path / "p.h5ad")
    assert "genes: 5 of 6 columns matched" in said
    back = anndata.read_h5ad(tmp_path / "c.h5ad")
    np.testing.assert_array_equal(back.varm["p"][:5], anndata.read_h5ad(tmp_path / "p.h5ad").X)
    assert scfm.get.report(back, "p")["family"] == "table of gene vectors"
    assert (back.X != cells.X).nnz == 0


def test_ordered_dictionaries_and_numpy_scalars_are_plain_data(tmp_path):
    held = OrderedDict(TP53=[np.float64(1.0), 2.0], CD3E=np.array([3.0, 4.0]))
    path = write(tmp_path / "a.pickle", pickle.dumps(held))
    np.testing.assert_array_equal(gene_table(path).vectors, [[1, 2], [3, 4]])


def test_examples_of_the_guide_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scanpy")
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setenv("SCFM_HOME", str(tmp_path))
    page = Path("docs/guide/gene_embeddings.md")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert "were translated through the shipped" in capsys.readouterr().out
    assert names["cells"].varm["gf_groups"].shape[1:] == (2, 24)
    assert np.isfinite(names["adata"].varm["esm2"]).all(axis=1).sum() == 2
    assert names["frozen"].shape == (names["term"].rows, names["term"].width)
