"""NaN and infinity: defined on every level, never lost on the way to an answer, and nobody else's business.

A sanitizer build (`make asan`) sees what a wrong shift or conversion would do; here is what must come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from levels import every_level, every_level_of_linears

from approxrt._C import kernels

NAN, INF = np.float32(np.nan), np.float32(np.inf)
# One with a sign and the largest payload, which lies above all others' bits.
WORST = np.array([0xFFFFFFFF], np.uint32).view(np.float32)[0]
# Where the first and the last group, vector and remainder of a row are.
PLACES = (0, 1, 15, 31, 32, 63, 64, 98)
FINITE = [0, 1, 10]


def rows_with(value: np.float32) -> np.ndarray:
    """Float32 [11, 99]: finite rows, one of nothing else, and between them rows with `value` in one place."""
    x = np.random.default_rng(0).standard_normal((11, 99)).astype(np.float32)
    for row, place in enumerate(PLACES, 2):
        x[row, place] = value
    x[9] = value
    return x


def integers(quantised: tuple[np.ndarray, ...]) -> np.ndarray:
    return quantised[0][:, :99]


QUANTISERS: dict[str, Callable[[np.ndarray, str], Any]] = {
    "rows": kernels.quantize_rows,
    "rows_u8": kernels.quantize_rows_u8,
    "groups": kernels.quantize_groups,
    "few groups": lambda x, isa: kernels.quantize_groups(x, isa, True),
}


@every_level_of_linears
@pytest.mark.parametrize("value", [NAN, -NAN, WORST, INF, -INF], ids=["nan", "-nan", "worst", "inf", "-inf"])
@pytest.mark.parametrize("name", QUANTISERS)
def test_a_row_with_one_has_no_finite_scale(isa: str, name: str, value: np.float32) -> None:
    x = rows_with(value)
    if name == "few groups":
        x = x[[0, 1, 2, 5, 7, 8, 9, 10]]  # eight tokens at most
    finite = np.isfinite(x).all(1)
    parts, alone = (QUANTISERS[name](part, isa).unpack() for part in (x, x[finite]))
    scales = parts[-1]
    assert np.isnan(scales[~finite]).all() if np.isnan(value) else np.isinf(scales[~finite]).all()
    assert int(np.abs(integers(parts).astype(int)).max()) <= 127
    for part, expected in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(part[finite], expected)
    if "groups" in name:
        assert ((parts[1] >= 0) & (parts[1] <= 7)).all()
        assert np.isfinite(parts[2]).all()


@every_level
@pytest.mark.parametrize("value", [NAN, WORST, INF], ids=["nan", "worst", "inf"])
def test_tokens_in_rows(isa: str, value: np.float32) -> None:
    x = np.random.default_rng(0).standard_normal((4, 99)).astype(np.float32)
    x[1, 98] = x[2] = value
    parts, alone = (kernels.quantize_tokens(part, isa).unpack() for part in (x, x[[0, 3]]))
    assert np.isnan(parts[-1][1:3]).all() if np.isnan(value) else np.isinf(parts[-1][1:3]).all()
    assert parts[0].min() >= -127
    for part, expected in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(part[[0, 3]], expected)


@every_level_of_linears
def test_a_product_of_groups_keeps_it_in_its_token(isa: str) -> None:
    x = rows_with(NAN)
    rng = np.random.default_rng(1)
    linear = kernels.GroupLinear.bytes(
        rng.integers(-127, 128, (33, 99), dtype=np.int8),
        rng.uniform(1e-3, 1e-2, (33, 4)).astype(np.float16),
        np.ones(33, np.float32),
        isa,
    )
    y = linear.forward(kernels.quantize_groups(x, isa))
    assert np.isnan(y[2:10]).all()
    np.testing.assert_array_equal(y[FINITE], linear.forward(kernels.quantize_groups(x[FINITE], isa)))


@every_level
@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
def test_a_cache_gives_back_what_it_was_given(isa: str, kind: str) -> None:
    """A NaN value stays with its element, or with its row where that has one scale; other tokens are as before."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((count, 20)).astype(np.float32) for count in (1, 3, 3))
    cache = kernels.Cache(3, 20, kind)
    cache.write(k[:2], v[:2], 0, isa)
    before = cache.attention(q[None], 1, 0.3, isa)
    v[2, 7] = NAN
    cache.write(k[2:], v[2:], 2, isa)
    after = cache.attention(q[None], 2, 0.3, isa)[0, 0]
    assert np.isnan(after).tolist() == [kind == "int8" or c == 7 for c in range(20)]
    np.testing.assert_array_equal(cache.attention(q[None], 1, 0.3, isa), before)


@every_level
@pytest.mark.parametrize("int16", [False, True], ids=["f32", "int16"])
@pytest.mark.parametrize("head_dim", [13, 32])
def test_a_value_that_is_none_reaches_the_answer(isa: str, int16: bool, head_dim: int) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((21, head_dim)).astype(np.float32) for _ in range(3))
    v[17] = NAN
    assert np.isnan(kernels.attention(q, k, v, 0.3, isa, int16=int16)).all()
    # Queries and keys without a number, too, are sums and conversions that every level has a result for.
    q[3], k[5, 2] = NAN, INF
    assert np.isnan(kernels.attention(q, k, v, 0.3, isa, int16=int16)).all()


@every_level
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "tanh", "silu"])
def test_activations_keep_it(isa: str, act: str) -> None:
    x = np.linspace(-3, 3, 37, dtype=np.float32)
    finite = kernels.activation(x, act, isa)
    x[[0, 20, 36]] = NAN
    y = kernels.activation(x, act, isa)
    assert np.isnan(y).nonzero()[0].tolist() == [0, 20, 36]
    np.testing.assert_array_equal(y[1:20], finite[1:20])
