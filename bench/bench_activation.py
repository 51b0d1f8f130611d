"""Activation functions: GELU of the feed-forward layers of MiniLM and BERT-base, the others at 128 tokens.

Bytes: each element read and written once; the binding's own copy is not counted, but it is in the time.

    python -m pytest bench/bench_activation.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import INNER, TOKENS, sized, time_elements

from approxrt._C import kernels

SHAPES = [
    *(("gelu", tokens, width) for width in INNER for tokens in TOKENS),
    *((act, 128, width) for act in ("gelu_tanh", "tanh", "relu") for width in INNER),
]


@sized("activation", *SHAPES)
def test_activation(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    act, tokens, width = shape
    x = np.random.default_rng(0).standard_normal(tokens * width, dtype=np.float32)
    names = {"act": act, "tokens": tokens, "width": width}
    time_elements(benchmark, lambda: kernels.activation(x, act, isa), isa, names, x.size, 8 * x.size, copy=x.copy)
