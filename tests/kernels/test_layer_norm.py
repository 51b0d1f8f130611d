"""Layer norm against float64."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 17, 31, 384, 1000])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_equals_float64(isa: str, width: int, offset: float) -> None:
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((5, width)) * [[0.1], [1], [10], [1], [100]] + offset).astype(np.float32)
    gamma, beta = rng.standard_normal(width).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    y = kernels.layer_norm(x, gamma, beta, 1e-5, isa)
    wide = x.astype(np.float64)
    mean, var = wide.mean(1, keepdims=True), wide.var(1, keepdims=True)
    normal = (wide - mean) / np.sqrt(var + 1e-5)
    expected = normal * gamma + beta
    # the mean errs by width * eps of the largest element, which shows divided by the deviation
    shift = (width + 4) * EPS * np.abs(wide).max(1, keepdims=True) / np.sqrt(var + 1e-5)
    tolerance = (shift + (width + 8) * EPS * (np.abs(normal) + 1e-3)) * np.abs(gamma) + 4 * EPS * np.abs(expected)
    assert (np.abs(y - expected) <= tolerance + 2 * EPS * np.abs(beta)).all()


@every_level
def test_constant_row_gives_beta(isa: str) -> None:
    beta = np.arange(24, dtype=np.float32)
    y = kernels.layer_norm(np.full((2, 24), 3.0, np.float32), np.ones(24, np.float32), beta, 1e-12, isa)
    np.testing.assert_allclose(y, np.tile(beta, (2, 1)), atol=0, rtol=EPS)
