"""Where does the model run, and how precisely?"""

from __future__ import annotations

import sys

import torch

from scfm.errors import ConfigError


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best one at hand.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={str(device)!r} is no device; there are 'cpu', 'cuda', 'cuda:1', 'mps'") from error
    cuda = torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
    there = {"cuda": cuda, "mps": torch.backends.mps.is_available()}.get(chosen.type, True)
    if not there:
        raise ConfigError(
            f"device={str(device)!r} was asked for, but torch {torch.__version__} sees no such device here"
        )
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by name.

    Raises
    ------
    ConfigError
        If the name is not a floating precision.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if dtype not in names:
        raise ConfigError(f"dtype={str(dtype)!r} is not one of {', '.join(names)}")
    return names[str(dtype)]


def peak_memory_gb(device: torch.device | str) -> float | None:
    """Highest memory of the GPU, or of this process, so far, in GB; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def devices() -> dict[str, str]:
    """What torch can compute on here, and in words what it is, the best first."""
    found = {}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            found[f"cuda:{i}"] = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU, float32 only"
    found["cpu"] = f"{torch.get_num_threads()} threads"
    return found
