"""Keys and values written to a cache: every level writes the same, seen through one level's attention."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
@pytest.mark.parametrize("dim", [5, 16, 24, 64])
def test_levels_write_the_same(isa: str, kind: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    k, v = (rng.standard_normal((2, 37, dim)) * 3).astype(np.float32)
    v[3], k[4] = 0, 0  # rows without a scale
    v[5, 0], k[6, 1] = 1e5, 3e-8  # over and under what half precision holds
    q = rng.standard_normal((1, 2, dim)).astype(np.float32)
    results = []
    for level in ("scalar", isa):
        cache = kernels.Cache(37, dim, kind)
        for begin in (0, 1, 20):
            cache.write(k[begin:], v[begin:], begin, level)
        results.append(cache.attention(q, 36, 0.3, "scalar"))
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all()


def test_half_precision_is_ieee() -> None:
    """One key, whose value comes back as it was kept: numpy's halves, ties and subnormals among them."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(2000) * 10.0 ** rng.uniform(-9, 4, 2000), 2.0**-24 * np.arange(0, 5, 0.25)]
    )
    values = np.concatenate([values, 1 + 2.0**-12 * np.arange(16), [0.0, -0.0, 65504.0, 65519.0]]).astype(np.float32)
    cache = kernels.Cache(1, len(values), "f16")
    cache.write(values[None], values[None], 0, "scalar")
    out = cache.attention(np.zeros((1, 1, len(values)), np.float32), 0, 1.0, "scalar")[0, 0]
    np.testing.assert_array_equal(out, values.astype(np.float16).astype(np.float32))
