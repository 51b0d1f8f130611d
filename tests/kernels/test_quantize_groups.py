"""Quantisation with a scale a token and a power of two a group: the reference's values exactly, on every level."""

from __future__ import annotations

import numpy as np
import pytest
from group_inputs import activations
from levels import every_level_of_linears

from approxrt._C import kernels
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.runtime.reference.groupwise import MAX_SHIFT, dequantized_tokens, quantize_groups

SHAPES = [(1, 1), (2, 7), (3, 31), (5, 32), (6, 33), (7, 48), (8, 63), (9, 64), (25, 100), (50, 576)]


def check(x: np.ndarray, isa: str, few: bool) -> None:
    a, shifts, sums, scales = kernels.quantize_groups(x, isa, few).unpack()
    expected, powers, steps = quantize_groups(x)
    np.testing.assert_array_equal(a, expected.reshape(len(x), -1))
    np.testing.assert_array_equal(shifts, powers)
    np.testing.assert_array_equal(scales, steps)
    np.testing.assert_array_equal(sums, expected.astype(np.int32).sum(2) * np.exp2(powers))


@every_level_of_linears
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_the_references(isa: str, shape: tuple[int, int]) -> None:
    x = activations(np.random.default_rng(shape[1]), *shape)
    check(x, isa, False)
    if len(x) <= 8:
        check(x, isa, True)


@every_level_of_linears
def test_ends_of_the_range(isa: str) -> None:
    x = np.zeros((8, 96), np.float32)
    x[1] = 1e-31  # below the floor: exact zeros
    x[2, 0] = 3e38
    x[3, ::32] = (1.0, 0.5, 0.25)  # exact powers of two: as often as they can be doubled
    x[4, ::32] = (1.0, np.nextafter(np.float32(0.5), np.float32(1)), 2.0**-20)
    x[5, 5] = -1e-30 * 1.5
    x[6] = np.linspace(-1, 1, 96)
    x[7, ::32] = (1e-40, 1.0, 0.0)  # a subnormal peak
    check(x, isa, False)
    _, shifts, _, scales = kernels.quantize_groups(x, isa).unpack()
    assert shifts[3].tolist() == [7, 6, 5] and shifts[4].tolist() == [7, 7, 0] and shifts[7].tolist() == [0, 7, 0]
    assert (scales[:2] == 0).all()


def test_error_is_half_a_step_of_the_group() -> None:
    """A group's step is at most twice what its own maximum would ask for, until the shifts end."""
    x = activations(np.random.default_rng(5), 40, 320)
    peaks = np.abs(x).reshape(40, -1, GROUP_WEIGHTS).max(2)
    steps = np.maximum(2 * peaks, peaks.max(1, keepdims=True) * 2.0**-MAX_SHIFT) / 127
    errors = np.abs(dequantized_tokens(x) - x).reshape(40, -1, GROUP_WEIGHTS)
    assert (errors <= 0.5001 * steps[:, :, None]).all()


@every_level_of_linears
def test_rows_that_fill_the_last_panel_are_zeros(isa: str) -> None:
    """A GEMM computes whole register blocks of what is there: fresh memory must not reach it."""
    x = np.ones((25, 40), np.float32)
    linear = kernels.GroupLinear.bytes(
        np.ones((16, 40), np.int8), np.ones((16, 2), np.float16), np.zeros(16, np.float32), isa
    )
    for rows in (1, 7, 13, 25):
        y = linear.forward(kernels.quantize_groups(x[:rows], isa))
        np.testing.assert_allclose(y, 40, rtol=1e-5)
