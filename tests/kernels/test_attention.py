"""Attention of one head against float64."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    s = scale * (q.astype(np.float64) @ k.astype(np.float64).T)
    p = np.exp(s - s.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)) @ v.astype(np.float64)


@every_level
@pytest.mark.parametrize("head_dim", [1, 13, 16, 17, 32, 64, 128])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 33, 130])
def test_equals_float64(isa: str, head_dim: int, n: int) -> None:
    rng = np.random.default_rng(n * 1000 + head_dim)
    q, k, v = (rng.standard_normal((n, head_dim)).astype(np.float32) for _ in range(3))
    scale = 1 / np.sqrt(head_dim)
    out = kernels.attention(q, k, v, scale, isa)
    # scores err by (d + 2) eps sum |q||k|, weights by that relatively and 3e-7 for exp, sums by n eps
    score = (head_dim + 2) * EPS * scale * (np.abs(q) @ np.abs(k).T).max() + 2 * EPS * 10
    tolerance = (2 * score + 6e-7 + (2 * n + 8) * EPS) * np.abs(v).max()
    np.testing.assert_allclose(out, expected(q, k, v, scale), rtol=0, atol=tolerance)


@every_level
def test_a_query_does_not_depend_on_its_block(isa: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((29, 32)).astype(np.float32) for _ in range(3))
    whole = kernels.attention(q, k, v, 0.2, isa)
    for i in range(29):
        part = kernels.attention(q, k, v, 0.2, isa, i, i + 1)
        np.testing.assert_array_equal(part[i], whole[i])
        assert not np.delete(part, i, axis=0).any()


@every_level
def test_large_scores_pick_one_key(isa: str) -> None:
    k = np.eye(16, dtype=np.float32) * 100
    out = kernels.attention(k, k, k, 1.0, isa)
    np.testing.assert_allclose(out, k, atol=1e-4)
