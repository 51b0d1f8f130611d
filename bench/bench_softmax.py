"""Softmax of one head's scores, n queries by n keys, as attention calls it: not yet divided by the sum.

Bytes: each element read and written once; the binding's own copy is not counted, but it is in the time.

    python -m pytest bench/bench_softmax.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import HEAD_DIM, LENGTHS, sized, time_elements

from approxrt._C import kernels

SHAPES = [(1, LENGTHS[-1]), *((n, n) for n in LENGTHS)]


@sized("softmax", *SHAPES)
def test_softmax(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    rows, n = shape
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * HEAD_DIM[0] ** 0.5
    scale = HEAD_DIM[0] ** -0.5
    names = {"rows": rows, "n": n}
    time_elements(benchmark, lambda: kernels.softmax(x, scale, isa, False), isa, names, x.size, 8 * x.size, copy=x.copy)
