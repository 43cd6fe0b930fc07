"""What does one type in a shell?"""

from scfm.cli._app import app

__all__ = ["app"]
