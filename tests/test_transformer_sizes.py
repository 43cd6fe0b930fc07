"""At published sizes the one transformer has exactly the published number of parameters, and the published constants.

Models are built on the meta device: no memory, no initialisation. Only what a checkpoint trains is counted.
"""

from __future__ import annotations

import pytest
import torch

from scfm.transformer import (
    CellTransformer,
    CellTransformerConfig,
    DecoderSpec,
    HeadSpec,
    MLPSpec,
    PartSpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    make_config,
)

MEAN = {"mean": ReadoutSpec((PartSpec("mean"),))}


def geneformer(n_layers: int, width: int, n_heads: int, ff: int, rows: int, positions: int) -> CellTransformerConfig:
    head = MLPSpec((width, width), end=("relu", "norm"), eps=1e-12)
    return make_config(
        encoder=StackSpec(n_layers, width, n_heads, width // n_heads, ff, eps=1e-12),
        terms={"gene": TermSpec("table", rows=rows), "position": TermSpec("table", "positions", rows=positions)},
        sum_norm=True,
        sum_eps=1e-12,
        heads={"mlm": HeadSpec("tied", head)},
        readouts=MEAN,
    )


def scgpt() -> CellTransformerConfig:
    d = 512
    return make_config(
        encoder=StackSpec(12, d, 8, 64, 512),
        terms={
            "gene": TermSpec("table", rows=60_697, norm=True),
            "value": TermSpec("scalar", "values", mlp=MLPSpec((1, d, d), between=("relu",), end=("norm",))),
            "flag": TermSpec("table", "flag", rows=2, optional=True),
        },
        heads={
            "expression": HeadSpec("tokens", MLPSpec((d, d, d, 1), between=("leaky_relu",))),
            "mvc": HeadSpec("pairs", MLPSpec((d, d), end=("sigmoid",)), outputs=(("value", False),), cell_width=d),
        },
        readouts=MEAN,
    )


def uce(n_layers: int) -> CellTransformerConfig:
    t, d, o = 5120, 1280, 1280
    steps = ("norm", "gelu")
    return make_config(
        encoder=StackSpec(n_layers, d, 20, 64, 5120),
        terms={
            "gene": TermSpec("table", rows=145_469, width=t, frozen=True, mlp=MLPSpec((t, d), end=("gelu", "norm"))),
            "position": TermSpec("table", "positions", rows=1536, frozen=True),
        },
        output=MLPSpec((d, 1024, o, o, o), between=steps),
        heads={
            "protein": HeadSpec("cells", MLPSpec((t, d), end=("gelu", "norm"))),
            "expressed": HeadSpec("cells", MLPSpec((d + o, 2048, 512, 128, 1), between=steps)),
        },
        readouts=MEAN,
    )


def nicheformer() -> CellTransformerConfig:
    return make_config(
        encoder=StackSpec(12, 512, 16, 32, 1024, eps=1e-12),
        terms={"gene": TermSpec("table", rows=20_345), "position": TermSpec("table", "positions", rows=1500)},
        heads={"mlm": HeadSpec("tokens", MLPSpec((512, 20_340)))},
        readouts=MEAN,
    )


def scmulan() -> CellTransformerConfig:
    d, words = 1120, 2222
    head = HeadSpec("tokens", MLPSpec((d, words), last_bias=False))
    return make_config(
        encoder=StackSpec(
            24,
            d,
            20,
            56,
            4 * d,
            norm="pre",
            activation="gelu_tanh",
            attention="causal",
            qkv_bias=False,
            bias=False,
            norm_bias=False,
            final_norms=1,
        ),
        terms={"gene": TermSpec("table", rows=words), "value": TermSpec("table", "values", rows=11)},
        heads={"word": head, "level": head},
        readouts=MEAN,
    )


def on_meta(config: CellTransformerConfig) -> CellTransformer:
    with torch.device("meta"):
        return CellTransformer(config)


def n_parameters(config: CellTransformerConfig) -> int:
    return sum(p.numel() for p in on_meta(config).parameters())


GENEFORMERS = {
    10_288_722: (6, 256, 4, 512, 25_426, 2048),
    39_591_250: (12, 512, 8, 1024, 25_426, 2048),
    104_386_867: (12, 768, 12, 3072, 20_275, 4096),
    316_354_867: (18, 1152, 18, 4608, 20_275, 4096),
}


@pytest.mark.parametrize(("published", "sizes"), GENEFORMERS.items())
def test_geneformer_has_the_published_size_less_the_segment_table(published: int, sizes: tuple[int, ...]) -> None:
    assert n_parameters(geneformer(*sizes)) == published - 2 * sizes[1]


def test_scgpt_has_the_published_tensors() -> None:
    model = on_meta(scgpt())
    assert n_parameters(scgpt()) == 51_330_049
    assert len(model.state_dict()) == 163


@pytest.mark.parametrize(("n_layers", "published"), [(4, 104_100_097), (33, 674_745_857)])
def test_uce_has_the_published_size_beside_its_tables(n_layers: int, published: int) -> None:
    config = uce(n_layers)
    assert n_parameters(config) == published
    assert sum(b.numel() for b in on_meta(config).buffers()) == 744_801_280 + 1_966_080


def test_nicheformer_has_the_published_size_less_its_unused_pieces() -> None:
    assert n_parameters(nicheformer()) == 49_302_040 - 2_449_572


def test_scmulan_has_the_published_size() -> None:
    assert n_parameters(scmulan()) == 368_800_320


def test_scfoundation_encoder_and_decoder_have_the_published_sizes() -> None:
    decoder = StackSpec(
        6, 512, 8, 64, 2048, norm="pre", activation="gelu", attention="performer", n_features=266, final_norms=2
    )
    config = make_config(
        encoder=StackSpec(12, 768, 12, 64, 3072, final_norms=1),
        terms={"gene": TermSpec("table", rows=19_267), "value": TermSpec("bins", "values", rows=100)},
        decoder=DecoderSpec(decoder, rows=19_266),
        heads={"expression": HeadSpec("genes", MLPSpec((512, 1)))},
        readouts=MEAN,
    )
    padding_row = 768
    assert n_parameters(config) + padding_row == 119_252_285
    assert sum(b.numel() for b in on_meta(config).buffers()) == 6 * 266 * 64
