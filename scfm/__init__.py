"""scfm."""
