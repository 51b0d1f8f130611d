"""A bias on the scores of attention, exact and with 16-bit products, against float64.

Tolerances are those of test_attention.py and test_attention_int16.py: a bias adds one rounding to a score.
"""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels

HEAD_DIMS = [13, 16, 32, 64, 96]
LENGTHS = [1, 2, 5, 7, 9, 15, 16, 17, 31, 33, 47, 128, 131]


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: np.ndarray) -> np.ndarray:
    s = scale * (q.astype(np.float64) @ k.astype(np.float64).T) + bias
    p = np.exp(s - s.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)) @ v.astype(np.float64)


def inputs(n: int, head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * 1000 + head_dim)
    q, k, v = (rng.standard_normal((n, head_dim)).astype(np.float32) for _ in range(3))
    return q, k, v, (2 * rng.standard_normal(2 * n - 1)).astype(np.float32)


def by_pair(relative: np.ndarray) -> np.ndarray:
    """[n, n] of a vector over j - i."""
    n = (len(relative) + 1) // 2
    return relative[n - 1 + np.arange(n)[None, :] - np.arange(n)[:, None]]


@every_level
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n", LENGTHS)
def test_equals_float64(isa: str, head_dim: int, n: int) -> None:
    q, k, v, relative = inputs(n, head_dim)
    scale, bias = 1 / np.sqrt(head_dim), by_pair(relative)
    out = kernels.attention(q, k, v, scale, isa, bias=bias)
    score = (head_dim + 2) * EPS * scale * (np.abs(q) @ np.abs(k).T).max() + 2 * EPS * (10 + np.abs(bias).max())
    tolerance = (2 * score + 6e-7 + (2 * n + 8) * EPS) * np.abs(v).max()
    np.testing.assert_allclose(out, expected(q, k, v, scale, bias), rtol=0, atol=tolerance)


@every_level
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n", LENGTHS)
def test_16_bit_products_stay_near(isa: str, head_dim: int, n: int) -> None:
    q, k, v, relative = inputs(n, head_dim)
    scale, bias = 1 / np.sqrt(head_dim), by_pair(relative)
    out = kernels.attention(q, k, v, scale, isa, int16=True, bias=bias)
    # Of unit normal numbers: half a step of weights, values and of queries and keys (1e-4 of a score) each.
    exact = expected(q, k, v, scale, bias)
    assert np.abs(out - exact).max() <= (n * 0.5 / 4095 + 0.5 / 4096 + 4e-4) * np.abs(v).max()
    if n > 8:
        plain = kernels.attention(q, k, v, scale, isa, int16=True)
        assert np.abs(plain - exact).max() > 0.05, "the bias must matter for this test to mean anything"


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_a_vector_over_distances_is_the_matrix(isa: str, int16: bool) -> None:
    for n in (1, 9, 33, 130):
        q, k, v, relative = inputs(n, 32)
        whole = kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=by_pair(relative))
        np.testing.assert_array_equal(kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=relative), whole)


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_a_query_does_not_depend_on_its_block(isa: str, int16: bool) -> None:
    q, k, v, relative = inputs(29, 32)
    whole = kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=relative)
    for i in range(29):
        part = kernels.attention(q, k, v, 0.2, isa, i, i + 1, int16, relative)
        np.testing.assert_array_equal(part[i], whole[i])
        assert not np.delete(part, i, axis=0).any()


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_nothing_is_read_behind_the_last_key(isa: str, int16: bool) -> None:
    """What lies behind a row's last key in memory, here NaN, leaves no trace."""
    for n in (1, 7, 15, 17, 33):
        q, k, v, relative = inputs(n, 32)
        clean = kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=relative)
        wide = np.full(2 * n - 1 + 64, np.nan, np.float32)
        wide[: 2 * n - 1] = relative
        out = kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=wide[: 2 * n - 1])
        np.testing.assert_array_equal(out, clean)


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_a_bias_decides_alone_where_queries_are_zeros(isa: str, int16: bool) -> None:
    n = 21
    _, k, v, relative = inputs(n, 32)
    zeros = np.zeros_like(k)
    out = kernels.attention(zeros, k, v, 1.0, isa, int16=int16, bias=relative)
    exact = expected(zeros, k, v, 1.0, by_pair(relative))
    np.testing.assert_allclose(out, exact, rtol=0, atol=(n * 0.5 / 4095 + 1e-3 if int16 else 1e-5) * np.abs(v).max())


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_the_largest_biases(isa: str, int16: bool) -> None:
    """A magnitude of 1e28 (csrc/args.h, kMostBias) shuts keys out, and no lane behind the last key comes in."""
    n = 19
    q, k, v, _ = inputs(n, 32)
    bias = np.full((n, n), -1e28, np.float32)
    bias[np.arange(n), np.arange(n)[::-1]] = 0
    out = kernels.attention(q, k, v, 0.2, isa, int16=int16, bias=bias)
    np.testing.assert_allclose(out, v[::-1], rtol=0, atol=1e-3)
    low = np.full((n, n), -1e28, np.float32)
    np.testing.assert_allclose(
        kernels.attention(q, k, np.ones_like(v), 0.2, isa, int16=int16, bias=low), np.ones_like(v), rtol=0, atol=1e-3
    )


@every_level
@pytest.mark.parametrize("int16", [False, True])
def test_a_bias_of_zeros_changes_nothing_but_rounding(isa: str, int16: bool) -> None:
    q, k, v, relative = inputs(40, 64)
    plain = kernels.attention(q, k, v, 0.125, isa, int16=int16)
    biased = kernels.attention(q, k, v, 0.125, isa, int16=int16, bias=np.zeros_like(relative))
    np.testing.assert_allclose(biased, plain, rtol=0, atol=2e-3 if int16 else 1e-5)
