"""Activations to bytes for int4 linears, a scale a token: the shapes of bench_quantize_rows.py.

Bytes: a float32 read and a byte written an element, a float32 scale a token.

    python -m pytest bench/bench_quantize_rows_u8.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from bench_quantize_rows import SHAPES
from common import sized, time_elements

from approxrt._C import kernels


@sized("quantize_rows_u8", *SHAPES)
def test_quantize_rows_u8(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    tokens, width = shape
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names = {"tokens": tokens, "width": width}
    moved = 5 * x.size + 4 * tokens
    time_elements(benchmark, lambda: kernels.quantize_rows_u8(x, isa), isa, names, x.size, moved)
