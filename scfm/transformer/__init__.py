"""One model: a transformer over packed cells whose switches describe every published system."""

from scfm.transformer._attention import ALIASES as ATTENTION_NAMES
from scfm.transformer._attention import IMPLEMENTATIONS, choose, missing
from scfm.transformer._config import CellTransformerConfig, make_config
from scfm.transformer._model import CellTransformer, HiddenStates
from scfm.transformer._packing import PackedBatch, Segments, pack
from scfm.transformer._readout import read_out
from scfm.transformer._specs import (
    DecoderSpec,
    HeadSpec,
    MLPSpec,
    PartSpec,
    QueryOnlySpec,
    ReadoutSpec,
    StackSpec,
    TermSpec,
    WritingSpec,
)
from scfm.transformer._writing import WordRule, Writer, Written, embed_continued, pick, weigh, write

__all__ = [
    "ATTENTION_NAMES",
    "IMPLEMENTATIONS",
    "CellTransformer",
    "CellTransformerConfig",
    "DecoderSpec",
    "HeadSpec",
    "HiddenStates",
    "MLPSpec",
    "PackedBatch",
    "PartSpec",
    "QueryOnlySpec",
    "ReadoutSpec",
    "Segments",
    "StackSpec",
    "TermSpec",
    "WordRule",
    "Writer",
    "WritingSpec",
    "Written",
    "choose",
    "embed_continued",
    "make_config",
    "missing",
    "pack",
    "pick",
    "read_out",
    "weigh",
    "write",
]
