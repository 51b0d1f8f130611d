"""Quantisation into panels of bytes: the integers and scales of quantize_rows, on every level."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import every_level_of_linears
from row_definition import INPUTS, ROWS, definition

from approxrt._C import kernels


@every_level_of_linears
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("k", INPUTS)
def test_equals_the_definition(isa: str, rows: int, k: int) -> None:
    rng = np.random.default_rng(rows * 1000 + k)
    x = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-6, 6, (rows, 1))).astype(np.float32)
    x[rng.integers(rows)] = 0
    q, scales = kernels.quantize_rows_u8(x, isa).unpack()
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
def test_equals_quantize_rows(isa: str, x: np.ndarray) -> None:
    for ours, theirs in zip(
        kernels.quantize_rows_u8(x, isa).unpack(), kernels.quantize_rows(x, isa).unpack(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
