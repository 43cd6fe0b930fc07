"""`scfm.tl.embed_sequences`: tokens, pooling, windows, batches, the cache, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sequence_cases as cases
import torch
from fake_hub import fill_cache
from golden_cases import ROOT
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import scfm
from scfm.errors import CheckpointError, ConfigError, ScfmError, TokenizerError
from scfm.models._fasta import read_sequences
from scfm.models._sequence_model import Speller, load_network, locate
from scfm.models._sequences import SequenceEncoder, SequenceJob, windows
from scfm.models._vector_store import VectorStore


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("sequence_models")


@pytest.fixture(scope="module")
def esm2(folders):
    return cases.esm2(folders / "esm2_tiny")


@pytest.fixture(scope="module")
def nucleotides(folders):
    return cases.nucleotide_transformer(folders / "nt")


@pytest.fixture(scope="module")
def dnabert(folders):
    return cases.dnabert(folders / "dnabert")


@pytest.fixture(scope="module")
def leaky(folders):
    return cases.own_code(folders / "leaky")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def drawn(lengths, letters: str = cases.RESIDUES, seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"s{i}": "".join(rng.choice(list(letters), n)) for i, n in enumerate(lengths)}


PROTEINS = drawn([12, 3, 30, 38, 7, 30, 21])
DNA = drawn([7, 29, 30, 60, 13], "ACGT")


def embedded(sequences, model, **options):
    return scfm.tl.embed_sequences(sequences, model, **{"progress": False, "cache": False, **options})


def states_of(folder: Path, letters: str, layer: int | None = None) -> np.ndarray:
    """States of one sequence by plain transformers, special tokens included."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(letters, return_tensors="pt")
    with torch.inference_mode():
        out = model(**ids, output_hidden_states=True)
    return (out.last_hidden_state if layer is None else out.hidden_states[layer])[0].numpy()


def close(ours, expected) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


# what a vector is


def test_mean_is_over_residues_without_special_tokens(esm2):
    out = embedded(PROTEINS, esm2)
    assert out.obs_names.tolist() == [*PROTEINS]
    for row, letters in zip(out.X, PROTEINS.values(), strict=True):
        close(row, states_of(esm2, letters)[1:-1].mean(axis=0))


def test_cls_is_the_token_before_and_last_is_the_last_residue(esm2):
    first, last = (embedded(PROTEINS, esm2, pooling=p).X for p in ("cls", "last"))
    for i, letters in enumerate(PROTEINS.values()):
        states = states_of(esm2, letters)
        close(first[i], states[0])
        close(last[i], states[-2])


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_any_layer_can_be_read(esm2, layer):
    out = embedded(PROTEINS, esm2, hidden_layer=layer)
    close(out.X[2], states_of(esm2, PROTEINS["s2"], layer)[1:-1].mean(axis=0))


def test_final_state_is_that_behind_the_last_norm(esm2):
    np.testing.assert_array_equal(embedded(PROTEINS, esm2, hidden_layer=2).X, embedded(PROTEINS, esm2).X)
    with pytest.raises(ConfigError, match=r"layers 0 .* to 2"):
        embedded(PROTEINS, esm2, hidden_layer=3)


def test_nucleotide_transformer_without_an_end_token(nucleotides):
    out = embedded(DNA, nucleotides)
    for row, letters in zip(out.X, DNA.values(), strict=True):
        close(row, states_of(nucleotides, letters)[1:].mean(axis=0))


def test_an_end_token_that_the_network_does_not_know_is_left_out(nucleotides, tmp_path):
    wrong = cases.nucleotide_transformer(tmp_path / "nt", eos_token="<eos>")
    np.testing.assert_array_equal(embedded(DNA, wrong).X, embedded(DNA, nucleotides).X)


def test_dnabert_reads_overlapping_words(dnabert):
    letters = {"a": DNA["s4"]}
    words = " ".join(letters["a"][i : i + 3] for i in range(len(letters["a"]) - 2))
    close(embedded(letters, dnabert).X[0], states_of(dnabert, words)[1:-1].mean(axis=0))


def test_prot_bert_reads_letters_between_blanks(tmp_path):
    folder = cases.prot_bert(tmp_path / "prot_bert")
    close(embedded({"a": "MKTAYIAK"}, folder).X[0], states_of(folder, "M K T A Y I A K")[1:-1].mean(axis=0))


def test_models_from_left_to_right_are_read_at_their_last_letter(tmp_path):
    folder = cases.mamba(tmp_path / "mamba")
    out = embedded(DNA, folder, pooling="last")
    for row, letters in zip(out.X, DNA.values(), strict=True):
        close(row, states_of(folder, letters)[-2])


# tokens


def speller(folder: Path) -> Speller:
    found = locate(folder)
    return Speller.of(
        found, load_network(found, torch.device("cpu"), torch.float32).get_input_embeddings().num_embeddings
    )


def examples() -> dict:
    return json.loads((ROOT / "sequence_models" / "tokenizer_examples.json").read_text())


def test_tokens_of_the_nucleotide_transformer_are_the_recorded_ones(nucleotides):
    spelt, recorded = speller(nucleotides), examples()
    before, behind = spelt.around
    for name, tokens in recorded["nucleotide_transformer"].items():
        assert [*before, *spelt.ids(recorded["sequences"][name]), *behind] == tokens["ids_v1"]


def test_tokens_of_dnabert_are_overlapping_words_as_recorded(folders, monkeypatch):
    monkeypatch.setattr(cases, "DNABERT", [*cases.DNABERT[:5], *cases.SIX_MERS])
    spelt, recorded = speller(cases.dnabert(folders / "dnabert6")), examples()
    assert spelt.k == 6
    for name, tokens in recorded["dnabert_k6"].items():
        assert spelt.tokenizer.convert_ids_to_tokens(spelt.ids(recorded["sequences"][name])) == tokens[1:-1]


def test_tokens_of_esm2_are_the_recorded_ones(esm2):
    spelt = speller(esm2)
    before, behind = spelt.around
    for letters, ids in examples()["esm2"].items():
        assert [*before, *spelt.ids(letters), *behind] == ids


def test_case_and_rna_and_a_final_stop_make_no_difference(esm2, nucleotides):
    soft = {"a": "acgtACGTNacg", "b": "ACGUACGUNACG", "c": "ACGTACGTNACG"}
    assert np.ptp(embedded(soft, nucleotides).X, axis=0).max() == 0
    stops = {"a": "MKTAYI*", "b": "mktayi", "c": " MKT AYI"}
    assert np.ptp(embedded(stops, esm2).X, axis=0).max() == 0


def test_unknown_letters_are_counted_and_too_many_refused(esm2, dnabert, caplog):
    out = embedded({"a": "MKT*AYIAKQR"}, esm2)
    assert out.obs["n_unknown"].tolist() == [1]
    assert "unknown" in caplog.text
    with pytest.raises(TokenizerError, match="reads nucleotides"):
        embedded(PROTEINS, dnabert)


def test_dna_for_a_protein_model_is_noticed(esm2, caplog):
    embedded(drawn([60], "ACGT"), esm2)
    assert "amino acids" in caplog.text


# batches


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(40, 400), st.integers(0, 99))
def test_windows_cover_every_token_once(lengths, size, overlap):
    for n in (*lengths, 10 * size + 7):
        cut = windows(n, size, min(overlap, size - 1))
        assert [w.first for w in cut] == [0, *(w.last for w in cut[:-1])]
        assert cut[-1].last == n
        assert all(w.start <= w.first < w.last <= w.stop <= n for w in cut)
        assert len({w.stop - w.start for w in cut}) == 1


PROTEIN_MODELS = {"esm2": cases.esm2, "esmc": cases.esmc, "prot_bert": cases.prot_bert, "leaky": cases.own_code}
DNA_MODELS = {"nt": cases.nucleotide_transformer, "dnabert": cases.dnabert, "mamba": cases.mamba}


@pytest.mark.parametrize("model", [*PROTEIN_MODELS, *DNA_MODELS])
def test_vector_does_not_depend_on_batch_mates(model, tmp_path):
    folder = {**PROTEIN_MODELS, **DNA_MODELS}[model](tmp_path / model)
    letters = PROTEINS if model in PROTEIN_MODELS else DNA
    options = {"trust_remote_code": model == "leaky"}
    together = embedded(letters, folder, **options).X
    for i, (name, text) in enumerate(letters.items()):
        close(together[i], embedded({name: text}, folder, **options).X[0])
    turned = embedded(dict(reversed(letters.items())), folder, batch_tokens=50, **options).X
    close(turned[::-1], together)


def test_sequences_of_like_length_share_batches_and_others_do_not(esm2):
    encoder = SequenceEncoder(locate(esm2), SequenceJob(), torch.device("cpu"), torch.float32)
    pieces = [encoder.pieces(n, encoder.speller.ids(t), n)[0] for n, t in drawn([30, 29, 10, 30, 11, 3]).items()]
    from scfm.models._run import Budget

    batches = [[len(p.ids) - 2 for p in b] for b in encoder.batches(pieces, Budget(100, torch.device("cpu")))]
    assert batches == [[30, 30, 29], [11, 10], [3]]


def test_model_that_sees_padding_reads_equal_lengths_only(leaky, caplog):
    letters = drawn([30, 29, 30])
    out = embedded(letters, leaky, trust_remote_code=True)
    assert "padding changes" in caplog.text
    table = load_file(leaky / "model.safetensors")["table.weight"].numpy()
    ids = AutoTokenizer.from_pretrained(leaky, trust_remote_code=True)(letters["s1"])["input_ids"]
    close(out.X[1], table[ids[1:-1]].mean(axis=0) + table[ids].mean(axis=0))


# long sequences


def test_long_sequences_are_read_in_windows_and_every_token_counts_once(esm2):
    letters = drawn([100])["s0"]
    out = embedded({"a": letters}, esm2, overlap=10)
    cut = windows(100, 38, 10)
    assert out.obs["n_windows"].tolist() == [len(cut)] == [4]
    states = [states_of(esm2, letters[w.start : w.stop])[1:-1][w.first - w.start : w.last - w.start] for w in cut]
    close(out.X[0], np.concatenate(states).mean(axis=0))
    last = embedded({"a": letters}, esm2, overlap=10, pooling="last")
    close(last.X[0], states[-1][-1])


def test_long_sequences_can_be_cut_or_refused(esm2):
    letters = drawn([100])["s0"]
    cut = embedded({"a": letters}, esm2, too_long="truncate")
    close(cut.X[0], embedded({"a": letters[:38]}, esm2).X[0])
    assert cut.obs["length"].tolist() == [100]
    with pytest.raises(TokenizerError, match=r"'a' has 100 tokens, but the model reads 38.*windows"):
        embedded({"a": letters}, esm2, too_long="error")


def test_longer_pieces_are_possible_where_positions_are_computed(esm2, dnabert):
    letters = drawn([100])["s0"]
    close(embedded({"a": letters}, esm2, max_tokens=102).X[0], states_of(esm2, letters)[1:-1].mean(axis=0))
    with pytest.raises(ConfigError, match="positions for 24"):
        embedded(DNA, dnabert, max_tokens=25)


# the cache


def test_second_run_computes_nothing_and_gives_the_same(esm2, tmp_path, monkeypatch):
    first = embedded(PROTEINS, esm2, cache=tmp_path / "kept")
    monkeypatch.setattr(SequenceEncoder, "__init__", None)  # it is not made again
    second = embedded(PROTEINS, esm2, cache=tmp_path / "kept")
    np.testing.assert_array_equal(first.X, second.X)
    assert second.uns["scfm"]["sequences"]["tokens"]["from_cache"] == len(set(PROTEINS.values()))
    assert first.obs.equals(second.obs)


def test_other_settings_and_other_weights_do_not_share_vectors(esm2, tmp_path):
    kept = tmp_path / "kept"
    mean = embedded(PROTEINS, esm2, cache=kept)
    assert not np.allclose(embedded(PROTEINS, esm2, cache=kept, pooling="cls").X, mean.X)
    other = cases.esm2(tmp_path / "esm2_tiny", seed=1)
    assert not np.allclose(embedded(PROTEINS, other, cache=kept).X, mean.X)
    moved = shutil.copytree(esm2, tmp_path / "elsewhere" / "esm2_tiny")
    again = embedded(PROTEINS, moved, cache=kept)
    assert again.uns["scfm"]["sequences"]["tokens"]["from_cache"] == len(PROTEINS)


def test_interrupted_run_keeps_what_is_finished(esm2, tmp_path, monkeypatch):
    compute, done = SequenceEncoder.compute, []

    def until_the_third(encoder, batch):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(len(batch))
        return compute(encoder, batch)

    monkeypatch.setattr(SequenceEncoder, "compute", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        embedded(PROTEINS, esm2, cache=tmp_path)
    monkeypatch.setattr(SequenceEncoder, "compute", compute)
    whole = embedded(PROTEINS, esm2, cache=tmp_path)
    assert whole.uns["scfm"]["sequences"]["tokens"]["from_cache"] == sum(done)
    close(whole.X, embedded(PROTEINS, esm2).X)


def test_same_letters_under_two_names_are_computed_once_and_both_given(esm2, tmp_path):
    out = embedded({"a": "MKTAYI", "b": "AKQR", "c": "MKTAYI"}, esm2, cache=tmp_path)
    np.testing.assert_array_equal(out.X[0], out.X[2])
    (file,) = tmp_path.glob("*/*.npz")
    with np.load(file) as held:
        assert len(held["key"]) == 2


def test_cache_lies_in_the_home_of_scfm_by_default(esm2, tmp_path):
    scfm.tl.embed_sequences({"a": "MKT"}, esm2, progress=False)
    (folder,) = (tmp_path / "home" / "sequences").iterdir()
    assert json.loads((folder / "settings.json").read_text())["pooling"] == "mean"


def test_damaged_cache_file_is_named(tmp_path):
    store = VectorStore(tmp_path, {})
    with store:
        store.put("k", np.ones(3, np.float32), n=1)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="remove that file"):
        store.find({"k"})


# where sequences come from


ENSEMBL = (
    ">ENSP1.2 pep chromosome:1:2:3 gene:ENSG00000141510.19 transcript:T gene_symbol:TP53 description:x\nMKT\nAYI*\n"
)
UNIPROT = ">sp|P04637|P53_HUMAN Cellular tumor antigen p53 OS=Homo sapiens OX=9606 GN=TP53 PE=1 SV=4\nMKTA\n\n"
NCBI = ">lcl|NC_1 [gene=CD3E] [protein=x]\nMQ\n"


def test_fasta_is_read_with_the_genes_of_its_headers(tmp_path):
    (tmp_path / "a.fa").write_text(ENSEMBL + UNIPROT + NCBI)
    with gzip.open(tmp_path / "a.fa.gz", "wt") as file:
        file.write(ENSEMBL + UNIPROT + NCBI)
    found = read_sequences(tmp_path / "a.fa")
    assert [(s.name, s.letters, s.gene_symbol) for s in found] == [
        ("ENSP1.2", "MKTAYI", "TP53"),
        ("sp|P04637|P53_HUMAN", "MKTA", "TP53"),
        ("lcl|NC_1", "MQ", "CD3E"),
    ]
    assert found[0].gene_id == "ENSG00000141510.19"
    assert read_sequences(tmp_path / "a.fa.gz") == found


def test_genes_are_means_over_their_proteins(esm2, tmp_path):
    (tmp_path / "a.fa").write_text(ENSEMBL + UNIPROT + NCBI)
    each = embedded(tmp_path / "a.fa", esm2)
    assert each.obs["gene_symbol"].tolist() == ["TP53", "TP53", "CD3E"]
    genes = embedded(tmp_path / "a.fa", esm2, average_by="gene_symbol")
    assert genes.obs_names.tolist() == ["TP53", "CD3E"]
    assert genes.obs["n_sequences"].tolist() == [2, 1]
    close(genes.X[0], each.X[:2].mean(axis=0))
    by_name = embedded(PROTEINS, esm2, average_by={"s0": "A", "s3": "B", "s4": "A"})
    close(by_name.X[0], embedded(PROTEINS, esm2).X[[0, 4]].mean(axis=0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "holds no sequence"),
        ({"a": ""}, "1 sequences are empty"),
        ({"a": 5}, "is int, not text"),
        (["MKT"], "FASTA file or a dictionary"),
        ("missing.fa", "no FASTA file"),
    ],
)
def test_sequences_that_are_none_are_refused(esm2, source, message):
    with pytest.raises(TokenizerError, match=message):
        embedded(source, esm2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MKT\n>a\nMKT\n", "begin with '>'"),
        (">a\nM\n>a\nK\n", "names twice"),
        (">\nM\n", "without a name"),
        ("", "no seq"),
    ],
)
def test_damaged_fasta_is_explained(esm2, tmp_path, text, message):
    (tmp_path / "a.fa").write_text(text)
    with pytest.raises(TokenizerError, match=message):
        embedded(tmp_path / "a.fa", esm2)


# which models


def test_code_of_others_is_refused_and_not_run(leaky, tmp_path):
    folder = shutil.copytree(leaky, tmp_path / "leaky")
    mark = tmp_path / "was_run"
    code = folder / "modeling_leaky.py"
    code.write_text(f"open({str(mark)!r}, 'w').close()\n" + code.read_text())
    with pytest.raises(CheckpointError, match="trust_remote_code=True"):
        embedded(PROTEINS, folder)
    assert not mark.exists()


def changed(folder: Path, target: Path, **settings) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"add_bias_fnn": False}, "gated feed-forward"),
        ({"auto_map": {"AutoModel": "modeling_x.X"}}, "classes of its own"),
        ({"model_type": "striped_hyena"}, "'striped_hyena' is not one"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "decoder"),
    ],
)
def test_models_that_need_code_of_their_own_are_recognised(esm2, tmp_path, settings, message):
    with pytest.raises(CheckpointError, match=message):
        embedded(PROTEINS, changed(esm2, tmp_path / "m", **settings))


def test_gated_weights_are_not_squeezed_into_the_native_class(esm2, tmp_path):
    folder = shutil.copytree(esm2, tmp_path / "nt_v2")
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.endswith("intermediate.dense.weight"))
    state[name] = torch.cat([state[name], state[name]])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        embedded(PROTEINS, folder)


@pytest.mark.parametrize("what", ["missing", "unknown"])
def test_missing_and_unknown_weights_are_errors(esm2, tmp_path, what):
    folder = shutil.copytree(esm2, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.endswith("key.weight"))
    if what == "missing":
        del state[name]
    else:
        state[name.replace("key", "keys")] = state[name].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 weights are {what}"):
        embedded(PROTEINS, folder)


def test_older_weights_are_read_safely(esm2, tmp_path):
    folder = shutil.copytree(esm2, tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    close(embedded(PROTEINS, folder).X, embedded(PROTEINS, esm2).X)


@pytest.mark.parametrize(
    ("remove", "message"),
    [("config.json", "configuration is missing"), ("model.safetensors", "no weights"), ("vocab.txt", "no tokenizer")],
)
def test_incomplete_folders_are_explained(esm2, tmp_path, remove, message):
    folder = shutil.copytree(esm2, tmp_path / "m")
    (folder / remove).unlink()
    with pytest.raises(CheckpointError, match=message):
        embedded(PROTEINS, folder)


def test_pickled_objects_among_older_weights_are_not_executed(esm2, tmp_path):
    folder = shutil.copytree(esm2, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    torch.save({**state, "extra": Path("x")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded.*pathlib"):
        embedded(PROTEINS, folder)


def test_truncated_weights_are_an_error(esm2, tmp_path):
    folder = shutil.copytree(esm2, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        embedded(PROTEINS, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "esm2"}, "no sequence model 'esm2'"),
        ({"model": "owner/repository", "trust_remote_code": True}, "revision=<commit>"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"too_long": "cut"}, "too_long='cut'"),
        ({"max_tokens": 3}, "no room"),
        ({"overlap": 99}, "overlap=99"),
        ({"average_by": "gene"}, "average_by='gene'"),
        ({"average_by": {"other": "TP53"}}, "no sequence has a gene"),
        ({"revision": "main"}, "is a folder here"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_impossible_arguments_are_refused(esm2, options, message):
    model = options.get("model", esm2)
    with pytest.raises(ScfmError, match=message):
        embedded(drawn([50]), model, **{k: v for k, v in options.items() if k != "model"})


def test_repository_of_the_hub_is_read_from_its_cache(esm2, tmp_path):
    files = {p.name: p.read_bytes() for p in esm2.iterdir()}
    fill_cache(tmp_path / "hub", "someone/esm2_tiny", "main", files)
    out = embedded(PROTEINS, "someone/esm2_tiny")
    close(out.X, embedded(PROTEINS, esm2).X)


def test_repository_that_is_not_here_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"nobody/nothing.*put the files into .*nothing"):
        embedded(PROTEINS, "nobody/nothing")


def test_licence_that_binds_is_said(nucleotides, tmp_path, caplog):
    folder = shutil.copytree(nucleotides, tmp_path / "nucleotide-transformer-500m-human-ref")
    embedded(DNA, folder)
    assert "non-commercial" in caplog.text
