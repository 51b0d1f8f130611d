"""Exact logits of single words of a table by rows: bit for bit those of the group-scaled GEMM."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level

from approxrt._C import kernels
from approxrt.runtime.reference.groupwise import product


def _table(rng: np.random.Generator, words: int, k: int) -> dict[str, np.ndarray]:
    q = rng.integers(-128, 128, (words, k), dtype=np.int8)
    q[0], q[-1] = -128, 127
    scale = (rng.standard_normal((words, -(-k // 32))) * 0.01).astype(np.float16)
    return {"q": q, "group_scale": scale}


@every_level
@pytest.mark.parametrize("k", [1, 31, 32, 33, 63, 64, 65, 96, 100, 576, 1088])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 40])
def test_equals_the_product_with_the_whole_table(isa: str, k: int, count: int) -> None:
    rng = np.random.default_rng(k * 100 + count)
    table = _table(rng, 40, k)
    x = (rng.standard_normal(k) * rng.choice([0.01, 1, 30], k)).astype(np.float32)
    ids = np.sort(rng.permutation(40)[:count]).astype(np.int32)
    if count:
        ids[-1] = 39  # the table's last row, behind which nothing may be read
    got = kernels.word_logits(x, table["q"], table["group_scale"], ids, isa)
    bias = np.zeros(40, np.float32)
    linear = kernels.GroupLinear.bytes(table["q"], table["group_scale"], bias, isa)
    whole = linear.forward(kernels.quantize_groups(x[None], isa, True))[0, :40]
    np.testing.assert_array_equal(whole, product(x[None], table, bias)[0])
    np.testing.assert_array_equal(got[ids], whole[ids])
    others = np.ones(40, bool)
    others[ids] = False
    assert np.isnan(got[others]).all()


@every_level
@pytest.mark.parametrize("value", [127, -127])
def test_extreme_sums(isa: str, value: int) -> None:
    rng = np.random.default_rng(0)
    table = _table(rng, 16, 256)
    x = np.full(256, value, np.float32)
    ids = np.arange(16, dtype=np.int32)
    got = kernels.word_logits(x, table["q"], table["group_scale"], ids, isa)
    np.testing.assert_array_equal(got, product(x[None], table, np.zeros(16, np.float32))[0])


@every_level
def test_a_token_of_zeros(isa: str) -> None:
    table = _table(np.random.default_rng(1), 8, 64)
    got = kernels.word_logits(
        np.zeros(64, np.float32), table["q"], table["group_scale"], np.arange(8, dtype=np.int32), isa
    )
    assert not got.any() and not np.signbit(got).any()


def test_wrong_calls() -> None:
    table = _table(np.random.default_rng(1), 8, 64)
    with pytest.raises(ValueError, match="outside the table"):
        kernels.word_logits(np.zeros(64, np.float32), table["q"], table["group_scale"], np.array([8], np.int32))
    with pytest.raises(ValueError, match="columns"):
        kernels.word_logits(np.zeros(63, np.float32), table["q"], table["group_scale"], np.array([0], np.int32))
