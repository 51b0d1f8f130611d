"""int4 products of a few tokens: sums exact, and results those of gemm_int4 bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from int4_inputs import activations, random_bsr, random_dense, unit
from levels import SUPPORTED

from approxrt import _C
from approxrt._C import kernels
from approxrt.artifact.storage.bsr import bsr_to_dense
from approxrt.artifact.storage.int4 import row_integers, tile_integers

LEVELS = [row["isa"] for row in _C.kernel_list() if row["family"] == "gemv_int4" and row["isa"] in SUPPORTED]
SHAPES = [(1, 1, 1), (1, 4, 16), (2, 31, 33), (3, 33, 31), (4, 64, 16), (5, 100, 48), (7, 384, 16), (8, 513, 40)]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.4, 0.0])
def test_sums_are_exact(isa: str, shape: tuple[int, int, int], density: float) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    x = activations(rng, rows, k)
    if density == 1:
        q4, m = random_dense(rng, n, k)
        w = row_integers(q4, m, k)
        linear = kernels.Int4Linear.dense(k, q4, m, *unit(n), isa)
    else:
        indptr, indices, tiles, m = random_bsr(rng, n, k, density)
        w = bsr_to_dense(tile_integers(tiles, m, indptr), indices, indptr, n, k)
        linear = kernels.Int4Linear.bsr(k, indptr, indices, tiles, m, *unit(n), isa)
    _, sums = linear.gemv(kernels.tokens_from_int8(x))
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ w.T.astype(np.int64))


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("rows", range(1, 9))
def test_results_are_those_of_gemm(isa: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 100)).astype(np.float32)
    scale, bias = rng.random((2, 50)).astype(np.float32)
    linear = kernels.Int4Linear.dense(100, *random_dense(rng, 50, 100), scale, bias, isa)
    y, _ = linear.gemv(kernels.quantize_tokens(x, isa))
    np.testing.assert_array_equal(y, linear.forward(kernels.quantize_rows_u8(x, isa)))
