"""int4 GEMM, dense and block-sparse: sums equal those of the int8 linear with weights m * q4, on every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int4_inputs import activations, random_bsr, random_dense, random_q4, random_scales, unit
from levels import EPS, SUPPORTED, every_level_of_linears

from approxrt._C import kernels
from approxrt.artifact.spec.formats import GROUP_TILES, GROUP_WEIGHTS, MAX_GROUP_SCALE, TILE_K, TILE_N
from approxrt.artifact.storage.bsr import bsr_to_dense
from approxrt.artifact.storage.int4 import pack_nibbles, row_integers, tile_integers

# (tokens, inputs, outputs): around the register blocks (6, 8, 24 tokens) and their next panel, the 96 tokens
# taken at a time, the tile (16 x 4), the group (32 inputs) and the chunk of 128 tiles (512 inputs)
SHAPES = [
    (1, 1, 1),
    (1, 4, 16),
    (5, 3, 15),
    (6, 5, 17),
    (7, 32, 16),
    (9, 31, 33),
    (13, 33, 16),
    (23, 36, 32),
    (24, 12, 31),
    (25, 64, 48),
    (49, 384, 16),
    (97, 65, 18),
    (2, 511, 16),
    (26, 513, 16),
    (2, 3072, 20),
]


@every_level_of_linears
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_accumulators_are_exact(isa: str, shape: tuple[int, int, int]) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    q4, m = random_dense(rng, n, k)
    x, w = activations(rng, rows, k), row_integers(q4, m, k)
    sums = kernels.Int4Linear.dense(k, q4, m, *unit(n), isa).accumulate(kernels.panels_from_int8(x, isa, u8=True))
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ w.T.astype(np.int64))
    assert not sums[:, n:].any()
    int8 = kernels.Int8Linear.dense(w.astype(np.int8), *unit(n), isa)
    np.testing.assert_array_equal(sums, int8.accumulate(kernels.panels_from_int8(x, isa)))


@every_level_of_linears
@pytest.mark.parametrize("rows", [5, 29])
@pytest.mark.parametrize("sign", [(127, 7), (-128, 7), (-128, -7), (127, -7)], ids=str)
def test_nothing_saturates(isa: str, sign: tuple[int, int], rows: int) -> None:
    """Every product at the end of the range: 255 * 7 sums to 28560 in the 16 bits of a group, times m = 18."""
    k, n = 4096, 16
    x, q = np.full((rows, k), sign[0], np.int8), np.full((n, k), sign[1], np.int8)
    m = np.full((n, k // GROUP_WEIGHTS), MAX_GROUP_SCALE, np.uint8)
    linear = kernels.Int4Linear.dense(k, pack_nibbles(q), m, *unit(n), isa)
    sums = linear.accumulate(kernels.panels_from_int8(x, isa, u8=True))
    assert (sums == k * sign[0] * sign[1] * MAX_GROUP_SCALE).all()


@every_level_of_linears
def test_every_pair_of_scale_and_weight(isa: str) -> None:
    """All products m * q4, with neighbours in the same word of either sign: one token that looks at one input."""
    k = GROUP_WEIGHTS
    q = np.stack([np.roll(np.resize(np.arange(-7, 8), k), shift) for shift in range(15)]).astype(np.int8)
    q = np.repeat(q, MAX_GROUP_SCALE, axis=0)
    m = np.tile(np.arange(1, MAX_GROUP_SCALE + 1, dtype=np.uint8), 15)[:, None]
    x = np.eye(k, dtype=np.int8)
    linear = kernels.Int4Linear.dense(k, pack_nibbles(q), m, *unit(len(q)), isa)
    for rows in (x[:3], x):
        sums = linear.accumulate(kernels.panels_from_int8(np.ascontiguousarray(rows), isa, u8=True))
        np.testing.assert_array_equal(sums[:, : len(q)], (q.astype(int) * m)[:, : len(rows)].T)


@every_level_of_linears
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_accumulators_are_exact(isa: str, shape: tuple[int, int, int], density: float) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(n)
    indptr, indices, tiles4, m = random_bsr(rng, n, k, density)
    x = activations(rng, rows, k)
    linear = kernels.Int4Linear.bsr(k, indptr, indices, tiles4, m, *unit(n), isa)
    assert linear.tiles == len(tiles4)
    sums = linear.accumulate(kernels.panels_from_int8(x, isa, u8=True))
    tiles = tile_integers(tiles4, m, indptr).astype(np.int8)
    dense = bsr_to_dense(tiles, indices, indptr, n, k)
    np.testing.assert_array_equal(sums[:, :n], x.astype(np.int64) @ dense.T.astype(np.int64))
    int8 = kernels.Int8Linear.bsr(n, k, indptr, indices, tiles, *unit(n), isa)
    np.testing.assert_array_equal(sums, int8.accumulate(kernels.panels_from_int8(x, isa)))


@every_level_of_linears
@pytest.mark.parametrize("tiles", [1, 7, 8, 9, 15, 16, 17, 127, 128, 129, 137])
def test_remainders_of_groups_and_chunks(isa: str, tiles: int) -> None:
    """A strip of so many stored tiles between an empty one and one of 3: groups begin anew with each strip."""
    rng = np.random.default_rng(tiles)
    n, k = 48, 4 * 150
    indptr = np.array([0, 0, tiles, tiles + 3], np.int32)
    indices = np.concatenate([np.sort(rng.choice(150, count, replace=False)) for count in (tiles, 3)]).astype(np.uint16)
    tiles4 = pack_nibbles(random_q4(rng, (tiles + 3, TILE_N, TILE_K)))
    m = random_scales(rng, (-(-tiles // GROUP_TILES) + 1, TILE_N))
    dense = bsr_to_dense(tile_integers(tiles4, m, indptr), indices, indptr, n, k).astype(np.int64)
    for rows in (2, 31):
        x = activations(rng, rows, k)
        linear = kernels.Int4Linear.bsr(k, indptr, indices, tiles4, m, *unit(n), isa)
        sums = linear.accumulate(kernels.panels_from_int8(x, isa, u8=True))
        np.testing.assert_array_equal(sums, x.astype(np.int64) @ dense.T)


@every_level_of_linears
def test_empty_strips_give_the_bias(isa: str) -> None:
    n, k = 48, 20
    indptr = np.array([0, 0, 2, 2], np.int32)
    tiles4 = pack_nibbles(np.ones((2, 16, 4), np.int8))
    bias = np.arange(n, dtype=np.float32)
    m = np.full((1, 16), 3, np.uint8)
    linear = kernels.Int4Linear.bsr(
        k, indptr, np.array([0, 4], np.uint16), tiles4, m, np.ones(n, np.float32), bias, isa
    )
    y = linear.forward(kernels.quantize_rows_u8(np.ones((3, k), np.float32), isa))
    np.testing.assert_array_equal(y[:, :16], np.tile(bias[:16], (3, 1)))
    np.testing.assert_array_equal(y[:, 32:], np.tile(bias[32:], (3, 1)))
    np.testing.assert_allclose(y[:, 16:32], np.tile(bias[16:32] + 24, (3, 1)), rtol=4 * EPS)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 60),
    k=st.integers(1, 140),
    n=st.integers(1, 50),
    density=st.one_of(st.none(), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_levels_agree_bit_for_bit(rows: int, k: int, n: int, density: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = activations(rng, rows, k)
    if density is None:
        weights = random_dense(rng, n, k)
        integers = row_integers(*weights, k)
    else:
        weights = random_bsr(rng, n, k, density)
        indptr, indices, tiles4, m = weights
        integers = bsr_to_dense(tile_integers(tiles4, m, indptr), indices, indptr, n, k)
    make = kernels.Int4Linear.dense if density is None else kernels.Int4Linear.bsr
    expected = x.astype(np.int64) @ integers.T.astype(np.int64)
    for isa in SUPPORTED:
        sums = make(k, *weights, *unit(n), isa).accumulate(kernels.panels_from_int8(x, isa, u8=True))
        np.testing.assert_array_equal(sums[:, :n], expected)


@every_level_of_linears
@pytest.mark.parametrize("act", ["identity", "gelu", "relu"])
def test_epilogue(isa: str, act: str) -> None:
    rows, k, n = 25, 40, 35
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    q4, m = random_dense(rng, n, k)
    scale, bias = rng.uniform(1e-4, 1e-2, n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, 48)).astype(np.float32)
    panels = kernels.quantize_rows_u8(x, isa)
    q, s = panels.unpack()
    y = kernels.Int4Linear.dense(k, q4, m, scale, bias, isa).forward(panels, residual, act)[:, :n]
    sums = q.astype(np.int64) @ row_integers(q4, m, k).T.astype(np.int64)
    z = sums * s.astype(np.float64)[:, None] * scale + bias
    if act == "gelu":
        from math import erf

        z = z * 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2)))
    elif act == "relu":
        z = np.maximum(z, 0)
    # five roundings of values up to the largest, and gelu's own bound
    tolerance = 5 * EPS * (np.abs(z) + np.abs(residual[:, :n]) + np.abs(bias)) + (2e-6 if act == "gelu" else 0)
    assert (np.abs(y - (z + residual[:, :n])) <= tolerance).all()


@every_level_of_linears
@pytest.mark.parametrize("density", [None, 0.4])
def test_a_row_does_not_depend_on_its_neighbours(isa: str, density: float | None) -> None:
    """Alone a row's nibbles are expanded in registers, among others in memory."""
    rng = np.random.default_rng(1)
    n, k = 33, 700
    x = rng.standard_normal((101, k)).astype(np.float32)
    weights = random_dense(rng, n, k) if density is None else random_bsr(rng, n, k, density)
    make = kernels.Int4Linear.dense if density is None else kernels.Int4Linear.bsr
    linear = make(k, *weights, np.full(n, 1e-3, np.float32), np.ones(n, np.float32), isa)
    together = linear.forward(kernels.quantize_rows_u8(x, isa), act="gelu")
    for i in range(0, len(x), 7):
        alone = linear.forward(kernels.quantize_rows_u8(x[i : i + 1], isa), act="gelu")
        np.testing.assert_array_equal(together[i], alone[0])


def test_weights_stay_nibbles() -> None:
    rng = np.random.default_rng(0)
    n, k = 384, 1536
    linear = kernels.Int4Linear.dense(k, *random_dense(rng, n, k), *unit(n))
    # a nibble a weight, a byte of scale for 32 of them, and per strip or output a few words
    assert linear.bytes <= n * k * (1 / 2 + 1 / 32) + 16 * (n + 16)


def test_bad_operands_are_refused() -> None:
    q4, m = np.full((16, 20), 0x88, np.uint8), np.ones((16, 2), np.uint8)
    linear = kernels.Int4Linear.dense(40, q4, m, *unit(16))
    with pytest.raises(ValueError, match="4 inputs, the weights 40"):
        linear.forward(kernels.quantize_rows_u8(np.zeros((1, 4), np.float32)))
    for bad, match in ((0, "scale of 0"), (19, "scale of 19"), (255, "scale of 255")):
        scales = m.copy()
        scales[15, 1] = bad
        with pytest.raises(ValueError, match=match):
            kernels.Int4Linear.dense(40, q4, scales, *unit(16))
    for byte in (0x08, 0x80):
        nibbles = q4.copy()
        nibbles[7, 19] = byte
        with pytest.raises(ValueError, match="nibble of 0"):
            kernels.Int4Linear.dense(40, nibbles, m, *unit(16))
    with pytest.raises(ValueError, match=r"q4 must be \[16, 21\]"):
        kernels.Int4Linear.dense(41, q4, m, *unit(16))
    with pytest.raises(ValueError, match=r"group_scale must be \[16, 2\]"):
        kernels.Int4Linear.dense(40, q4, m[:, :1].copy(), *unit(16))
    with pytest.raises(TypeError, match="uint8"):
        kernels.Int4Linear.dense(40, q4.astype(np.int8), m, *unit(16))


def test_bad_tiles_are_refused() -> None:
    tile, one = np.full((1, 16, 2), 0x88, np.uint8), np.ones((1, 16), np.uint8)
    indptr, index = np.array([0, 1], np.int32), np.zeros(1, np.uint16)
    kernels.Int4Linear.bsr(8, indptr, index, tile, one, *unit(16))
    with pytest.raises(ValueError, match="out of range"):
        kernels.Int4Linear.bsr(8, indptr, np.array([2], np.uint16), tile, one, *unit(16))
    with pytest.raises(ValueError, match="descend"):
        kernels.Int4Linear.bsr(8, np.array([0, 1, 0], np.int32), index, tile, one, *unit(32))
    with pytest.raises(ValueError, match=r"group_scale must be \[1, 16\]"):
        kernels.Int4Linear.bsr(8, indptr, index, tile, np.ones((2, 16), np.uint8), *unit(16))
    with pytest.raises(ValueError, match="number of tiles"):
        kernels.Int4Linear.bsr(8, indptr, index, np.full((1, 16, 4), 0x88, np.uint8), one, *unit(16))
    with pytest.raises(ValueError, match="nibble of 0"):
        kernels.Int4Linear.bsr(8, indptr, index, np.zeros((1, 16, 2), np.uint8), one, *unit(16))
    with pytest.raises(ValueError, match="scale of 77"):
        kernels.Int4Linear.bsr(8, indptr, index, tile, np.full((1, 16), 77, np.uint8), *unit(16))


@pytest.mark.skipif("avx2" not in SUPPORTED, reason="needs a level whose int8 and int4 layouts differ")
def test_panels_of_the_other_family_are_refused() -> None:
    x = np.zeros((1, 8), np.float32)
    linear = kernels.Int4Linear.dense(
        8, np.full((16, 4), 0x88, np.uint8), np.ones((16, 1), np.uint8), *unit(16), "avx2"
    )
    with pytest.raises(ValueError, match="another instruction set or family"):
        linear.forward(kernels.quantize_rows(x, "avx2"))
    with pytest.raises(ValueError, match="another instruction set or family"):
        linear.forward(kernels.quantize_rows_u8(x, "scalar"))
