"""int4 GEMM, dense and block-sparse, on one core: the shapes of bench_gemm_int8.py, for comparison.

`rate` counts products that were executed, `dense_equivalent` those that a dense matrix would need; the share is that
of register-only int8 work at the same level (`kernels.peak_int8`), which kernels without VNNI may exceed: they multiply
bytes where int8 needs 16-bit values.

    python -m pytest bench/bench_gemm_int4.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from bench_gemm_int8 import SHAPES
from common import TILE_K, TILE_N, sized, time_products

from approxrt._C import kernels

GROUP_TILES = 8


@lru_cache(maxsize=2)
def weights(isa: str, k: int, n: int, density: float) -> Any:
    """Random weights; a tile is kept with that probability."""
    rng = np.random.default_rng(0)
    scale, bias = np.full(n, 1e-3, np.float32), np.zeros(n, np.float32)

    def nibbles(*shape: int) -> np.ndarray:
        return (rng.integers(1, 16, shape) | rng.integers(1, 16, shape) << 4).astype(np.uint8)

    def scales(*shape: int) -> np.ndarray:
        return rng.integers(1, 19, shape, dtype=np.uint8)

    if density == 1.0:
        groups = -(-k // (GROUP_TILES * TILE_K))
        return kernels.Int4Linear.dense(k, nibbles(n, k // 2), scales(n, groups), scale, bias, isa)
    mask = rng.random((n // TILE_N, k // TILE_K)) < density
    counts = mask.sum(1)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    indices = np.nonzero(mask)[1].astype(np.uint16)
    tiles, groups = nibbles(len(indices), TILE_N, TILE_K // 2), int((-(-counts // GROUP_TILES)).sum())
    return kernels.Int4Linear.bsr(k, indptr, indices, tiles, scales(groups, TILE_N), scale, bias, isa)


@sized("gemm_int4", *SHAPES, macs=lambda tokens, k, n, density: tokens * k * n * density)
def test_gemm_int4(benchmark: Any, isa: str, shape: tuple[int, int, int, float]) -> None:
    tokens, k, n, density = shape
    linear = weights(isa, k, n, density)
    x = np.random.default_rng(1).standard_normal((tokens, k), dtype=np.float32)
    panels = kernels.quantize_rows_u8(x, isa)
    macs = tokens * linear.tiles * TILE_N * TILE_K
    names = {"tokens": tokens, "k": k, "n": n, "density": density}
    time_products(benchmark, lambda: linear.forward(panels), "int8", isa, names, macs, tokens * k * n)
