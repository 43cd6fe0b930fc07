"""``python -m scfm``: the command line."""

from scfm.cli import app

app(prog_name="scfm")
