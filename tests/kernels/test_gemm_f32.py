"""f32 GEMM against float64, within the bound of float32 summation."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level, sum_tolerance

from approxrt._C import kernels

SHAPES = [(1, 1, 1), (5, 3, 15), (6, 16, 16), (7, 33, 17), (8, 64, 33), (9, 384, 32), (13, 1536, 48), (25, 20, 80)]


@every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(isa: str, shape: tuple[int, int, int]) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    x, w = rng.standard_normal((rows, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    y = kernels.gemm_f32(x, w, bias, "identity", isa)
    assert y.shape == (rows, -(-n // 16) * 16)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + bias
    assert (np.abs(y[:, :n] - expected) <= sum_tolerance(x, w) + 2 * EPS * np.abs(expected)).all()


@every_level
def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((19, 40)).astype(np.float32), rng.standard_normal((20, 40)).astype(np.float32)
    bias = np.ones(20, np.float32)
    together = kernels.gemm_f32(x, w, bias, "gelu", isa)
    for i in range(len(x)):
        np.testing.assert_array_equal(together[i], kernels.gemm_f32(x[i : i + 1], w, bias, "gelu", isa)[0])
