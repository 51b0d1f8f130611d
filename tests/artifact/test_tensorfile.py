"""Tensors that are views into a map of their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from approxrt.artifact.tensorfile import open_tensor_file, release_pages


def mapped_bytes() -> int:
    """Resident bytes of this process that are pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much of a map is resident")
def test_pages_go_and_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4000, 2000)).astype(np.float32)  # 32 MB
    save_file({"a": values, "b": np.ones(3, np.float32)}, tmp_path / "m.safetensors")
    tensors = open_tensor_file(tmp_path / "m.safetensors").tensors
    array = tensors["a"].to_float32()
    np.testing.assert_array_equal(array, values)
    before = mapped_bytes()
    release_pages([array[10:].T, tensors["b"].data, values, np.zeros(3)])
    assert before - mapped_bytes() > 30e6
    np.testing.assert_array_equal(array, values)
