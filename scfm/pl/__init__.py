"""Plotting: pictures of what the tools found."""

from scfm.pl._robustness import robustness

__all__ = ["robustness"]
