"""What can go wrong, in kinds a caller can catch.

Every message says what was found, what was expected and the next step.
"""

from __future__ import annotations

from importlib import import_module


class ScfmError(Exception):
    """Base of every error that scfm raises on purpose."""


class GeneMatchError(ScfmError, ValueError):
    """Gene names of the data and of a vocabulary do not fit together."""


class CountsError(ScfmError, ValueError):
    """No usable counts, or not the counts that were asked for."""


class TokenizerError(ScfmError, ValueError):
    """A tokenizer was given constants, context or cells it cannot use."""


class CheckpointError(ScfmError, ValueError):
    """A checkpoint, vocabulary or companion file does not fit, or is not safe to read."""


class ConfigError(ScfmError, ValueError):
    """A configuration or an argument is impossible."""


class MissingDependencyError(ScfmError, ImportError):
    """An optional package is needed; the message holds the line that installs it."""


class OutputError(ScfmError, OSError):
    """A result cannot be written where it was asked for; what stood there is as it was."""


class ControlError(ScfmError, RuntimeError):
    """A control of a comparison does not score as it must, so nothing of the comparison can be trusted."""


class TrainingError(ScfmError, RuntimeError):
    """A training run cannot go on; the message says where it stands and what is kept."""


def require(package: str, purpose: str, extra: str) -> None:
    """Raise where an optional package is not installed, before the long work that needs it.

    Parameters
    ----------
    package
        As it is imported.
    purpose
        What it is needed for, as the beginning of a sentence: ``"fitting an annotator needs scikit-learn"``.
    extra
        The extra of scfm that brings it.

    Raises
    ------
    MissingDependencyError
        With the line that installs it.
    """
    try:
        import_module(package)
    except ImportError as error:
        raise MissingDependencyError(f"{purpose}: pip install 'scfm[{extra}]'") from error
