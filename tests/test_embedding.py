"""Embedding lookup: f32 and int8 rows, with and without token types."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels


@every_level
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("kind", ["f32", "s8"])
@pytest.mark.parametrize("typed", [False, True])
def test_sum_of_tables(isa: str, width: int, kind: str, typed: bool) -> None:
    rng = np.random.default_rng(width)
    position = rng.standard_normal((6, width)).astype(np.float32)
    types_table = rng.standard_normal((2, width)).astype(np.float32) if typed else None
    ids, positions = np.array([0, 4, 2, 4], np.int32), np.array([0, 1, 5, 0], np.int32)
    types = np.array([0, 1, 1, 0], np.int32) if typed else None
    if kind == "s8":
        word, scale = rng.integers(-127, 128, (5, width)).astype(np.int8), rng.uniform(0.01, 1, 5).astype(np.float32)
        rows = word[ids].astype(np.float64) * scale[ids][:, None]
    else:
        word, scale = rng.standard_normal((5, width)).astype(np.float32), None
        rows = word[ids].astype(np.float64)
    out = kernels.embedding(word, scale, position, types_table, ids, positions, types, isa)
    parts = [rows, position[positions].astype(np.float64)]
    if typed:
        parts.append(types_table[types].astype(np.float64))
    tolerance = 4 * EPS * sum(np.abs(part) for part in parts)
    assert (np.abs(out - sum(parts)) <= tolerance).all()


def test_ids_out_of_range_are_refused() -> None:
    table = np.zeros((3, 8), np.float32)
    zero = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="out of range"):
        kernels.embedding(table, None, table, None, np.array([3], np.int32), zero, None)
    with pytest.raises(ValueError, match="out of range"):
        kernels.embedding(table, None, table, None, np.array([-1], np.int32), zero, None)
