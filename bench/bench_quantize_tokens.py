"""Per-token quantisation into rows. Bytes: the input read, two bytes an element written.

python -m pytest bench/bench_quantize_tokens.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_elements

from approxrt._C import kernels


@sized("quantize_tokens", *[(tokens, k) for tokens in (1, 8) for k in (576, 1536)])
def test_quantize_tokens(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names = {"tokens": shape[0], "k": shape[1]}
    time_elements(benchmark, lambda: kernels.quantize_tokens(x, isa), isa, names, x.size, 6 * x.size)
