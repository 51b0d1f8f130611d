"""int8 GEMM, dense and block-sparse, on one core: MiniLM's shapes, and the share of the peak measured beside it.

`GMAC/s` counts products that were executed, `dense-equivalent GMAC/s` those that a dense matrix would need, `of peak`
compares the former with register-only work at the same level (`kernels.peak_int8`), timed just before.

    python -m pytest bench/bench_gemm_int8.py --benchmark-only
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from approxrt import _C
from approxrt._C import kernels

TILE_N, TILE_K = 16, 4
LEVELS = _C.supported_isas()
SHAPES = [(32, 384, 384), (128, 1536, 384), (128, 384, 1536)]


def peak_gmacs(isa: str) -> float:
    """Best of five timings of register-only multiply-adds, in 10^9 products a second."""
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        products = kernels.peak_int8(200_000, isa)
        best = max(best, products / (time.perf_counter() - begin) / 1e9)
    return best


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.25])
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
def test_gemm_int8(benchmark: Any, isa: str, density: float, rows: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    scale, bias = np.full(n, 1e-3, np.float32), np.zeros(n, np.float32)
    if density == 1.0:
        linear = kernels.Int8Linear.dense(rng.integers(-127, 128, (n, k), dtype=np.int8), scale, bias, isa)
        tiles = n * k // (TILE_N * TILE_K)
    else:
        mask = rng.random((n // TILE_N, k // TILE_K)) < density
        tiles = int(mask.sum())
        indptr = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
        indices = np.nonzero(mask)[1].astype(np.uint16)
        values = rng.integers(-127, 128, (tiles, TILE_N, TILE_K), dtype=np.int8)
        linear = kernels.Int8Linear.bsr(n, k, indptr, indices, values, scale, bias, isa)
    panels = kernels.quantize_rows(rng.standard_normal((rows, k)).astype(np.float32), isa)
    peak = peak_gmacs(isa)
    benchmark(linear.forward, panels)
    executed = rows * tiles * TILE_N * TILE_K / benchmark.stats.stats.median / 1e9
    benchmark.extra_info.update(
        {
            "GMAC/s": executed,
            "dense-equivalent GMAC/s": executed * n * k / (tiles * TILE_N * TILE_K),
            "peak GMAC/s": peak,
            "of peak": executed / peak,
        }
    )
