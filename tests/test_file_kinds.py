"""What a file is, by its first bytes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scfm.models._reading import kind_of, read_tensors


def test_a_safetensors_file_is_recognised_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    first_bytes = set()
    for n in range(0, 256, 8):
        path = tmp_path / "model.safetensors"
        save_file({"weight": np.ones(3, np.float32)}, path, metadata={"note": "x" * n})
        first_bytes.add(path.read_bytes()[0])
        assert kind_of(path) == "a safetensors file"
        assert set(read_tensors(path)) == {"weight"}
    assert 0x80 in first_bytes


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_recognised_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "vocabulary.pkl"
    path.write_bytes(pickle.dumps({"ENSG00000000003": 2}, protocol=protocol))
    assert kind_of(path) == "a pickle"
