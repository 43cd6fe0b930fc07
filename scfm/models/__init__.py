"""Which model is this? The registry, the cards, and strict and safe reading of checkpoints."""

from scfm.models._annotation import name_cells, questions
from scfm.models._card import ModelCard
from scfm.models._classes import Classes
from scfm.models._gene_files import gene_table
from scfm.models._gene_table import GeneTable, as_mapping, frozen_table
from scfm.models._gene_vectors import GeneSums, GeneVectors
from scfm.models._head import Head
from scfm.models._model import FoundationModel
from scfm.models._registry import cards, home, list, load
from scfm.models._species import with_genes
from scfm.models._writing import Sampling, kinds_of_words, write_cells
from scfm.models.families._uce_genes import add_species

__all__ = [
    "Classes",
    "FoundationModel",
    "GeneSums",
    "GeneTable",
    "GeneVectors",
    "Head",
    "ModelCard",
    "Sampling",
    "add_species",
    "as_mapping",
    "cards",
    "frozen_table",
    "gene_table",
    "home",
    "kinds_of_words",
    "list",
    "load",
    "name_cells",
    "questions",
    "with_genes",
    "write_cells",
]
