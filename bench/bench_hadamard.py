"""Hadamard transforms of blocks of 128 in SmolLM2's 1,536 wide activations. Bytes: the input read, the result written.

python -m pytest bench/bench_hadamard.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import TOKENS, sized, time_elements

from approxrt._C import kernels


@sized("hadamard", *[(tokens, 1536, 128) for tokens in TOKENS])
def test_hadamard(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    tokens, width, size = shape
    x = np.random.default_rng(0).standard_normal((tokens, width), dtype=np.float32)
    names = {"tokens": tokens, "width": width, "size": size}
    time_elements(benchmark, lambda: kernels.hadamard(x, size, isa), isa, names, x.size, 8 * x.size)
