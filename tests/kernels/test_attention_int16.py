"""Attention of one head with 16-bit products: against its definition in float64, and that against exact attention."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels

VALUE_LIMIT, WEIGHT_LIMIT = 4096, 4095


def dot_limit(head_dim: int) -> int:
    """The largest integer of queries and keys (csrc/args.h): sums over head_dim products stay below 2^31."""
    limit = 32767
    while limit * limit * head_dim > 2**31 - 1:
        limit = limit * 15 // 16
    return limit


def steps(x: np.ndarray, limit: int) -> np.ndarray:
    """[n, 1]: the scale of each row, max|x| / limit."""
    return np.abs(x).max(1, keepdims=True).astype(np.float64) / limit


def weights(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    s = scale * (q @ k.T)
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    return weights(q.astype(np.float64), k.astype(np.float64), scale) @ v.astype(np.float64)


def bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """[n, 1]: the most that a query's output may differ from exact attention.

    Scores: half a step of each q and k element, ds <= scale * sum_c (|q| sk + |k| sq + sq sk / 2) / 2. Softmax
    weights change by a factor of at most exp(2 ds), that is by 2 ds in total variation; so does the output, in units
    of the largest |v|. Weights are rounded to half a step of 1 / WEIGHT_LIMIT of the largest e sv, against a sum of e
    of at least 1; values to half a step each. exp2 errs by 3e-6, float arithmetic by a few EPS of scores and sums.
    """
    head_dim = -(-q.shape[1] // 16) * 16
    sq, sk, sv = steps(q, dot_limit(head_dim)), steps(k, dot_limit(head_dim)), steps(v, VALUE_LIMIT)
    row = np.abs(q).sum(1, keepdims=True) @ sk.T + sq @ np.abs(k).sum(1, keepdims=True).T + sq @ sk.T * q.shape[1] / 2
    scores = scale * (np.abs(q) @ np.abs(k).T)
    ds = (scale * row / 2 + 8 * EPS * scores).max(1, keepdims=True)
    total = np.exp(scale * (q @ k.T) - (scale * (q @ k.T)).max(1, keepdims=True)).sum(1, keepdims=True)
    peak = np.abs(v).max()
    rounding = len(k) * 0.5 / WEIGHT_LIMIT * peak / total + 0.5 * sv.max()
    return (np.exp(2 * ds) - 1) * 2 * peak + rounding + (6e-6 + (len(k) + 16) * EPS) * peak


@every_level
@pytest.mark.parametrize("head_dim", [1, 13, 16, 17, 32, 64, 128])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 33, 127, 128, 129, 300])
def test_stays_within_the_bound(isa: str, head_dim: int, n: int) -> None:
    rng = np.random.default_rng(n * 1000 + head_dim)
    q, k, v = (rng.standard_normal((n, head_dim)).astype(np.float32) for _ in range(3))
    scale = 1 / np.sqrt(head_dim)
    out = kernels.attention(q, k, v, scale, isa, int16=True)
    assert (np.abs(out - exact(q, k, v, scale)) <= bound(q, k, v, scale)).all()


@every_level
def test_is_far_more_precise_than_int8(isa: str) -> None:
    """Typical error: about a thousandth of the outputs' size, where int8 rows alone err by 1 / 254 of their largest."""
    rng = np.random.default_rng(0)
    for head_dim, n in [(32, 128), (64, 384), (128, 64)]:
        q, k, v = (2 * rng.standard_normal((n, head_dim)).astype(np.float32) for _ in range(3))
        expected = exact(q, k, v, head_dim**-0.5)
        out = kernels.attention(q, k, v, head_dim**-0.5, isa, int16=True)
        assert np.sqrt(np.mean((out - expected) ** 2)) < 2e-3 * np.sqrt(np.mean(expected**2))


@every_level
def test_rows_of_very_different_sizes(isa: str) -> None:
    """Each row has a scale of its own: a huge key or value leaves the others their precision."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((40, 32)).astype(np.float32) for _ in range(3))
    k *= 10.0 ** rng.integers(-3, 1, (40, 1))
    v *= 10.0 ** rng.integers(-3, 3, (40, 1))
    out = kernels.attention(q, k, v, 32**-0.5, isa, int16=True)
    assert (np.abs(out - exact(q, k, v, 32**-0.5)) <= bound(q, k, v, 32**-0.5)).all()


@every_level
def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    """Every product at the end of its range: equal scores, equal values, more keys than one chunk of sums."""
    for n, head_dim in [(128, 32), (300, 64), (512, 128)]:
        ones = np.ones((n, head_dim), np.float32)
        for sign in (1, -1):
            out = kernels.attention(ones, ones, sign * ones, head_dim**-0.5, isa, int16=True)
            np.testing.assert_allclose(out, sign * ones, rtol=0, atol=2e-4)


@every_level
def test_weights_follow_the_exponential(isa: str) -> None:
    """Two keys with scores 0 and s, values 1 and 0: the output is 1 / (1 + e^s), for s over the whole range.

    exp2 errs by 3e-6 of e^s and of e^0, its argument by a few roundings; the values' weights 1 and 0 are not rounded.
    """
    q, v = np.ones((1, 1), np.float32), np.array([[1.0], [0.0]], np.float32)
    scores = -np.concatenate([np.linspace(0, 20, 4001), np.geomspace(20, 1e4, 60)]).astype(np.float32)
    for s in scores:
        k = np.array([[0.0], [s]], np.float32)
        out = kernels.attention(q, k, v, 1.0, isa, 0, 1, True)[0, 0]
        e = np.exp(np.float64(s))
        assert abs(out - 1 / (1 + e)) <= 3e-6 / (1 + e) + 4 * EPS * abs(s) * e / (1 + e) ** 2 + 3 * EPS, s


@every_level
def test_zeros(isa: str) -> None:
    zeros, ones = np.zeros((7, 32), np.float32), np.ones((7, 32), np.float32)
    assert not kernels.attention(ones, ones, zeros, 1.0, isa, int16=True).any()
    np.testing.assert_allclose(kernels.attention(zeros, ones, ones, 1.0, isa, int16=True), ones, atol=2e-4)


@every_level
def test_a_query_does_not_depend_on_its_block(isa: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((29, 32)).astype(np.float32) for _ in range(3))
    whole = kernels.attention(q, k, v, 0.2, isa, int16=True)
    for i in range(29):
        part = kernels.attention(q, k, v, 0.2, isa, i, i + 1, int16=True)
        np.testing.assert_array_equal(part[i], whole[i])
        assert not np.delete(part, i, axis=0).any()


@every_level
def test_large_scores_pick_one_key(isa: str) -> None:
    k = np.eye(16, dtype=np.float32) * 100
    out = kernels.attention(k, k, k, 1.0, isa, int16=True)
    np.testing.assert_allclose(out, k, atol=100 * 0.51 / VALUE_LIMIT)
