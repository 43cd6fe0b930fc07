"""What users are told: the logger ``scfm``, on stderr unless the application set up its own logging."""

from __future__ import annotations

import logging
import sys


class _Fallback(logging.Handler):
    """Plain lines on stderr, silent as soon as the application has handlers of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.capitalize()}: "
            sys.stderr.write(f"{prefix}{record.getMessage()}\n")


log = logging.getLogger("scfm")
if not log.handlers:
    log.addHandler(_Fallback())
    log.setLevel(logging.INFO)
