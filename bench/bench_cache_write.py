"""Keys and values of tokens into a cache. Bytes: both read as float32 and written in the cache's kind.

python -m pytest bench/bench_cache_write.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import TOKENS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(kind, tokens, 64) for kind in ("f16", "int8") for tokens in TOKENS]


@sized("cache_write", *SHAPES)
def test_cache_write(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    kind, tokens, dim = shape
    keys, values = np.random.default_rng(0).standard_normal((2, tokens, dim), dtype=np.float32)
    cache = kernels.Cache(tokens, dim, kind)
    names = {"kind": kind, "tokens": tokens, "head_dim": dim}
    moved = 2 * keys.size * (4 + {"f16": 2, "int8": 1}[kind])
    time_elements(benchmark, lambda: cache.write(keys, values, 0, isa), isa, names, 2 * keys.size, moved)
