"""Activations to int8, a scale a token, in the layout of the GEMM: inputs of MiniLM's and BERT-base's projections.

Bytes: a float32 read and an int8 written an element, a float32 scale a token. Without VNNI (AVX2, AVX-512) the layout
holds 16-bit values, so more is written than is counted.

    python -m pytest bench/bench_quantize_rows.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import HIDDEN, INNER, TOKENS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(tokens, width) for width in (*HIDDEN, *INNER) for tokens in TOKENS]


@sized("quantize_rows", *SHAPES)
def test_quantize_rows(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    tokens, width = shape
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names = {"tokens": tokens, "width": width}
    moved = 5 * x.size + 4 * tokens
    time_elements(benchmark, lambda: kernels.quantize_rows(x, isa), isa, names, x.size, moved)
