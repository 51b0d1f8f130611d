"""Schur complements in float64 on one core: a step of block OBS, which removes a twentieth of a layer's inputs.

python -m pytest bench/bench_schur_complement.py --benchmark-only

Products are those of the update below the diagonal. The call's copies and the factor of what goes are in the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_products

from approxrt._C import kernels

SHAPES = [(size, max(4, size // 80 * 4)) for size in (96, 384, 1536)]


@sized("schur_complement", *SHAPES, macs=lambda size, gone: (size - gone) ** 2 * gone / 2)
def test_schur_complement(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    size, gone = shape
    x = np.random.default_rng(0).standard_normal((2 * size, size))
    a = x.T @ x
    macs = (size - gone) ** 2 * gone / 2
    names = {"size": size, "gone": gone}
    time_products(benchmark, lambda: kernels.schur_complement(a, gone, isa), "f64", isa, names, macs, macs)
