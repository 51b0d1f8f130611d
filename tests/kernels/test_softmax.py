"""Softmax against float64."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import EPS, every_level

from approxrt._C import kernels


def expected(x: np.ndarray, scale: float) -> np.ndarray:
    wide = np.float64(np.float32(scale)) * (x.astype(np.float64) - x.max(1, keepdims=True))
    return np.exp(wide) / np.exp(wide).sum(1, keepdims=True)


@every_level
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 512])
def test_equals_float64(isa: str, n: int) -> None:
    x = (np.random.default_rng(n).standard_normal((4, n)) * [[0.01], [1], [10], [50]]).astype(np.float32)
    y = kernels.softmax(x, 0.25, isa)
    # exp errs by 3e-7 of itself and by the rounding of its argument (below 50 here); the sum by n eps
    argument = 0.25 * np.abs(x - x.max(1, keepdims=True))
    assert (np.abs(y - expected(x, 0.25)) <= expected(x, 0.25) * (6e-7 + (n + 2 * argument + 4) * EPS) + 1e-37).all()
    np.testing.assert_allclose(y.sum(1), 1, atol=(n + 4) * EPS)


@every_level
@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32))
)
def test_never_leaves_the_simplex(isa: str, x: np.ndarray) -> None:
    y = kernels.softmax(x, 1.0, isa)
    assert np.isfinite(y).all()
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-5)
    # the largest score has the largest probability
    assert (np.take_along_axis(y, x.argmax(1)[:, None], 1)[:, 0] == y.max(1)).all()
