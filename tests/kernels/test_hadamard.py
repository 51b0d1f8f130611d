"""Hadamard transforms of blocks: the same on every level, and the matrix's product."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels
from approxrt.artifact.storage.hadamard import hadamard


@every_level
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("blocks", [1, 3])
def test_equals_the_matrix(isa: str, size: int, blocks: int) -> None:
    x = np.random.default_rng(size).standard_normal((5, size * blocks)).astype(np.float32)
    y = kernels.hadamard(x, size, isa)
    expected = (x.reshape(5, blocks, size).astype(np.float64) @ hadamard(size)).reshape(x.shape)
    # log2(size) + 2 roundings on the way, each of at most the sum of the block's magnitudes.
    bound = np.abs(x).reshape(5, blocks, size).sum(axis=2).max() / np.sqrt(size)
    assert np.abs(y - expected).max() <= (np.log2(size) + 2) * EPS * bound
    np.testing.assert_array_equal(y, kernels.hadamard(x, size, "scalar"))
