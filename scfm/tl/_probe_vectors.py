"""Which vectors are probed? Those of every layer, of cells and of sequences, from one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scfm import models
from scfm.errors import ConfigError
from scfm.models._device import resolve_device
from scfm.models._run import to_numpy

if TYPE_CHECKING:
    from scfm.training._sequence_network import SequenceModel

BLOCK_ROWS = 1024


def vectors_of_cells(
    opened: Any,
    rows: NDArray[np.int64],
    pooling: str | Sequence[str] | None,
    layers: Sequence[int] | None,
    seed: int,
    progress: bool,
) -> dict[tuple[str, int], NDArray[np.float32]]:
    """(m, d) vectors of some cells by read-out and layer; NaN where a cell has no gene of the model.

    Parameters
    ----------
    opened
        Cells and model.
    rows
        Cells that are read.
    pooling, layers
        As they were asked for.
    seed
        Of random tokens.
    progress
        Whether to show a bar.

    Raises
    ------
    ConfigError
        If a read-out or layer is not there, or no cell holds a gene of the model.
    """
    model: models.FoundationModel = opened.model
    poolings, numbers = _poolings(model, pooling), _layers(model, layers)
    transformer = model.transformer
    specs = [transformer.readout(name) for name in poolings]
    out: dict[tuple[str, int], NDArray[np.float32]] = {}

    def compute(batch: Any) -> list[Any]:
        states = transformer.states(batch, numbers)
        return [transformer.pool(x, batch, spec) for spec in specs for x in states]

    wanted = np.zeros(opened.source.shape[0], dtype=bool)
    wanted[rows] = True
    place = np.cumsum(wanted) - 1
    with tqdm(total=len(rows), desc=model.card.name, unit="cell", disable=not progress) as bar:
        for block in opened.source.blocks(BLOCK_ROWS):
            inside = slice(block.start, block.start + block.n_cells)
            picked = np.flatnonzero(wanted[inside])
            if not len(picked):
                continue
            here = {k: v[inside] if np.ndim(v) else v for k, v in opened.context.items()}
            tokens = model.tokenizer.tokenize_block(block, opened.match, context=here, seed=seed)[picked]
            some = np.flatnonzero(np.asarray(tokens.per_cell["n_detected"]) > 0)
            for cells, _part, found in model.over_batches(tokens[some], compute):
                at = place[block.start + picked[some[cells]]]
                for key, x in zip(((p, k) for p in poolings for k in numbers), found, strict=True):
                    if key not in out:
                        out[key] = np.full((len(rows), x.shape[-1]), np.nan, dtype=np.float32)
                    out[key][at] = to_numpy(x)
            bar.update(len(picked))
    if not out:
        raise ConfigError("no cell holds a gene of the model; check the genes with scfm.pp.inspect(adata)")
    return out


def vectors_of_sequences(
    data: Any,
    rows: NDArray[np.int64],
    model: Any,
    pooling: str | Sequence[str] | None,
    layers: Sequence[int] | None,
    options: Mapping[str, Any],
    device: str | None,
    progress: bool,
) -> tuple[SequenceModel, dict[tuple[str, int], NDArray[np.float32]]]:
    """The same of sequences, and the model.

    Parameters
    ----------
    data
        A table or an AnnData with letters.
    rows
        Sequences that are read.
    model
        Folder or repository.
    pooling, layers
        As they were asked for.
    options
        ``sequence_key``, ``too_long``, ``max_tokens``, ``revision``.
    device
        Where to compute.
    progress
        Whether to show a bar.
    """
    from scfm.training._finetune_sequences import letters_of
    from scfm.training._sequence_network import SequenceModel

    poolings = _listed(pooling or "mean")
    letters = letters_of(data, options["sequence_key"])
    opened = SequenceModel.open(
        model,
        poolings[0],
        options["too_long"],
        options["max_tokens"],
        device=resolve_device(device),
        revision=options["revision"],
    )
    names = [*letters]
    tokens = opened.tokens({names[i]: letters[names[i]] for i in rows}, progress)
    return opened, opened.vectors_of_layers(tokens, _layers(opened, layers), poolings, progress)


def _poolings(model: models.FoundationModel, asked: str | Sequence[str] | None) -> list[str]:
    specs = model.config.readout_specs
    usable = [n for n, s in specs.items() if not (s.continued or s.padded_to or s.layers)]
    if asked is None:
        default = model.config.readout
        return [default] if default in usable else usable[:1]
    names = _listed(asked)
    for name in names:
        model.transformer.readout(name)
        if name not in usable:
            raise ConfigError(f"pooling={name!r} reads more than one layer at a time; choose {', '.join(usable)}")
    return names


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _layers(model: models.FoundationModel | SequenceModel, asked: Sequence[int] | None) -> list[int]:
    n = model.transformer.n_layers
    if asked is None:
        return [*range(n + 1)]
    numbers = [model.transformer.layer_number(k) for k in asked]
    return sorted({n if k is None else k for k in numbers})
