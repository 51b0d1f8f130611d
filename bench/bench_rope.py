"""Rotary positions of tokens with 9 heads of 64, SmolLM2's. Bytes: the input read and written once, and the angles.

python -m pytest bench/bench_rope.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import TOKENS, sized, time_elements

from approxrt._C import kernels


@sized("rope", *[(tokens, 9, 64) for tokens in TOKENS])
def test_rope(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    cos, sin = np.ones((2, shape[0], shape[2] // 2), np.float32)
    names = {"tokens": shape[0], "heads": shape[1], "head_dim": shape[2]}
    moved = 8 * x.size + 8 * cos.size
    time_elements(benchmark, lambda: kernels.rope(x, cos, sin, isa), isa, names, x.size, moved, copy=x.copy)
