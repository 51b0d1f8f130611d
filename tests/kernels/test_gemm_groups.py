"""GEMM of weights with float16 scales of groups: the reference's float32 operations bit for bit, on every level."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from group_inputs import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import EPS, SUPPORTED, every_level_of_linears

from approxrt._C import kernels
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import dequantize_groups, pack_quarters, pack_unsigned
from approxrt.runtime.reference.groupwise import dequantized_tokens, fma, product

# (tokens, inputs, outputs): around the blocks of tokens (4, 6, 8, 12 and 24), the panels, the tile, pairs of strips,
# and the group
SHAPES = [
    (1, 1, 1), (1, 32, 16), (2, 31, 15), (5, 33, 17), (6, 5, 17), (7, 64, 16), (8, 63, 33), (9, 100, 48), (11, 96, 16),
    (12, 32, 31), (13, 65, 16), (23, 36, 32), (24, 12, 31), (25, 128, 20), (37, 40, 16), (49, 576, 16),
    (28, 40, 32), (29, 64, 48), (32, 33, 80), (33, 96, 64), (60, 70, 47),
]  # fmt: skip
FORMATS = ("nibbles", "sixes", "bytes")


def halves(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Also zeros, subnormal and negative ones."""
    values = rng.standard_normal(shape) * np.exp2(rng.integers(-26, 4, shape))
    return np.where(rng.random(shape) < 0.1, 0, values).astype(np.float16)


def random_parts(rng: np.random.Generator, form: str, n: int, k: int) -> dict[str, np.ndarray]:
    groups = (n, -(-k // GROUP_WEIGHTS))
    if form == "bytes":
        return {"q": rng.integers(-128, 128, (n, k)).astype(np.int8), "group_scale": halves(rng, groups)}
    if form == "sixes":
        q = rng.integers(0, 64, (n, k)).astype(np.uint8)
        return {"q4": pack_unsigned(q & 15), "q2": pack_quarters(q >> 4), "group_scale": halves(rng, groups)}
    q4 = pack_unsigned(rng.integers(0, 16, (n, k)).astype(np.uint8))
    return {"q4": q4, "group_scale": halves(rng, groups), "group_offset": halves(rng, groups)}


def linear(parts: dict[str, np.ndarray], k: int, bias: np.ndarray, isa: str):
    if "q" in parts:
        return kernels.GroupLinear.bytes(parts["q"], parts["group_scale"], bias, isa)
    if "q2" in parts:
        return kernels.GroupLinear.sixes(k, parts["q4"], parts["q2"], parts["group_scale"], bias, isa)
    return kernels.GroupLinear.nibbles(k, parts["q4"], parts["group_scale"], parts["group_offset"], bias, isa)


def forward(parts: dict[str, np.ndarray], x: np.ndarray, bias: np.ndarray, isa: str, few: bool = False) -> np.ndarray:
    y: np.ndarray = linear(parts, x.shape[1], bias, isa).forward(kernels.quantize_groups(x, isa, few))
    assert not y[:, len(bias) :].any()
    return y[:, : len(bias)]


@every_level_of_linears
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_the_references_to_the_last_bit(isa: str, form: str, shape: tuple[int, int, int]) -> None:
    rows, k, n = shape
    rng = np.random.default_rng(k)
    x, parts, bias = activations(rng, rows, k), random_parts(rng, form, n, k), rng.standard_normal(n).astype(np.float32)
    expected = product(x, parts, bias)
    np.testing.assert_array_equal(forward(parts, x, bias, isa), expected)
    if rows <= 8:
        np.testing.assert_array_equal(forward(parts, x, bias, isa, few=True), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_the_reference_is_the_product(form: str) -> None:
    """In float64, of the activations that the quantiser leaves and the weights that the tensors stand for."""
    rng = np.random.default_rng(0)
    rows, k, n = 9, 200, 33
    x, parts = activations(rng, rows, k), random_parts(rng, form, n, k)
    read, weight = dequantized_tokens(x), dequantize_groups(parts, k).astype(np.float64)
    # Two roundings a group, of sums in which bytes (q + 128) and offsets may cancel.
    spread = np.repeat(np.abs(parts["group_scale"].astype(np.float64)), GROUP_WEIGHTS, axis=1)[:, :k] * 256
    if form == "nibbles":
        spread = spread / 16 + np.repeat(np.abs(parts["group_offset"].astype(np.float64)), GROUP_WEIGHTS, axis=1)[:, :k]
    tolerance = (2 * 7 + 4) * EPS * (np.abs(read) @ spread.T) + 1e-30
    errors = np.abs(product(x, parts, np.zeros(n, np.float32)) - read @ weight.T)
    assert (errors <= tolerance).all()


@settings(max_examples=300)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e10, max_value=1e10), min_size=3,
                max_size=3))  # fmt: skip
def test_fma_rounds_once(values: list[float]) -> None:
    a, b, c = (np.float32(value) for value in values)
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    found = fma(np.array([a]), np.array([b]), np.array([c]))[0]
    if exact == 0 or abs(exact) < Fraction(1, 2**120):
        return  # subnormal results round in other places
    near = [np.nextafter(found, np.float32(way)) for way in (-np.inf, np.inf)]
    assert all(abs(Fraction(float(found)) - exact) <= abs(Fraction(float(other)) - exact) for other in near)


@every_level_of_linears
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [3, 25])
def test_nothing_overflows(isa: str, form: str, rows: int) -> None:
    """Every product at the end of its range: 32 * 15 * 127 in 16 bits, 32 * 255 * 127 * 2^7 in 32."""
    k, n = 96, 16
    q = {"nibbles": 15, "sixes": 31, "bytes": 127}[form]
    groups = np.ones((n, 3), np.float16)
    for sign in (1, -1):
        x = np.full((rows, k), sign * 2.0, np.float32)
        if form == "bytes":
            parts = {"q": np.full((n, k), q, np.int8), "group_scale": groups}
        elif form == "sixes":
            parts = {"q4": np.full((n, k // 2), 0xFF, np.uint8), "q2": np.full((n, k // 4), 0xFF, np.uint8)}
            parts["group_scale"] = groups
        else:
            parts = {"q4": np.full((n, k // 2), 0xFF, np.uint8), "group_scale": groups, "group_offset": groups * 0}
        y = forward(parts, x, np.zeros(n, np.float32), isa)
        np.testing.assert_allclose(y, sign * 2.0 * q * k, rtol=8 * EPS * 128)


@every_level_of_linears
@pytest.mark.parametrize("form", FORMATS)
def test_every_weight_at_every_place(isa: str, form: str) -> None:
    """One token an input that looks at that input alone, over two groups: where packing puts a weight, it is."""
    k = n = 2 * GROUP_WEIGHTS
    rng = np.random.default_rng(3)
    parts = random_parts(rng, form, n, k)
    parts["group_scale"] = np.exp2(rng.integers(-3, 3, parts["group_scale"].shape)).astype(np.float16)
    if "group_offset" in parts:
        parts["group_offset"] = rng.integers(-8, 8, parts["group_offset"].shape).astype(np.float16)
    x = np.eye(k, dtype=np.float32) * 127
    y = forward(parts, x, np.zeros(n, np.float32), isa)
    np.testing.assert_allclose(y, 127 * dequantize_groups(parts, k).T, rtol=4 * EPS)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 60),
    k=st.integers(1, 140),
    n=st.integers(1, 50),
    form=st.sampled_from(FORMATS),
    few=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_levels_agree_bit_for_bit(rows: int, k: int, n: int, form: str, few: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, parts, bias = activations(rng, rows, k), random_parts(rng, form, n, k), rng.standard_normal(n).astype(np.float32)
    expected = forward(parts, x, bias, "scalar")
    for isa in SUPPORTED:
        np.testing.assert_array_equal(forward(parts, x, bias, isa, few and rows <= 8), expected)


@every_level_of_linears
@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
def test_epilogue(isa: str, act: str) -> None:
    rng = np.random.default_rng(0)
    rows, k, n = 26, 70, 35
    x, parts, bias = activations(rng, rows, k), random_parts(rng, "nibbles", n, k), np.ones(n, np.float32)
    residual = rng.standard_normal((rows, 48)).astype(np.float32)
    z = product(x, parts, bias).astype(np.float64)
    y = linear(parts, k, bias, isa).forward(kernels.quantize_groups(x, isa), residual, act)[:, :n]
    expected = {"identity": z, "relu": np.maximum(z, 0), "silu": z / (1 + np.exp(np.minimum(-z, 80)))}[act] + residual[
        :, :n
    ]
    # the activation's own bound and the sum's rounding
    assert (np.abs(y - expected) <= 8 * EPS * (np.abs(z) + np.abs(residual[:, :n]))).all()


@every_level_of_linears
@pytest.mark.parametrize("form", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(isa: str, form: str) -> None:
    rng = np.random.default_rng(1)
    x, parts, bias = activations(rng, 60, 200), random_parts(rng, form, 33, 200), np.ones(33, np.float32)
    together = forward(parts, x, bias, isa)
    for i in range(0, 60, 7):
        np.testing.assert_array_equal(forward(parts, x[i : i + 1], bias, isa, few=True)[0], together[i])


def test_weights_stay_nibbles() -> None:
    rng = np.random.default_rng(0)
    bias = np.zeros(384, np.float32)
    assert linear(random_parts(rng, "nibbles", 384, 1536), 1536, bias, "scalar").size == 384 * (1536 * 5 // 8 + 4)
    assert linear(random_parts(rng, "bytes", 384, 1536), 1536, bias, "scalar").size == 384 * (1536 * 17 // 16 + 4)


def test_bad_operands_are_refused() -> None:
    rng = np.random.default_rng(0)
    parts, bias = random_parts(rng, "nibbles", 16, 40), np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="8 inputs, the weights 40"):
        linear(parts, 40, bias, "").forward(kernels.quantize_groups(np.zeros((1, 8), np.float32)))
    with pytest.raises(ValueError, match=r"q4 must be \[16, 21\]"):
        kernels.GroupLinear.nibbles(41, parts["q4"], parts["group_scale"], parts["group_offset"], bias)
    for wrong in (parts["group_scale"][:, :1].copy(), parts["group_scale"].astype(np.float32), parts["group_scale"].T):
        with pytest.raises(ValueError, match=r"group_scale must be C-contiguous float16 \[16, 2\]"):
            kernels.GroupLinear.nibbles(40, parts["q4"], wrong, parts["group_offset"], bias)
    with pytest.raises(TypeError, match="int8"):
        kernels.GroupLinear.bytes(np.zeros((16, 40), np.uint8), parts["group_scale"], bias)
    with pytest.raises(ValueError, match="at most 8"):
        kernels.quantize_groups(np.zeros((9, 8), np.float32), few=True)


@pytest.mark.skipif("avx2" not in SUPPORTED, reason="needs two levels with different panels")
def test_panels_of_another_level_are_refused() -> None:
    rng = np.random.default_rng(0)
    weights = linear(random_parts(rng, "nibbles", 16, 8), 8, np.zeros(16, np.float32), "avx2")
    with pytest.raises(ValueError, match="another instruction set"):
        weights.forward(kernels.quantize_groups(np.zeros((9, 8), np.float32), "scalar"))
