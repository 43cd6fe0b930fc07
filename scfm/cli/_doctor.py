"""What is installed here, what can this machine do, and what is missing?"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from scfm.cli._shell import columns, short

CORE = (
    "torch",
    "transformers",
    "anndata",
    "numpy",
    "scipy",
    "pandas",
    "numba",
    "h5py",
    "huggingface-hub",
    "safetensors",
)


@dataclass(frozen=True)
class Optional:
    """A package that scfm does without until it is needed.

    Parameters
    ----------
    package
        As it is installed.
    extra
        Of scfm, that brings it.
    use
        What it is needed for.
    """

    package: str
    extra: str
    use: str


OPTIONAL = (
    Optional("scanpy", "demo", "10x files; neighbours, Leiden and UMAP of an embedding"),
    Optional("matplotlib", "demo", "pictures"),
    Optional("dask", "dask", "data larger than memory, in blocks"),
    Optional("distributed", "dask", "several processes or machines"),
    Optional("loompy", "loom", "loom files"),
    Optional("pyarrow", "parquet", "parquet tables of gene vectors"),
    Optional("accelerate", "train", "training"),
    Optional("peft", "train", "fine-tuning with adapters"),
    Optional("scvi-tools", "scvi", "scVI as a baseline"),
    Optional("scikit-learn", "annotate", "fitting annotators, scores of embeddings, linear probes"),
    Optional("pynndescent", "annotate", "neighbours among more than 100,000 reference cells"),
    Optional("harmonypy", "harmony", "batch correction of an embedding"),
    Optional("scib-metrics", "scib", "integration metrics"),
    Optional("flash-attn", "flash", "faster attention on NVIDIA GPUs"),
)


def report() -> str:
    """Versions, devices, attention, caches and optional packages."""
    parts = {
        "scfm": _about(),
        "Packages": columns((name, _version(name) or "MISSING") for name in CORE),
        "Devices": columns(_devices()),
        "Attention": columns(_attention()),
        "Folders": columns(_folders()),
        "Optional packages": columns(_optional()),
    }
    return "\n\n".join(f"{title}\n{_indent(text)}" for title, text in parts.items())


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _about() -> str:
    machine = f"{platform.system()} {platform.machine()}, {_cores()} cores"
    return f"{version('scfm')} on Python {platform.python_version()}, {machine}"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices() -> Iterator[tuple[str, str]]:
    from numba import config

    from scfm.models._device import devices, resolve_device

    best = resolve_device(None).type
    for name, facts in devices().items():
        yield name, facts + (" (used unless --device says otherwise)" if name.split(":")[0] == best else "")
    if best == "cpu":
        build = "a build without CUDA" if "+cpu" in (_version("torch") or "") else "no GPU visible to it"
        yield "cuda", f"none: torch {_version('torch')} is {build}" if "build" in build else f"none: torch has {build}"
    yield "numba", f"{config.NUMBA_NUM_THREADS} threads for tokenizers (set NUMBA_NUM_THREADS to change)"


def _attention() -> Iterator[tuple[str, str]]:
    from scfm.models._device import resolve_device, resolve_dtype
    from scfm.transformer import ATTENTION_NAMES, choose, missing

    device = resolve_device(None)
    precision = "float32" if device.type != "cuda" else "bfloat16"
    dtype = resolve_dtype(precision)
    used = choose(None, device, dtype)  # type: ignore[arg-type]
    for alias, name in ATTENTION_NAMES.items():
        why = missing(name, device, dtype)  # type: ignore[arg-type]
        here = "used by default" if name == used else "available"
        yield alias, f"not here: {why}" if why else f"{here} ({device.type}, {precision})"


def _folders() -> Iterator[tuple[str, str, str]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from scfm import models

    yield "models placed by hand", short(models.home()), _held(models.home(), "SCFM_HOME")
    yield "models from the hub", short(Path(HF_HUB_CACHE)), _held(Path(HF_HUB_CACHE), "HF_HOME")


def _held(folder: Path, variable: str) -> str:
    if not folder.is_dir():
        return f"not there yet (set {variable} for another place)"
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return ", ".join(names) or "empty"


def _optional() -> Iterator[tuple[str, str, str]]:
    for row in OPTIONAL:
        found = _version(row.package) or ("there" if find_spec(row.package.replace("-", "_")) else None)
        yield row.package, found or "missing", row.use if found else f'{row.use}: pip install "scfm[{row.extra}]"'
