"""Per-token quantisation: the same integers on every level, equal to the definition."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import EPS, every_level_of_linears
from row_definition import INPUTS, ROWS, definition

from approxrt._C import kernels


@every_level_of_linears
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("k", INPUTS)
def test_equals_the_definition(isa: str, rows: int, k: int) -> None:
    rng = np.random.default_rng(rows * 1000 + k)
    x = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-6, 6, (rows, 1))).astype(np.float32)
    q, scales = kernels.quantize_rows(x, isa).unpack()
    expected_q, expected_scales = definition(x)
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(scales, expected_scales)


@every_level_of_linears
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 26), st.integers(1, 40)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
    )
)
def test_error_is_at_most_half_a_step(isa: str, x: np.ndarray) -> None:
    q, scales = kernels.quantize_rows(x, isa).unpack()
    expected_q, expected_scales = definition(x)
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(scales, expected_scales)
    assert int(q.min(initial=0)) >= -127
    # half a step, and float32 rounding of x * inverse and of the scale itself (127 steps of 3 eps)
    error = np.abs(q.astype(np.float64) * scales[:, None] - x)
    live = scales > 0
    assert (error[live] <= (0.5 + 127 * 3 * EPS) * scales[live, None].astype(np.float64)).all()


@every_level_of_linears
def test_zero_and_tiny_rows_are_exact_zeros(isa: str) -> None:
    x = np.zeros((3, 20), np.float32)
    x[1] = 1e-38
    x[2] = 1.0
    q, scales = kernels.quantize_rows(x, isa).unpack()
    assert scales.tolist()[:2] == [0.0, 0.0]
    assert not q[:2].any()
    assert (q[2] == 127).all()


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="float32"):
        kernels.panels_from_int8(np.zeros((2, 2), np.float32))
