"""RMS norm of tokens: hidden sizes of small language models. Bytes: the input read once and the result written.

python -m pytest bench/bench_rms_norm.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import TOKENS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(tokens, width) for width in (576, 2048) for tokens in TOKENS]


@sized("rms_norm", *SHAPES)
def test_rms_norm(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    gamma = np.ones(shape[1], np.float32)
    names = {"tokens": shape[0], "width": shape[1]}
    time_elements(benchmark, lambda: kernels.rms_norm(x, gamma, 1e-5, isa), isa, names, x.size, 8 * x.size)
