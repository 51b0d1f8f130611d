"""int8 GEMM, dense and block-sparse, on one core: projections of MiniLM and BERT-base.

`rate` counts products that were executed, `dense_equivalent` those that a dense matrix would need; the share is that
of register-only int8 work at the same level (`kernels.peak_int8`).

    python -m pytest bench/bench_gemm_int8.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from common import PROJECTIONS, TILE_K, TILE_N, sized, time_products

from approxrt._C import kernels

DENSITIES = (1.0, 0.5, 0.25, 0.1)
SHAPES = [(tokens, k, n, d) for k, n in PROJECTIONS for d in DENSITIES for tokens in (1, 4, 16, 128, 512)]


@lru_cache(maxsize=2)
def weights(isa: str, k: int, n: int, density: float) -> Any:
    """Random weights; a tile is kept with that probability."""
    rng = np.random.default_rng(0)
    scale, bias = np.full(n, 1e-3, np.float32), np.zeros(n, np.float32)
    if density == 1.0:
        return kernels.Int8Linear.dense(rng.integers(-127, 128, (n, k), dtype=np.int8), scale, bias, isa)
    mask = rng.random((n // TILE_N, k // TILE_K)) < density
    indptr = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    indices = np.nonzero(mask)[1].astype(np.uint16)
    tiles = rng.integers(-127, 128, (len(indices), TILE_N, TILE_K), dtype=np.int8)
    return kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, scale, bias, isa)


@sized("gemm_int8", *SHAPES, macs=lambda tokens, k, n, density: tokens * k * n * density)
def test_gemm_int8(benchmark: Any, isa: str, shape: tuple[int, int, int, float]) -> None:
    tokens, k, n, density = shape
    linear = weights(isa, k, n, density)
    x = np.random.default_rng(1).standard_normal((tokens, k), dtype=np.float32)
    panels = kernels.quantize_rows(x, isa)
    macs = tokens * linear.tiles * TILE_N * TILE_K
    names = {"tokens": tokens, "k": k, "n": n, "density": density}
    time_products(benchmark, lambda: linear.forward(panels), "int8", isa, names, macs, tokens * k * n)
