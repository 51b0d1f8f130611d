"""Per-token quantisation in rows: the integers of quantize_rows, and their sums."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("k", [1, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 576])
def test_same_integers_as_panels(isa: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (rng.standard_normal((4, k)) * [[1], [100], [0], [1e-31]]).astype(np.float32)
    q, u, sums, scales = kernels.quantize_tokens(x, isa).unpack()
    expected, expected_scales = kernels.quantize_rows(x, "scalar").unpack()
    np.testing.assert_array_equal(q[:, :k], expected)
    np.testing.assert_array_equal(scales, expected_scales)
    assert not q[:, k:].any()
    np.testing.assert_array_equal(u, (q.astype(np.int16) + 128).astype(np.uint8))
    np.testing.assert_array_equal(sums, q.reshape(4, -1, 32).sum(axis=2))
