"""Layer norm of tokens: hidden sizes of MiniLM and BERT-base.

Bytes: the input read once and the result written; gamma and beta, and the passes after the first, are in L1.

    python -m pytest bench/bench_layer_norm.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import HIDDEN, TOKENS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(tokens, width) for width in HIDDEN for tokens in TOKENS]


@sized("layer_norm", *SHAPES)
def test_layer_norm(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    tokens, width = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    gamma, beta = rng.standard_normal((2, width), dtype=np.float32)
    names = {"tokens": tokens, "width": width}
    time_elements(benchmark, lambda: kernels.layer_norm(x, gamma, beta, 1e-12, isa), isa, names, x.size, 8 * x.size)
