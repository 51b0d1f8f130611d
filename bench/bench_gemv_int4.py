"""int4 products of a few tokens: matrices of a layer (they stay in a cache) and of a head (they do not, 28 M weights).

Bytes are those of packed weights: what memory, or a cache, must deliver.

    python -m pytest bench/bench_gemv_int4.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from common import SCALAR_MACS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(tokens, k, n) for k, n in ((576, 576), (1536, 576), (576, 49152)) for tokens in (1, 8)]


@lru_cache(maxsize=1)
def weights(isa: str, k: int, n: int) -> Any:
    """Random weights."""
    rng = np.random.default_rng(0)
    scale, bias = np.full(n, 1e-3, np.float32), np.zeros(n, np.float32)
    nibbles = (rng.integers(1, 16, (n, k // 2)) | rng.integers(1, 16, (n, k // 2)) << 4).astype(np.uint8)
    scales = rng.integers(1, 19, (n, k // 32), dtype=np.uint8)
    return kernels.Int4Linear.dense(k, nibbles, scales, scale, bias, isa)


@sized("gemv_int4", *SHAPES, macs=lambda tokens, k, n: min(tokens * k * n, SCALAR_MACS + 1))
def test_gemv_int4(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    tokens, k, n = shape
    linear = weights(isa, k, n)
    x = kernels.quantize_tokens(np.random.default_rng(1).standard_normal((tokens, k), dtype=np.float32), isa)
    names = {"tokens": tokens, "k": k, "n": n}
    time_elements(benchmark, lambda: linear.gemv(x), isa, names, tokens * k * n, linear.bytes)
