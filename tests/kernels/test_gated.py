"""Gated activations against float64."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 33, 1536])
def test_silu_equals_float64(isa: str, width: int) -> None:
    rng = np.random.default_rng(width)
    gate, up = (rng.standard_normal((2, 3, width)) * 4).astype(np.float32)
    gate[0, 0], gate[1, -1], gate[2, 0] = -100, 100, -88.5
    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    # The exponential errs by 3e-7 of itself (vec_math.h), and is clipped where the result is below 1e-35.
    tolerance = (3e-7 + 4 * EPS) * np.abs(expected) + 1e-35 * np.abs(up)
    assert (np.abs(kernels.gated(gate, up, "silu", isa) - expected) <= tolerance).all()


@every_level
def test_other_activations_are_those_of_activation(isa: str) -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 2, 37)).astype(np.float32)
    for act in ("gelu", "gelu_tanh", "relu"):
        alone = kernels.activation(gate.ravel(), act, isa).reshape(gate.shape)
        np.testing.assert_array_equal(kernels.gated(gate, up, act, isa), alone * up)
