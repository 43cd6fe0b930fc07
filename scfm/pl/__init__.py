"""Plotting: pictures of what the tools found."""

from scfm.pl._annotation import annotation
from scfm.pl._probe_layers import probe_layers
from scfm.pl._robustness import robustness
from scfm.pl._training import training

__all__ = ["annotation", "probe_layers", "robustness", "training"]
