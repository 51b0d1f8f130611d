"""Sign matching over a cache: one token at its end and a prompt, three query heads a key-value head, 192 signs a key.

python -m pytest bench/bench_sign_cached_attention.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_products

from approxrt._C import kernels

KEEP, CODES = 128, 192
SHAPES = [(kind, keys, tokens) for kind in ("f16", "int8") for keys in (512, 2048, 8192) for tokens in (1, 256)]


def filled(kind: str, keys: int, isa: str) -> kernels.Cache:
    """A cache of one head with signs beside it."""
    rng = np.random.default_rng(0)
    cache = kernels.Cache(keys, 64, kind)
    cache.match_signs(rng.standard_normal((CODES, 64)).astype(np.float32), np.zeros(CODES, np.float32), True)
    cache.write(*rng.standard_normal((2, keys, 64), dtype=np.float32), 0, isa)
    cache.index(0, keys, isa)
    return cache


@sized("sign_cached_attention", *SHAPES, macs=lambda kind, keys, tokens: 3 * 64 * keys * tokens)
def test_sign_cached_attention(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    kind, keys, tokens = shape
    cache = filled(kind, keys, isa)
    q = np.random.default_rng(1).standard_normal((tokens, 3, 64), dtype=np.float32)
    # Both products over the kept keys; counting signs is not among them.
    macs = 2 * 3 * 64 * (KEEP + 17) * tokens
    seen = tokens * (keys - tokens) + tokens * (tokens + 1) / 2
    names = {"kind": kind, "keys": keys, "tokens": tokens}
    call = lambda: cache.sign_attention(q, keys - tokens, 0.125, KEEP, 16, isa)  # noqa: E731
    time_products(benchmark, call, "f32", isa, names, macs, 2 * 3 * 64 * seen)
