"""What is learnt from cells without labels? One small class per objective."""

from scfm.training.objectives._base import CellBatch, Example, Objective
from scfm.training.objectives._reference import (
    Chance,
    LevelFrequencies,
    MeanPerGene,
    RatePerGene,
    Reference,
    TokenFrequencies,
)
from scfm.training.objectives.contrastive import Contrastive
from scfm.training.objectives.expressed import Expressed
from scfm.training.objectives.generative import Generative
from scfm.training.objectives.masked_genes import MaskedGenes
from scfm.training.objectives.masked_values import MaskedLevels, MaskedValues
from scfm.training.objectives.next_word import NextWord
from scfm.training.objectives.read_depth import ReadDepth

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (MaskedGenes, MaskedLevels, MaskedValues, Generative, Expressed, ReadDepth, NextWord, Contrastive)
}
"""By the name that a configuration uses."""

__all__ = [
    "OBJECTIVES",
    "CellBatch",
    "Chance",
    "Contrastive",
    "Example",
    "Expressed",
    "Generative",
    "LevelFrequencies",
    "MaskedGenes",
    "MaskedLevels",
    "MaskedValues",
    "MeanPerGene",
    "NextWord",
    "Objective",
    "RatePerGene",
    "ReadDepth",
    "Reference",
    "TokenFrequencies",
]
