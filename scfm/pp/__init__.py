"""Look at data before work."""

from scfm.pp._inspect import InspectReport, inspect

__all__ = ["InspectReport", "inspect"]
