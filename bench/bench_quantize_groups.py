"""Quantisation with a scale a token and a shift a group. Bytes: the input read, 40 for every 32 elements written.

python -m pytest bench/bench_quantize_groups.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_elements

from approxrt._C import kernels


@sized("quantize_groups", *[(tokens, k) for tokens in (1, 8, 48) for k in (576, 1536)])
def test_quantize_groups(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names, few = {"tokens": shape[0], "k": shape[1]}, shape[0] <= 8
    time_elements(benchmark, lambda: kernels.quantize_groups(x, isa, few), isa, names, x.size, 5.25 * x.size)
