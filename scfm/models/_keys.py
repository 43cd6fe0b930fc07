"""Which tensor is which? From a checkpoint's names to ours, strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scfm.errors import CheckpointError
from scfm.transformer import CellTransformer, CellTransformerConfig


@dataclass(frozen=True)
class Key:
    r"""A row of a family's key table.

    Parameters
    ----------
    pattern
        Regular expression that a whole key must match.
    target
        Our name, with groups of the pattern as ``\1``.
    part
        The tensor is row block ``part[0]`` of ``part[1]`` equal ones.
    add
        The tensor, through this function, is added to the target after all copies.
    """

    pattern: str
    target: str
    part: tuple[int, int] | None = None
    add: Callable[[Tensor], Tensor] | None = None


ALIGNMENT = 64
"""Bytes, as torch allocates."""


def fill(
    config: CellTransformerConfig,
    state: Mapping[str, Tensor],
    keys: Sequence[Key],
    ignored: Mapping[str, str],
    source: str,
) -> tuple[CellTransformer, dict[str, str]]:
    """A transformer with every parameter from a checkpoint, and what was ignored; arguments as for `translate`."""
    with torch.device("meta"):
        model = CellTransformer(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ours, dropped = translate(state, shapes, keys, ignored, source)
    model.load_state_dict({name: _owned(tensor) for name, tensor in ours.items()}, strict=True, assign=True)
    return model, dropped


def _owned(tensor: Tensor) -> Tensor:
    """The tensor, copied where its memory belongs to others too, or begins where a file happened to put it.

    Matrix products round otherwise where memory is not aligned: two files of the same numbers must give the same.
    """
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return (
        tensor if alone and tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)
    )


def check_copies(state: Mapping[str, Tensor], copies: Mapping[str, str], source: str) -> None:
    """Tensors that are stored twice must be equal, since one of the two is ignored.

    Raises
    ------
    CheckpointError
        If a tensor of ``copies`` (copy: original) differs from its original.
    """
    for copy, original in copies.items():
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise CheckpointError(
                f"{source}: {copy} should be a copy of {original}, but it differs; a model with two separate tables "
                "cannot be read"
            )


def translate(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    keys: Sequence[Key],
    ignored: Mapping[str, str],
    source: str,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our state dict of a checkpoint's.

    Parameters
    ----------
    state
        The checkpoint's tensors.
    shapes
        Name and shape of every tensor of our model.
    keys
        The family's table; the first matching row counts.
    ignored
        Patterns of keys that are not used, each with the reason.
    source
        What to call the checkpoint in errors.

    Returns
    -------
    The filled tensors, and the ignored keys with their reasons.

    Raises
    ------
    CheckpointError
        If a key is unknown, a tensor is filled twice or not at all, or a shape differs.
    """
    filled: dict[str, Tensor] = {}
    blocks: dict[str, set[int]] = {}
    additions: list[tuple[str, str, Tensor]] = []
    dropped: dict[str, str] = {}
    unknown = []
    for name, tensor in state.items():
        reason = next((why for pattern, why in ignored.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            dropped[name] = reason
            continue
        row, match = next(((k, m) for k in keys if (m := re.fullmatch(k.pattern, name))), (None, None))
        if row is None or match is None:
            unknown.append(name)
            continue
        target = match.expand(row.target)
        if target not in shapes:
            unknown.append(name)
        elif row.add is not None:
            additions.append((name, target, row.add(tensor)))
        else:
            _place(filled, blocks, name, target, tensor, row.part, shapes[target], source)
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} tensors that this family does not know ({', '.join(unknown[:4])}); "
            "it may be of another family or a newer version: pass family= if you know it"
        )
    for name, target, tensor in additions:
        if target in filled:
            _check_shape(name, tensor, filled[target].shape[1:], source)
            filled[target] = filled[target] + tensor
    added = {target for _name, target, _tensor in additions}
    missing = [n for n in shapes if n not in filled]
    missing += [f"{k.pattern} (part of {k.target})".replace("\\", "") for k in keys if k.add and k.target not in added]
    missing += [n for n, absent in blocks.items() if absent]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {len(shapes)} tensors of the model ({', '.join(missing[:4])}); "
            "nothing was loaded. The file may be truncated or of another kind of model"
        )
    return filled, dropped


def _place(
    filled: dict[str, Tensor],
    blocks: dict[str, set[int]],
    name: str,
    target: str,
    tensor: Tensor,
    part: tuple[int, int] | None,
    shape: torch.Size,
    source: str,
) -> None:
    if part is None:
        if target in filled:
            raise CheckpointError(f"{source}: two tensors claim to be {target}; one of them is {name}")
        if tensor.shape != shape and _squeezed(tensor.shape) == _squeezed(shape):
            tensor = tensor.reshape(shape)
        _check_shape(name, tensor, shape, source)
        filled[target] = tensor
        return
    index, n = part
    rows = shape[0] // n
    _check_shape(name, tensor, torch.Size([rows, *shape[1:]]), source)
    absent = blocks.setdefault(target, set(range(n)))
    if index not in absent:
        raise CheckpointError(f"{source}: two tensors claim to be part {index + 1} of {target}; one of them is {name}")
    absent.remove(index)
    filled.setdefault(target, torch.empty(shape, dtype=tensor.dtype))[index * rows : (index + 1) * rows] = tensor


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [s for s in shape if s != 1]


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int], source: str) -> None:
    if list(tensor.shape) != list(shape):
        raise CheckpointError(
            f"{source}: {name} has shape {list(tensor.shape)}, but {list(shape)} was expected from the vocabulary and "
            "the configuration; check that all files are from the same release"
        )
