"""GEMM of int4 weights with float16 scales and offsets of groups, on one core: layers of SmolLM2, and its head for few.

With up to 8 tokens activations are in one panel of their own, as a decoder's step has them.

    python -m pytest bench/bench_gemm_groups.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from common import sized, time_products

from approxrt._C import kernels

SHAPES = [(tokens, k, n) for tokens in (1, 8, 48, 192) for k, n in ((576, 576), (576, 1536), (1536, 576))]
SHAPES += [(1, 576, 49152), (8, 576, 49152)]


@lru_cache(maxsize=2)
def weights(isa: str, k: int, n: int) -> Any:
    """Random weights."""
    rng = np.random.default_rng(0)
    q4 = rng.integers(0, 256, (n, k // 2), dtype=np.uint8)
    scale, offset = (rng.normal(0, 0.01, (n, k // 32)).astype(np.float16) for _ in range(2))
    return kernels.GroupLinear.nibbles(k, q4, scale, offset, np.zeros(n, np.float32), isa)


@sized("gemm_groups", *SHAPES, macs=lambda tokens, k, n: tokens * k * n)
def test_gemm_groups(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    tokens, k, n = shape
    linear = weights(isa, k, n)
    x = np.random.default_rng(1).standard_normal((tokens, k), dtype=np.float32)
    rows = kernels.quantize_groups(x, isa, tokens <= 8)
    names = {"tokens": tokens, "k": k, "n": n}
    time_products(benchmark, lambda: linear.forward(rows), "int8", isa, names, tokens * k * n, tokens * k * n)
