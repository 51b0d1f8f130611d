"""RMS norm against float64."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 17, 31, 576, 1000])
def test_equals_float64(isa: str, width: int) -> None:
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((5, width)) * [[0.1], [1], [10], [1e-3], [100]]).astype(np.float32)
    gamma = rng.standard_normal(width).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-5) * gamma
    # The sum of squares errs by width * eps of itself, of which the root has half; three more roundings.
    tolerance = (width / 2 + 4) * EPS * np.abs(expected) + 1e-12
    assert (np.abs(kernels.rms_norm(x, gamma, 1e-5, isa) - expected) <= tolerance).all()


@every_level
def test_zeros_stay_zeros(isa: str) -> None:
    assert not kernels.rms_norm(np.zeros((2, 20), np.float32), np.ones(20, np.float32), 1e-6, isa).any()
