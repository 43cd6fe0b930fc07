"""How fast and how large is scfm here? Runs the benchmarks and prints one markdown table."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

BENCHMARKS = (
    "bench_tokenize",
    "bench_mini",
    "bench_embed",
    "bench_families",
    "bench_writing",
    "bench_train",
    "bench_annotation",
    "bench_robustness",
    "bench_memory",
)
PACKAGES = ("scfm", "torch", "transformers", "anndata", "numpy", "numba")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def processor() -> str:
    """The name of the processor and what of its vector instructions matters here."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    return f"{fields.get('model name', platform.machine())} ({', '.join(i for i in INSTRUCTIONS if i in flags)})"


def machine() -> str:
    """Date, machine and versions, in one line."""
    parts = [
        datetime.date.today().isoformat(),
        processor(),
        f"{os.cpu_count()} cores",
        f"{torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
    ]
    return ", ".join(parts)


def main() -> None:
    """Print the table, line by line as the figures come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS, help=f"of {', '.join(BENCHMARKS)}; default: all")
    chosen = parser.parse_args().benchmarks
    print(f"Measured {machine()}.\n")
    print("| what | scfm | reference | ratio |\n| --- | ---: | ---: | ---: |")
    for name in chosen:
        for what, ours, reference, ratio in importlib.import_module(name).run():
            print(f"| {what} | {ours} | {reference} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
