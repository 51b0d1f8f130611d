"""Attention over a cache: one token at its end and a prompt of as many tokens, three query heads a key-value head.

python -m pytest bench/bench_cached_attention.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_products

from approxrt._C import kernels

SHAPES = [
    (kind, keys, tokens) for kind in ("f16", "int8") for keys in (64, 512, 2048) for tokens in (1, min(keys, 512))
]


@sized("cached_attention", *SHAPES, macs=lambda kind, keys, tokens: 2 * 3 * 64 * keys * tokens)
def test_cached_attention(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    kind, keys, tokens = shape
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, keys, 64), dtype=np.float32)
    q = rng.standard_normal((tokens, 3, 64), dtype=np.float32)
    cache = kernels.Cache(keys, 64, kind)
    cache.write(k, v, 0, isa)
    seen = tokens * (keys - tokens) + tokens * (tokens + 1) / 2
    macs = 2 * 3 * 64 * seen
    names = {"kind": kind, "keys": keys, "tokens": tokens}
    time_products(benchmark, lambda: cache.attention(q, keys - tokens, 0.125, isa), "f32", isa, names, macs, macs)
