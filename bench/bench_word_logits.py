"""Exact logits of single words. Bytes: the rows read, with their scales.

python -m pytest bench/bench_word_logits.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_elements

from approxrt._C import kernels


@sized("word_logits", *[(words, k) for words in (64, 1024) for k in (576, 2048)])
def test_word_logits(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    words, k = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal(k, dtype=np.float32)
    q = rng.integers(-128, 128, (8192, k), dtype=np.int8)
    scale = rng.standard_normal((8192, k // 32)).astype(np.float16)
    ids = np.sort(rng.permutation(8192)[:words]).astype(np.int32)
    names = {"words": words, "k": k}
    read = words * (k + k // 16)
    time_elements(benchmark, lambda: kernels.word_logits(x, q, scale, ids, isa), isa, names, words * k, read)
