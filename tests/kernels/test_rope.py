"""Rotary positions against float64."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("dim", [2, 6, 14, 16, 18, 32, 34, 64, 80, 128])
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_float64(isa: str, dim: int, heads: int) -> None:
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((5, heads, dim)).astype(np.float32)
    angles = rng.uniform(0, 100, (5, dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., : dim // 2].astype(np.float64), x[..., dim // 2 :].astype(np.float64)
    c, s = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    expected = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
    # Two products and a sum, each rounded once.
    tolerance = 2 * EPS * np.concatenate([np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s)], axis=-1)
    assert (np.abs(kernels.rope(x, cos, sin, isa) - expected) <= tolerance).all()
