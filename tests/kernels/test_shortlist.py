"""The largest of some logits, and which come near to it."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("threshold", [-np.inf, -1.0, 1.5, np.inf])
def test_shortlist(isa: str, count: int, threshold: float) -> None:
    x = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    largest, ids = kernels.shortlist(x, threshold, 7, isa)
    assert largest == (x.max() if count else -np.inf)
    np.testing.assert_array_equal(ids, 7 + np.flatnonzero(x >= np.float32(threshold)))


@every_level
@pytest.mark.parametrize("count", [5, 16, 21])
def test_equal_to_the_threshold_is_near_and_nan_is_not(isa: str, count: int) -> None:
    x = np.full(count, -1, np.float32)
    x[[0, count - 1]] = np.nan
    x[[1, count - 2]] = 3
    largest, ids = kernels.shortlist(x, 3.0, 0, isa)
    assert largest == 3
    np.testing.assert_array_equal(ids, [1, count - 2])
    assert kernels.shortlist(np.full(count, np.nan, np.float32), -np.inf, 0, isa)[0] == -np.inf
