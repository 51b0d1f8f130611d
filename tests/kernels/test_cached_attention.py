"""Attention over a cache against float64; no query's result depends on those beside it."""

from __future__ import annotations

import numpy as np
import pytest
from cached_keys import KINDS, stored
from levels import EPS, every_level

from approxrt._C import kernels


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, scale: float) -> np.ndarray:
    """[tokens, heads, dim] in float64; k and v [keys, dim]."""
    scores = scale * np.einsum("thd,kd->thk", q.astype(np.float64), k)
    hidden = np.arange(len(k))[None, None, :] > position + np.arange(len(q))[:, None, None]
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("thk,kd->thd", weights / weights.sum(axis=2, keepdims=True), v)


@every_level
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keys", "tokens", "heads", "dim"), [
    (1, 1, 1, 16), (15, 15, 1, 8), (16, 1, 3, 64), (17, 2, 4, 10), (33, 33, 2, 32), (100, 1, 1, 64), (65, 20, 3, 64),
    (40, 9, 9, 80), (31, 11, 1, 16), (32, 12, 1, 48), (49, 13, 1, 64), (130, 5, 5, 96),
])  # fmt: skip
def test_equals_float64(isa: str, kind: str, keys: int, tokens: int, heads: int, dim: int) -> None:
    rng = np.random.default_rng(keys)
    k, v = rng.standard_normal((2, keys, dim)).astype(np.float32)
    q = rng.standard_normal((tokens, heads, dim)).astype(np.float32)
    cache = kernels.Cache(keys + 3, dim, kind)
    cache.write(k[: keys // 2], v[: keys // 2], 0, isa)
    cache.write(k[keys // 2 :], v[keys // 2 :], keys // 2, isa)
    scale = 1 / np.sqrt(dim)
    out = cache.attention(q, keys - tokens, scale, isa)
    kept_k, kept_v = stored(k, kind), stored(v, kind)
    expected = reference(q, kept_k, kept_v, keys - tokens, scale)
    # A score errs by (dim + 3) eps of its sum of magnitudes, which is below 4 dim sqrt(dim) here before scaling and
    # becomes a relative error of its weight; the sums over keys by (keys + 8) eps.
    magnitude = scale * (np.abs(q).astype(np.float64) @ np.abs(kept_k).T).max()
    tolerance = ((dim + 3) * 2 * magnitude + keys + 8) * EPS * np.abs(kept_v).max()
    assert np.abs(out - expected).max() <= tolerance


@every_level
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_stands_alone(isa: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    k, v = rng.standard_normal((2, 70, 64)).astype(np.float32)
    q = rng.standard_normal((30, 3, 64)).astype(np.float32)
    cache = kernels.Cache(70, 64, kind)
    cache.write(k, v, 0, isa)
    together = cache.attention(q, 40, 0.125, isa)
    for t in range(30):
        np.testing.assert_array_equal(cache.attention(q[t : t + 1], 40 + t, 0.125, isa)[0], together[t])
    for h in range(3):
        alone = cache.attention(np.ascontiguousarray(q[:, h : h + 1]), 40, 0.125, isa)
        np.testing.assert_array_equal(alone[:, 0], together[:, h])
