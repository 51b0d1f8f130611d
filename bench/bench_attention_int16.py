"""Attention of one head with 16-bit products, as int8 models use it: shapes of bench_attention.py.

python -m pytest bench/bench_attention_int16.py --benchmark-only
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from bench_attention import SHAPES, macs
from common import sized, time_products

from approxrt._C import kernels


@sized("attention_int16", *SHAPES, macs=macs)
def test_attention_int16(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    n, head_dim = shape
    q, k, v = np.random.default_rng(0).standard_normal((3, n, head_dim), dtype=np.float32)
    names = {"n": n, "head_dim": head_dim}
    # Against the peak of int8 products, which VNNI does twice as many of; without it they are 16-bit products too.
    call = partial(kernels.attention, q, k, v, head_dim**-0.5, isa, 0, -1, True)
    time_products(benchmark, call, "int8", isa, names, macs(n, head_dim), macs(n, head_dim))
