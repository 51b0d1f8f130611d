"""int8 products of a few tokens: sums exact, and results those of gemm_int8 bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from int8_inputs import extreme, random_bsr, unit
from levels import SUPPORTED

from approxrt import _C
from approxrt._C import kernels
from approxrt.artifact.storage.bsr import bsr_to_dense

# Levels with a kernel of their own; others multiply few tokens with gemm_int8.
LEVELS = [row["isa"] for row in _C.kernel_list() if row["family"] == "gemv_int8" and row["isa"] in SUPPORTED]
SHAPES = [(1, 1, 1), (1, 4, 16), (2, 15, 33), (3, 12, 31), (4, 65, 16), (5, 63, 48), (7, 384, 16), (8, 576, 40)]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.4, 0.0])
def test_sums_are_exact(isa: str, shape: tuple[int, int, int], density: float) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    x = extreme(rng, (rows, k), -128)
    if density == 1:
        w = extreme(rng, (n, k), -127)
        linear = kernels.Int8Linear.dense(w, *unit(n), isa)
    else:
        indptr, indices, tiles = random_bsr(rng, n, k, density)
        w = bsr_to_dense(tiles, indices, indptr, n, k)
        linear = kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, *unit(n), isa)
    _, sums = linear.gemv(kernels.tokens_from_int8(x))
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ w.T.astype(np.int64))


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("rows", range(1, 9))
def test_results_are_those_of_gemm(isa: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 100)).astype(np.float32)
    scale, bias = rng.random((2, 50)).astype(np.float32)
    linear = kernels.Int8Linear.dense(extreme(rng, (50, 100), -127), scale, bias, isa)
    y, _ = linear.gemv(kernels.quantize_tokens(x, isa))
    np.testing.assert_array_equal(y, linear.forward(kernels.quantize_rows(x, isa)))


def test_refusals() -> None:
    linear = kernels.Int8Linear.dense(np.zeros((16, 8), np.int8), *unit(16), "scalar")
    with pytest.raises(ValueError, match="at most 8"):
        linear.gemv(kernels.tokens_from_int8(np.zeros((9, 8), np.int8)))
    with pytest.raises(ValueError, match="inputs"):
        linear.gemv(kernels.tokens_from_int8(np.zeros((1, 9), np.int8)))
