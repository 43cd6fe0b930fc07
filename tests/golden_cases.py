"""Where the recorded cases are, and how ours is compared with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from scfm.tokenizers import Tokens

ROOT = Path(os.environ.get("SCFM_GOLDEN", Path(__file__).parent / "golden"))


def case(family: str) -> Path:
    """The folder of a family's recorded case."""
    folder = ROOT / family / "tiny"
    if not folder.is_dir():
        pytest.skip(f"no recorded case {folder}")
    return folder


def arrays(family: str) -> dict[str, np.ndarray]:
    """Every recorded array of a family."""
    with np.load(case(family) / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_close(ours, recorded, tolerance: float = 1e-5) -> None:
    """Equal within ``tolerance`` of the recorded array's scale."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    assert ours.shape == recorded.shape, (ours.shape, recorded.shape)
    scale = max(1.0, float(np.nanmax(np.abs(recorded), initial=0.0)))
    np.testing.assert_allclose(ours, recorded, rtol=0, atol=tolerance * scale)


def unpad(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The real entries of a padded array (n, L, ...), end to end."""
    return np.concatenate([padded[i, :n] for i, n in enumerate(lengths)])


def tokens_of(ids: np.ndarray, lengths: np.ndarray, values: np.ndarray | None = None, **channels) -> Tokens:
    """Tokens of padded recorded arrays."""
    return Tokens(
        ids=unpad(ids, lengths).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        values=None if values is None else unpad(values, lengths).astype(np.float32),
        channels={k: unpad(v, lengths) for k, v in channels.items()},
    )
