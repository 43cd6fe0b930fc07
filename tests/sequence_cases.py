"""Small random sequence models in the real architectures and layouts."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    EsmcConfig,
    EsmcModel,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    MambaConfig,
    MambaModel,
    PreTrainedTokenizerFast,
)

AMINO = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
RESIDUES = "LAGVSERTIDPKQNFYMHWC"
SIX_MERS = ["".join(word) for word in itertools.product("ATCG", repeat=6)]
NUCLEOTIDE_TRANSFORMER = ["<unk>", "<pad>", "<mask>", "<cls>", *SIX_MERS, *"ATCGN"]
DNABERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *("".join(w) for w in itertools.product("ATCG", repeat=3))]


def write_vocabulary(folder: Path, tokens: list[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens))
    return str(path)


def esm2(folder: Path, max_tokens: int = 40, seed: int = 0, **changes) -> Path:
    """ESM-2: rotary positions, token dropout, one token per residue between <cls> and <eos>."""
    EsmTokenizer(write_vocabulary(folder, AMINO)).save_pretrained(folder)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(AMINO),
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": max_tokens + 2,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
    }
    spread(EsmForMaskedLM(EsmConfig(**settings | changes))).save_pretrained(folder)
    return folder


def nucleotide_transformer(folder: Path, *, eos_token: str | None = None) -> Path:
    """Nucleotide Transformer v1: the native ESM class on 6-mers, absolute positions, <cls> in front only."""
    EsmTokenizer(write_vocabulary(folder, NUCLEOTIDE_TRANSFORMER), eos_token=eos_token).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(NUCLEOTIDE_TRANSFORMER),
        mask_token_id=2,
        pad_token_id=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        position_embedding_type="absolute",
        token_dropout=True,
        emb_layer_norm_before=False,
        tie_word_embeddings=False,
    )
    spread(EsmForMaskedLM(config)).save_pretrained(folder)
    return folder


def dnabert(folder: Path) -> Path:
    """DNABERT: the native BERT on overlapping k-mers, [CLS] and [SEP] around them."""
    BertTokenizer(write_vocabulary(folder, DNABERT), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(DNABERT),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    spread(BertForMaskedLM(config)).save_pretrained(folder)
    return folder


def esmc(folder: Path) -> Path:
    """ESM C: rotary positions by another rule, gated layers."""
    EsmTokenizer(write_vocabulary(folder, AMINO)).save_pretrained(folder)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = EsmcConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=40, **heads
    )
    spread(EsmcModel(config)).save_pretrained(folder)
    return folder


def prot_bert(folder: Path) -> Path:
    """ProtBert: the native BERT on single letters between blanks."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES, "X"]
    BertTokenizer(write_vocabulary(folder, words), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    spread(BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))).save_pretrained(folder)
    return folder


def mamba(folder: Path) -> Path:
    """Mamba on single nucleotides: reads from left to right, as long as you like."""
    words = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"ACGTN"])}
    letters = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    letters.pre_tokenizer = Split("", "isolated")
    letters.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    spread(MambaModel(MambaConfig(vocab_size=9, hidden_size=16, num_hidden_layers=2, state_size=4))).save_pretrained(
        folder
    )
    return folder


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough for states to differ, as those of a trained model do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5 if "embeddings" in name else 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


OWN_CODE = '''
import torch
from transformers import PretrainedConfig, PreTrainedModel

class LeakyConfig(PretrainedConfig):
    model_type = "leaky"
    def __init__(self, vocab_size=33, hidden_size=8, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)

class LeakyModel(PreTrainedModel):
    """Reads the whole row, padding too."""
    config_class = LeakyConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()
    def get_input_embeddings(self):
        return self.table
    def forward(self, input_ids):
        x = self.table(input_ids)
        return (x + x.mean(dim=1, keepdim=True),)
'''


def own_code(folder: Path) -> Path:
    """A model that transformers does not know, without a mask, with its code beside it."""
    import json

    from safetensors.torch import save_file

    EsmTokenizer(write_vocabulary(folder, AMINO)).save_pretrained(folder)
    (folder / "modeling_leaky.py").write_text(OWN_CODE)
    names = {"AutoConfig": "modeling_leaky.LeakyConfig", "AutoModel": "modeling_leaky.LeakyModel"}
    config = {
        "model_type": "leaky",
        "auto_map": names,
        "vocab_size": 33,
        "hidden_size": 8,
        "architectures": ["LeakyModel"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file({"table.weight": torch.randn(33, 8)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
