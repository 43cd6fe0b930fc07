"""Do attention layers on top of scfm-mini gain anything on files that took no part? The rows of ``choose_mini.py``.

    python scripts/choose_trunk.py DATA OUT [NAME=VALUE ...]

Two fits of the sums over genes, each without half of the labelled files, and layers trained on top of each with the same
files, as ``configs/scfm-mini-trunk.yaml`` says; ``NAME=VALUE`` replaces an entry of it, as in ``scfm pretrain --set``. OUT
keeps the runs: what is finished is not trained again.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path

from choose_mini import HALVES, PANCREAS, SHIPPED, Files, corpus, queries, score
from transfer_protocol import model_embedding

from scfm import genes
from scfm.models import FoundationModel
from scfm.training import PretrainConfig, pretrain
from scfm.training._config import read_entries
from scfm.training._fit_projection import MODEL, coding_vocabulary, fit_projection

CONFIG = Path(__file__).parents[1] / "configs" / "scfm-mini-trunk.yaml"


def floor_of(data: Path, out: Path, names: list[str]) -> FoundationModel:
    """The sums over genes of a fit to some files of the corpus."""
    if not (out / MODEL).is_dir():
        files = [str(data / "corpus" / f"{name}.h5ad") for name in names]
        fit_projection({"corpus": {"files": files}, "projection": asdict(SHIPPED), "output": {"folder": str(out)}})
    return FoundationModel.from_pretrained(out / MODEL)


def trunk_of(data: Path, out: Path, floor: Path, names: list[str], overrides: list[str]) -> FoundationModel:
    """That with layers on top."""
    entries = read_entries(CONFIG, [*overrides, f"model.start={floor / MODEL}", f"output.folder={out}"])
    entries["corpus"] = {}
    if not (out / "model").is_dir():
        pretrain([str(data / "corpus" / f"{name}.h5ad") for name in names], PretrainConfig.build(entries))
    return FoundationModel.from_pretrained(out / "model")


def cells(data: Path, kept: Path) -> tuple[list[str], Files]:
    """Human files of the corpus that may be fitted on, and the cells of all that are scored."""
    if not kept.is_file():
        vocabulary = coding_vocabulary("human")
        human, mouse = corpus(data, vocabulary), corpus(data, vocabulary, "mouse")
        kept.write_bytes(pickle.dumps((sorted(human), {**human, **mouse})))
    return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]


def main() -> None:
    """Print the rows of the floor and of what stands on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with corpus/")
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("set", nargs="*", help="entries of the configuration")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True, parents=True)
    run = "_".join(args.set).replace("/", "-") or "as configured"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", genes.CoverageWarning)
        names, files = cells(args.data, args.out / "cells.pkl")
        altered = {name: queries(files[name][0].labelled(10)) for half in HALVES for name in half}
        floors, trunks = [], []
        for number, half in enumerate(HALVES):
            left = [name for name in names if name not in {*half, *(PANCREAS if PANCREAS[0] in half else ())}]
            floor = args.out / f"floor {number}"
            floors.append(floor_of(args.data, floor, left))
            trunks.append(trunk_of(args.data, args.out / f"{run} {number}", floor, left, args.set))
        for name, models in (("floor", floors), (run, trunks)):
            row = score([model_embedding(model) for model in models], files, altered)
            print(f"| {name} |", *(f"{label} {x:.3f} |" for label, x in row.items()), flush=True)


if __name__ == "__main__":
    main()
