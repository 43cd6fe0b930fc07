"""`scfm.tl.embed`: what is written, under which names, and what happens when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from golden_cases import case

import scfm
from scfm.errors import ConfigError, CountsError, GeneMatchError, ScfmError, TokenizerError
from scfm.get._slots import plain
from scfm.tl import _embed

LABELS = ("CD4+/CD25 T Reg", "B cell / plasma", "NK")


@pytest.fixture(scope="module")
def geneformer():
    return scfm.models.load(case("geneformer_v2") / "checkpoint" / "Geneformer-V2-tiny")


@pytest.fixture(scope="module")
def scgpt():
    return scfm.models.load(case("scgpt") / "checkpoint" / "pretrained")


@pytest.fixture
def adata():
    cells = anndata.read_h5ad(case("geneformer_v2") / "cells.h5ad")
    cells.obs["label"] = pd.Categorical([LABELS[i % len(LABELS)] for i in range(cells.n_obs)])
    return cells


def state(adata) -> tuple[dict[str, list[str]], list[str]]:
    """Names of everything an object holds."""
    parts = ("obsm", "varm", "obsp", "varp", "layers", "uns")
    held = {part: sorted(getattr(adata, part)) for part in parts}
    return held, [*adata.obs.columns, *adata.var.columns]


def embedded(adata, model, **options):
    scfm.tl.embed(adata, model, progress=False, **options)
    return adata


def through_a_file(adata, folder: Path):
    adata.write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad")


def same(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype.kind == "O":
        return list(a) == list(b)
    return bool(np.array_equal(a, b, equal_nan=isinstance(a, float | np.ndarray)))


# what is written


def test_cells_genes_tokens_and_report_are_written(adata, geneformer):
    width = geneformer.transformer.width
    embedded(adata, geneformer, key_added="gf")
    assert adata.obsm["X_gf"].shape == (adata.n_obs, width)
    assert adata.obsm["X_gf"].dtype == np.float32
    assert adata.varm["gf"].shape == (adata.n_vars, width)
    assert adata.obs["gf_n_tokens"].dtype.kind == "i"
    assert adata.uns["scfm"]["gf"]["model"] == geneformer.card.name


def test_nothing_else_is_changed(adata, geneformer):
    before = adata.copy()
    embedded(adata, geneformer, key_added="gf")
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs.drop(columns="gf_n_tokens"), before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)


def test_vectors_are_those_of_the_model_below_the_verb(adata, geneformer):
    embedded(adata, geneformer, key_added="gf")
    np.testing.assert_allclose(adata.obsm["X_gf"], geneformer.embed_cells(geneformer.tokenize(adata)), atol=1e-5)


def test_cells_without_a_gene_of_the_model_are_nan_and_warned_about(adata, geneformer, caplog):
    counts = adata.X.toarray()
    counts[3] = 0
    adata.X = sp.csr_matrix(counts)
    embedded(adata, geneformer, key_added="gf")
    empty = np.isnan(adata.obsm["X_gf"]).all(axis=1)
    assert empty[3]
    assert adata.uns["scfm"]["gf"]["tokens"]["empty_cells"] == empty.sum()
    (line,) = [r.getMessage() for r in caplog.records if "NaN" in r.getMessage()]
    subset = line[line.index("adata = ") :].removeprefix("adata = ")
    assert eval(subset, {"adata": adata, "np": np}).n_obs == (~empty).sum()


def test_genes_outside_the_vocabulary_are_nan(adata, geneformer):
    embedded(adata, geneformer, key_added="gf", gene_embeddings="input")
    match = scfm.genes.match(adata.var, geneformer.vocabulary)
    np.testing.assert_array_equal(np.isnan(adata.varm["gf"]).all(axis=1), match.columns < 0)
    known = np.flatnonzero(match.columns >= 0)
    vectors = geneformer.embed_genes(kind="input")
    place = {int(i): row for row, i in enumerate(vectors.ids)}
    expected = vectors.vectors[[place[int(i)] for i in match.columns[known]]]
    np.testing.assert_array_equal(adata.varm["gf"][known], expected)


def test_no_gene_embeddings_where_none_are_asked_for(adata, geneformer):
    embedded(adata, geneformer, key_added="gf", gene_embeddings=None)
    assert "gf" not in adata.varm


def test_groups_hold_a_vector_per_gene_and_label_and_the_cells_behind_it(adata, geneformer):
    embedded(adata, geneformer, key_added="gf", groupby="label")
    labels = list(adata.uns["scfm"]["gf"]["groups"])
    assert sorted(labels) == sorted(LABELS)
    assert adata.varm["gf_groups"].shape == (adata.n_vars, len(LABELS), geneformer.transformer.width)
    for place, label in enumerate(labels):
        alone = adata[adata.obs["label"] == label].copy()
        embedded(alone, geneformer, key_added="gf")
        np.testing.assert_allclose(adata.varm["gf_groups"][:, place], alone.varm["gf"], atol=1e-5)
    together = adata.copy()
    embedded(together, geneformer, key_added="gf")
    np.testing.assert_allclose(adata.varm["gf"], together.varm["gf"], atol=1e-5)


def test_cells_without_a_label_count_for_the_mean_over_all_cells(adata, geneformer):
    plain_run = embedded(adata.copy(), geneformer, key_added="gf")
    adata.obs["label"] = adata.obs["label"].where(np.arange(adata.n_obs) % 4 > 0)
    embedded(adata, geneformer, key_added="gf", groupby="label")
    np.testing.assert_allclose(adata.varm["gf"], plain_run.varm["gf"], atol=1e-5)
    assert adata.varm["gf_n_cells"].sum() < adata.obs["gf_n_tokens"].sum()


@pytest.mark.filterwarnings("ignore::scfm.genes.CoverageWarning")
def test_a_second_run_under_the_same_key_leaves_nothing_of_the_first(adata, geneformer, scgpt):
    embedded(adata, geneformer, key_added="x", groupby="label")
    embedded(adata, scgpt, key_added="x", gene_key="gene_name")
    assert adata.obsm["X_x"].shape[1] == scgpt.transformer.width
    assert {"x_groups", "x_n_cells"}.isdisjoint(adata.varm)
    assert "groups" not in adata.uns["scfm"]["x"]


@pytest.mark.filterwarnings("ignore::scfm.genes.CoverageWarning")
def test_results_of_several_models_stand_beside_each_other(adata, geneformer, scgpt):
    embedded(adata, geneformer)
    embedded(adata, scgpt, gene_key="gene_name")
    assert set(adata.uns["scfm"]) == {"Geneformer_V2_tiny", "pretrained"}
    with pytest.raises(ConfigError, match="several results"):
        scfm.get.embedding(adata)


# names and files


def test_free_text_never_becomes_a_key(adata, geneformer):
    named = replace(geneformer, card=replace(geneformer.card, name="org/model name-1"))
    embedded(adata, named, groupby="label")
    assert "X_org_model_name_1" in adata.obsm
    embedded(adata, geneformer, key_added="a/b c")
    held, columns = state(adata)
    assert not any("/" in name for names in held.values() for name in names)
    assert not any("/" in name for name in columns)


def test_results_survive_an_h5ad(adata, geneformer, tmp_path):
    named = replace(geneformer, card=replace(geneformer.card, name="org/model"))
    embedded(adata, named, groupby="label")
    back = through_a_file(adata, tmp_path)
    assert same(back.uns["scfm"], adata.uns["scfm"])
    np.testing.assert_array_equal(back.obsm["X_org_model"], adata.obsm["X_org_model"])
    for name in ("org_model", "org_model_groups", "org_model_n_cells"):
        np.testing.assert_array_equal(back.varm[name], adata.varm[name])
    np.testing.assert_array_equal(back.obs["org_model_n_tokens"], adata.obs["org_model_n_tokens"])
    assert str(scfm.get.report(back, "org/model")) == str(scfm.get.report(adata, "org/model"))


def test_every_plain_value_survives_an_h5ad(tmp_path):
    facts = {
        "none": None,
        "truth": True,
        "numpy truth": np.bool_(False),
        "whole": 3,
        "numpy whole": np.int16(4),
        "real": 0.5,
        "numpy real": np.float32(0.25),
        "nan": float("nan"),
        "text": "CD4+/CD25 T Reg",
        "empty list": [],
        "numbers": [1, 2.5],
        "texts": ("a/b", "c"),
        "with none": ["a", None],
        "truths": [True, False],
        "array": np.arange(3),
        "texts in an array": np.array(["x", "yy"]),
        "empty": {},
        "nested/deep": {"CD4+/CD25 T Reg": {"n": 1}},
        "list of dicts": [{"a": 1}, {"a": None}],
    }
    stored = plain(facts)
    adata = anndata.AnnData(np.ones((2, 2), np.float32), uns={"scfm": {"x": stored}})
    back = through_a_file(adata, tmp_path).uns["scfm"]["x"]
    assert "none" not in back
    assert same(back, stored)
    assert list(back["with_none"]) == ["a"]
    assert back["list_of_dicts"]["0"] == {"a": 1}


def test_get_embedding_is_a_frame_of_the_cells(adata, geneformer):
    embedded(adata, geneformer, key_added="gf")
    for key in (None, "gf", "X_gf"):
        frame = scfm.get.embedding(adata, key)
        assert list(frame.index) == list(adata.obs_names)
        np.testing.assert_array_equal(frame.to_numpy(), adata.obsm["X_gf"])


def test_a_key_that_starts_like_a_slot_is_found(adata, geneformer):
    embedded(adata, geneformer, key_added="X_gf")
    assert scfm.get.report(adata, "X_gf")["model"] == geneformer.card.name
    assert len(scfm.get.embedding(adata, "X_gf")) == adata.n_obs


@pytest.mark.parametrize("read", [scfm.get.embedding, scfm.get.report])
def test_asking_for_what_is_not_there_names_what_is(adata, geneformer, read):
    with pytest.raises(ConfigError, match=r"scfm\.tl\.embed"):
        read(adata)
    embedded(adata, geneformer, key_added="gf")
    with pytest.raises(ConfigError, match="there are gf"):
        read(adata, "other")


# ways to call


def test_copy_leaves_the_object_alone(adata, geneformer):
    before = state(adata)
    result = scfm.tl.embed(adata, geneformer, key_added="gf", copy=True, progress=False)
    assert state(adata) == before
    assert result.obsm["X_gf"].shape[0] == adata.n_obs


def test_dry_run_writes_nothing_and_tells_what_it_would_take(adata, geneformer):
    before = state(adata)
    estimate = scfm.tl.embed(adata, geneformer, dry_run=True)
    assert state(adata) == before
    assert estimate.n_cells == adata.n_obs
    assert estimate.cells_per_second > 0
    assert "cells/s" in str(estimate)
    assert "would take about" in str(estimate)


def test_a_view_becomes_an_object_of_its_own_and_its_parent_stays(adata, geneformer):
    before = state(adata)
    view = adata[adata.obs["label"] == LABELS[0]]
    with pytest.warns(UserWarning):
        scfm.tl.embed(view, geneformer, key_added="gf", progress=False)
    assert "X_gf" in view.obsm
    assert state(adata) == before


def test_raw_with_other_genes_than_var_gives_the_cells_of_raw(adata, geneformer):
    whole = embedded(adata.copy(), geneformer, key_added="gf")
    kept = np.random.default_rng(0).permutation(adata.n_vars)[: adata.n_vars // 2]
    narrow = adata[:, kept].copy()
    narrow.X = narrow.X * 0.5 - 1 if not sp.issparse(narrow.X) else sp.csr_matrix(narrow.X.toarray() * 0.5 - 1)
    narrow.raw = adata
    embedded(narrow, geneformer, key_added="gf", use_raw=True)
    np.testing.assert_array_equal(narrow.obsm["X_gf"], whole.obsm["X_gf"])
    np.testing.assert_array_equal(narrow.varm["gf"], whole.varm["gf"][kept])


def test_coverage_is_of_the_counts_that_are_there(geneformer):
    scanpy = pytest.importorskip("scanpy")
    shallow = scanpy.datasets.pbmc68k_reduced()
    with pytest.warns(UserWarning, match="computed back"):
        source = scfm.counts.find(shallow)
    columns = scfm.genes.match(source.var, geneformer.vocabulary).columns
    (block,) = source.blocks(len(shallow))
    with pytest.warns(UserWarning):
        embedded(shallow, geneformer, key_added="gf")
    coverage = shallow.uns["scfm"]["gf"]["coverage"]
    assert coverage["counts_total"] == pytest.approx(block.data.sum())
    assert coverage["counts_matched"] == pytest.approx(block.data[columns[block.indices] >= 0].sum())


def test_the_accessor_is_the_verb(adata, geneformer):
    by_verb = embedded(adata.copy(), geneformer, key_added="gf")
    adata.scfm.embed(geneformer, key_added="gf", progress=False)
    np.testing.assert_array_equal(adata.obsm["X_gf"], by_verb.obsm["X_gf"])
    assert adata.scfm.report()["model"] == geneformer.card.name
    assert adata.scfm.embedding("gf").shape == adata.obsm["X_gf"].shape


@pytest.mark.parametrize("order", ["import scfm, anndata", "import anndata, scfm", "import scfm.errors, anndata"])
def test_the_accessor_is_there_whatever_is_imported_first(order):
    code = f"{order}\nassert anndata.AnnData.scfm.__name__ == 'Accessor'"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_scfm_alone_does_not_load_anndata():
    code = "import scfm, sys; assert 'anndata' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# when something is wrong


class Interrupted:
    """A progress bar at which the user presses Ctrl-C."""

    def __init__(self, **_options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        return None

    def update(self, _n):
        raise KeyboardInterrupt


def test_ctrl_c_leaves_the_object_untouched(adata, geneformer, monkeypatch):
    before = state(adata)
    monkeypatch.setattr(_embed, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        scfm.tl.embed(adata, geneformer)
    assert state(adata) == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"layer": "nope"}, CountsError, "no layer 'nope'"),
        ({"use_raw": True}, CountsError, "no raw"),
        ({"gene_key": "nope"}, GeneMatchError, "'nope' is not in var"),
        ({"groupby": "nope"}, ConfigError, "'nope' is not a column of obs"),
        ({"groupby": "label", "gene_embeddings": None}, ConfigError, "contextual"),
        ({"gene_embeddings": "nope"}, ConfigError, "'nope'"),
        ({"pooling": "nope"}, ScfmError, "nope"),
        ({"hidden_layer": 99}, ScfmError, "99"),
        ({"context": {"nope": 1}}, TokenizerError, "nope"),
        ({"device": "mps" if sys.platform != "darwin" else "cuda"}, ConfigError, "no such device"),
        ({"dtype": "int8"}, ConfigError, "int8"),
        ({"attn_implementation": "nope"}, ConfigError, "nope"),
    ],
)
def test_what_does_not_fit_is_said_before_the_long_work(adata, geneformer, monkeypatch, options, error, says):
    before = state(adata)
    monkeypatch.setattr(_embed, "tqdm", None)
    with pytest.raises(error, match=says):
        scfm.tl.embed(adata, geneformer, **options)
    assert state(adata) == before


def test_an_unknown_model_is_named_with_those_there_are(adata):
    with pytest.raises(ConfigError, match="geneformer-v1-10m"):
        scfm.tl.embed(adata, "geneformer-v9")


def test_a_path_is_answered_with_how_to_open_it(geneformer):
    with pytest.raises(ConfigError, match=r"scfm\.counts\.read"):
        scfm.tl.embed("cells.h5ad", geneformer)


def test_what_a_backed_object_cannot_do_is_said_before_the_long_work(adata, geneformer, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ConfigError, match="copy=True"):
        scfm.tl.embed(backed, geneformer, copy=True)
    with pytest.raises(ConfigError, match="view of a backed object"):
        scfm.tl.embed(backed[:3], geneformer)
    embedded(backed, geneformer, key_added="gf")
    in_memory = embedded(adata, geneformer, key_added="gf")
    np.testing.assert_array_equal(backed.obsm["X_gf"], in_memory.obsm["X_gf"])


def test_cells_that_all_look_alike_are_a_collapse_and_warned_about(adata, geneformer, caplog):
    counts = np.tile(np.arange(adata.n_vars, dtype=np.float32) % 7, (adata.n_obs, 1))
    same_cells = anndata.AnnData(counts, obs=adata.obs[["label"]], var=adata.var)
    embedded(same_cells, geneformer, key_added="gf")
    assert any("collapsed" in record.getMessage() for record in caplog.records)
    assert same_cells.uns["scfm"]["gf"]["health"]["mean_cosine"] > 0.999


def test_a_health_line_is_printed_for_every_embedding(adata, geneformer, caplog):
    embedded(adata, geneformer, key_added="gf")
    lines = [r.getMessage() for r in caplog.records if "effective rank" in r.getMessage()]
    assert any(f"{adata.n_obs} cells" in line for line in lines)


def test_low_coverage_is_warned_about(adata, geneformer):
    names = [f"{name}-unknown" for name in adata.var_names]
    known = scfm.genes.match(adata.var, geneformer.vocabulary).columns >= 0
    few = np.flatnonzero(known)[:5]
    ids = adata.var["ensembl_id"].astype(str).to_numpy()
    for i in few:
        names[i] = ids[i]
    poor = anndata.AnnData(adata.X, var=pd.DataFrame(index=names))
    with pytest.warns(scfm.genes.CoverageWarning, match="of the counts"):
        embedded(poor, geneformer)
