"""int8 GEMM, dense and block-sparse: accumulators exact on every level, with values over the whole range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_inputs import extreme, random_bsr, unit
from levels import EPS, SUPPORTED, every_level_of_linears

from approxrt._C import kernels
from approxrt.artifact.spec.formats import TILE_N
from approxrt.artifact.storage.bsr import bsr_to_dense

# (tokens, inputs, outputs): around the register blocks (6, 8, 16, 24 tokens) and the tile (16 x 4); of AMX also inputs
# that leave room for two lanes of tokens, for one, and for none, held apart
SHAPES = [
    (1, 1, 1),
    (1, 4, 16),
    (5, 3, 15),
    (6, 5, 17),
    (7, 8, 16),
    (9, 31, 33),
    (23, 16, 32),
    (24, 12, 31),
    (25, 64, 48),
    (49, 384, 16),
    (2, 3072, 20),
    (31, 40, 100),
    (50, 2000, 40),
    (33, 4000, 20),
    (20, 5000, 17),
]


@every_level_of_linears
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_accumulators_are_exact(isa: str, shape: tuple[int, int, int]) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    x, w = extreme(rng, (rows, k), -128), extreme(rng, (n, k), -127)
    sums = kernels.Int8Linear.dense(w, *unit(n), isa).accumulate(kernels.panels_from_int8(x, isa))
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ w.T.astype(np.int64))
    assert not sums[:, n:].any()


@every_level_of_linears
@pytest.mark.parametrize("strips", range(1, 8))
def test_every_number_of_tokens_and_strips(isa: str, strips: int) -> None:
    """Kernels take both in pieces: every remainder of either."""
    k, n = 28, TILE_N * strips
    rng = np.random.default_rng(strips)
    x, w = extreme(rng, (50, k), -128), extreme(rng, (n, k), -127)
    linear, expected = kernels.Int8Linear.dense(w, *unit(n), isa), x.astype(np.int64) @ w.T.astype(np.int64)
    for rows in range(1, 51):
        sums = linear.accumulate(kernels.panels_from_int8(np.ascontiguousarray(x[:rows]), isa))
        np.testing.assert_array_equal(sums, expected[:rows])


@every_level_of_linears
@pytest.mark.parametrize("sign", [(127, 127), (-128, 127), (-128, -127), (127, -127)], ids=str)
def test_nothing_saturates(isa: str, sign: tuple[int, int]) -> None:
    """The products that 16-bit sums of pairs cannot hold: every one at the end of the range."""
    k, n = 4096, 16
    x, w = np.full((7, k), sign[0], np.int8), np.full((n, k), sign[1], np.int8)
    sums = kernels.Int8Linear.dense(w, *unit(n), isa).accumulate(kernels.panels_from_int8(x, isa))
    assert (sums == k * sign[0] * sign[1]).all()


@every_level_of_linears
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_accumulators_are_exact(isa: str, shape: tuple[int, int, int], density: float) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(n)
    indptr, indices, tiles = random_bsr(rng, n, k, density)
    x = extreme(rng, (rows, k), -128)
    linear = kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, *unit(n), isa)
    assert linear.tiles == len(tiles)
    sums = linear.accumulate(kernels.panels_from_int8(x, isa))
    dense = bsr_to_dense(tiles, indices, indptr, n, k)
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ dense.T.astype(np.int64))
    if density == 1.0:
        same = kernels.Int8Linear.dense(np.ascontiguousarray(dense), *unit(n), isa)
        np.testing.assert_array_equal(sums, same.accumulate(kernels.panels_from_int8(x, isa)))


@pytest.mark.skipif("avx512vnni" not in SUPPORTED, reason="this CPU or system has no avx512vnni")
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_either_way_round_sums_are_the_same(density: float) -> None:
    """Outputs in lanes or tokens in lanes: every number of tokens up to two panels and some; residual, activation."""
    n, k, isa = 100, 70, "avx512vnni"
    rng = np.random.default_rng(1)
    indptr, indices, tiles = random_bsr(rng, n, k, density)
    scale, bias = rng.random(n, np.float32) / 1000, rng.standard_normal(n).astype(np.float32)
    linear = kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, scale, bias, isa)
    x = rng.standard_normal((99, k)).astype(np.float32)
    residual = rng.standard_normal((99, 112)).astype(np.float32)
    for rows in range(1, 100):
        panels, found = kernels.quantize_rows(x[:rows], isa), []
        for lanes in (False, True):
            linear.token_lanes = lanes
            assert linear.token_lanes == lanes
            found.append((linear.accumulate(panels), linear.forward(panels, residual[:rows], "gelu")))
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_tokens_in_lanes_need_tiles_and_vnni() -> None:
    w = np.ones((16, 4), np.int8)
    with pytest.raises(ValueError, match="only sparse weights of level avx512vnni"):
        kernels.Int8Linear.dense(w, *unit(16), SUPPORTED[-1]).token_lanes = True
    linear = kernels.Int8Linear.bsr(
        16, 4, np.array([0, 1], np.int32), np.zeros(1, np.uint16), w[None], *unit(16), "scalar"
    )
    with pytest.raises(ValueError, match="only sparse weights of level avx512vnni"):
        linear.token_lanes = True


@every_level_of_linears
def test_empty_strips_give_the_bias(isa: str) -> None:
    n, k = 48, 20
    indptr = np.array([0, 0, 2, 2], np.int32)
    tiles = np.ones((2, 16, 4), np.int8)
    bias = np.arange(n, dtype=np.float32)
    linear = kernels.Int8Linear.bsr(n, k, indptr, np.array([0, 4], np.uint16), tiles, np.ones(n, np.float32), bias, isa)
    y = linear.forward(kernels.quantize_rows(np.ones((3, k), np.float32), isa))
    np.testing.assert_array_equal(y[:, :16], np.tile(bias[:16], (3, 1)))
    np.testing.assert_array_equal(y[:, 32:], np.tile(bias[32:], (3, 1)))
    np.testing.assert_allclose(y[:, 16:32], np.tile(bias[16:32] + 8, (3, 1)), rtol=4 * EPS)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 30),
    k=st.integers(1, 70),
    n=st.integers(1, 50),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_levels_agree_bit_for_bit(rows: int, k: int, n: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indptr, indices, tiles = random_bsr(rng, n, k, density)
    x = extreme(rng, (rows, k), -128)
    sums = [
        kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, *unit(n), isa).accumulate(kernels.panels_from_int8(x, isa))
        for isa in SUPPORTED
    ]
    for other in sums[1:]:
        np.testing.assert_array_equal(sums[0], other)


@every_level_of_linears
@pytest.mark.parametrize("act", ["identity", "gelu", "relu"])
def test_epilogue(isa: str, act: str) -> None:
    rows, k, n = 25, 40, 35
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    scale, bias = rng.uniform(1e-3, 1e-2, n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, 48)).astype(np.float32)
    panels = kernels.quantize_rows(x, isa)
    q, s = panels.unpack()
    linear = kernels.Int8Linear.dense(w, scale, bias, isa)
    y = linear.forward(panels, residual, act)[:, :n]
    z = (q.astype(np.int64) @ w.T.astype(np.int64)) * s.astype(np.float64)[:, None] * scale + bias
    if act == "gelu":
        from math import erf

        z = z * 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2)))
    elif act == "relu":
        z = np.maximum(z, 0)
    expected = z + residual[:, :n]
    # five roundings of values up to the largest, and gelu's own bound
    tolerance = 5 * EPS * (np.abs(z) + np.abs(residual[:, :n]) + np.abs(bias)) + (2e-6 if act == "gelu" else 0)
    assert (np.abs(y - expected) <= tolerance).all()


@every_level_of_linears
def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((53, 36)).astype(np.float32)
    w = rng.integers(-127, 128, (33, 36)).astype(np.int8)
    linear = kernels.Int8Linear.dense(w, np.full(33, 0.01, np.float32), np.ones(33, np.float32), isa)
    together = linear.forward(kernels.quantize_rows(x, isa), act="gelu")
    for i in range(len(x)):
        alone = linear.forward(kernels.quantize_rows(x[i : i + 1], isa), act="gelu")
        np.testing.assert_array_equal(together[i], alone[0])


def test_bad_operands_are_refused() -> None:
    w = np.zeros((16, 8), np.int8)
    linear = kernels.Int8Linear.dense(w, *unit(16))
    with pytest.raises(ValueError, match="4 inputs, the weights 8"):
        linear.forward(kernels.quantize_rows(np.zeros((1, 4), np.float32)))
    with pytest.raises(ValueError, match="out of range"):
        kernels.Int8Linear.bsr(
            16, 8, np.array([0, 1], np.int32), np.array([2], np.uint16), np.zeros((1, 16, 4), np.int8), *unit(16)
        )
    with pytest.raises(ValueError, match="descend"):
        kernels.Int8Linear.bsr(
            32, 8, np.array([0, 1, 0], np.int32), np.zeros(0, np.uint16), np.zeros((0, 16, 4), np.int8), *unit(32)
        )
    with pytest.raises(TypeError, match="int8"):
        kernels.Int8Linear.dense(w.astype(np.int16), *unit(16))


@pytest.mark.skipif(len(SUPPORTED) < 2, reason="needs two levels with different panel layouts")
def test_panels_of_another_level_are_refused() -> None:
    linear = kernels.Int8Linear.dense(np.zeros((16, 8), np.int8), *unit(16), "scalar")
    with pytest.raises(ValueError, match="another instruction set"):
        linear.forward(kernels.quantize_rows(np.zeros((1, 8), np.float32), SUPPORTED[-1]))
