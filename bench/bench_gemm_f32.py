"""float32 GEMM on one core, weights packed before: projections of MiniLM and BERT-base.

python -m pytest bench/bench_gemm_f32.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from common import PROJECTIONS, TOKENS, sized, time_products

from approxrt._C import kernels

SHAPES = [(tokens, k, n) for k, n in PROJECTIONS for tokens in TOKENS]


@lru_cache(maxsize=2)
def weights(k: int, n: int) -> Any:
    """Random weights."""
    w = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
    return kernels.F32Linear(w, np.zeros(n, np.float32))


@sized("gemm_f32", *SHAPES, macs=lambda tokens, k, n: tokens * k * n)
def test_gemm_f32(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    tokens, k, n = shape
    linear = weights(k, n)
    x = np.random.default_rng(1).standard_normal((tokens, k), dtype=np.float32)
    macs = tokens * k * n
    names = {"tokens": tokens, "k": k, "n": n}
    time_products(benchmark, lambda: linear.forward(x, "identity", isa), "f32", isa, names, macs, macs)
