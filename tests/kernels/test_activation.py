"""Activations over their whole range against float64: the bounds that vec_math.h states."""

from __future__ import annotations

from math import erfc

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


def grid() -> np.ndarray:
    """Dense on [-12, 12], with magnitudes from 1e-30 to 1e30 and the clamps' neighbours."""
    near = np.linspace(-12, 12, 200_001)
    far = np.concatenate([s * 10.0 ** np.linspace(-30, 30, 2001) for s in (-1, 1)])
    edges = [s * e * (1 + d) for s in (-1, 1) for e in (5.5, 10, 87.3, 88) for d in (-1e-6, 0, 1e-6)]
    return np.concatenate([near, far, edges, [0.0]]).astype(np.float32)


def definition(act: str, x: np.ndarray) -> np.ndarray:
    if act == "gelu":
        return x * 0.5 * np.vectorize(erfc)(-x / np.sqrt(2))
    if act == "gelu_tanh":
        with np.errstate(over="ignore"):
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if act == "relu":
        return np.maximum(x, 0)
    return np.tanh(x)


@every_level
@pytest.mark.parametrize(
    ("act", "bound"), [("gelu", 1e-6), ("gelu_tanh", 1e-6), ("relu", 0.0), ("tanh", 3e-7)], ids=lambda v: str(v)
)
def test_error_bound(isa: str, act: str, bound: float) -> None:
    x = grid()
    y = kernels.activation(x, act, isa)
    expected = definition(act, x.astype(np.float64))
    assert np.isfinite(y).all()
    # an absolute part from the fit, and a few roundings of the result; below -5.2 gelu is x times the
    # tail at -5.2 (1e-7) and its rounding
    tolerance = bound + 4 * EPS * np.abs(expected) + (EPS * np.abs(x) if act.startswith("gelu") else 0)
    if act == "gelu":
        tolerance = tolerance + 1e-7 * np.abs(np.minimum(x, 0))
    worst = np.argmax(np.abs(y - expected) - tolerance)
    assert (np.abs(y - expected) <= tolerance).all(), (x[worst], y[worst], expected[worst])


@every_level
@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 33])
def test_an_element_does_not_depend_on_its_place(isa: str, n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32) * 3
    whole = kernels.activation(x, "gelu", isa)
    for i in range(n):
        assert kernels.activation(np.ascontiguousarray(x[i : i + 1]), "gelu", isa)[0] == whole[i]
