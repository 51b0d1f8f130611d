"""int8 weights: error bounds, the clip search, and the signal that is left (SQNR)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec

from approxrt.artifact.spec.encoder_schema import encoder_faults
from approxrt.artifact.storage.bsr import bsr_to_dense, expand_mask
from approxrt.artifact.tensors import tensor_faults
from approxrt.pruning.magnitude import prune_tiles
from approxrt.quantization.rtn import CLIP_RATIOS, dequantize, quantize_model, quantize_rows


def sqnr_db(exact: np.ndarray, approximate: np.ndarray) -> float:
    """Signal to quantisation noise, in decibels."""
    noise = np.square(exact - approximate, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(exact, dtype=np.float64).sum() / noise))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    k=st.sampled_from([1, 3, 4, 5, 63, 64, 65]),
    exponent=st.integers(-30, 30),
)
def test_without_clipping_the_error_is_half_a_step(seed: int, n: int, k: int, exponent: int) -> None:
    weight = (np.random.default_rng(seed).normal(size=(n, k)) * 10.0**exponent).astype(np.float32)
    q, scale = quantize_rows(weight, (1.0,))
    assert q.dtype == np.int8 and scale.dtype == np.float32 and q.shape == (n, k) and scale.shape == (n,)
    assert np.abs(q.astype(int)).max() <= 127
    # half a step, and the rounding of scale and quotient: 127 steps * 3 roundings of 2^-24
    bound = scale[:, None].astype(np.float64) * (0.5 + 127 * 3 * 2.0**-24)
    assert np.all(np.abs(weight - q.astype(np.float64) * scale[:, None]) <= bound)


@given(seed=st.integers(0, 2**32 - 1), heavy=st.booleans())
def test_the_clip_search_never_loses_to_no_clipping(seed: int, heavy: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (8, 96)) if heavy else rng.normal(size=(8, 96))).astype(np.float32)
    errors = [
        np.square(weight - dequantize(*quantize_rows(weight, ratios))).sum(axis=1) for ratios in (CLIP_RATIOS, (1.0,))
    ]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-4))


def test_clipping_helps_a_long_row_with_an_outlier() -> None:
    """n = 30,000 weights, one of them the peak p: noise n p^2 / (12 * 127^2) = 0.155 p^2 unclipped; clipped to
    0.9 p it is 0.81 * 0.155 p^2 + (0.1 p)^2 = 0.136 p^2: 0.58 dB less."""
    weight = np.random.default_rng(0).normal(size=(4, 30_000)).astype(np.float32)
    weight[:, 7] = 30.0
    plain, searched = (sqnr_db(weight, dequantize(*quantize_rows(weight, r))) for r in ((1.0,), CLIP_RATIOS))
    assert searched - plain == pytest.approx(0.58, abs=0.1)


def test_sqnr_of_normal_weights() -> None:
    """Theory: noise step^2/12 with step = peak/127. A normal row of 384 peaks near 3 sigma: 43 dB before clipping."""
    weight = np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32)
    q, scale = quantize_rows(weight, (1.0,))
    expected = 10 * np.log10(np.square(weight).sum() / (384 * np.square(scale, dtype=np.float64) / 12).sum())
    assert sqnr_db(weight, dequantize(q, scale)) == pytest.approx(expected, abs=0.1)
    assert sqnr_db(weight, dequantize(*quantize_rows(weight))) > max(42.0, expected)


def test_zero_tiny_and_huge_rows() -> None:
    weight = np.zeros((4, 8), np.float32)
    weight[1] = 1e-45
    weight[2, 3] = np.finfo(np.float32).max
    weight[3] = -1
    q, scale = quantize_rows(weight)
    assert scale[0] == 1 and not q[0].any()
    assert np.all(np.isfinite(scale)) and np.all(scale > 0)
    assert q[2, 3] == 127 and q[2].astype(int).sum() == 127
    assert np.all(q[3] == -127)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    weight = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
    q, scale = quantize_rows(weight)
    for row in (0, 64, 65, 66, 299):
        alone = quantize_rows(weight[row : row + 1])
        np.testing.assert_array_equal(alone[0][0], q[row])
        assert alone[1][0] == scale[row]


def test_quantised_model_is_sound_and_close() -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    before = {name: array.copy() for name, array in tensors.items()}
    quantised, out = quantize_model(spec, tensors)
    assert encoder_faults(quantised) == [] and tensor_faults(quantised, out) == []
    kinds = {name: linear.kind for name, linear in quantised.linears()}
    assert {kinds[name] for name in kinds if name.startswith("layers.")} == {"s8"}
    assert kinds["head.dense"] == kinds["head.out"] == "f32" and quantised.embedding_kind == "s8"
    for name in ("layers.0.ffn.up", "layers.0.attention.query", "embeddings.word"):
        assert sqnr_db(tensors[f"{name}.weight"], dequantize(out[f"{name}.q"], out[f"{name}.scale"])) > 40
    for name, array in before.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_pruned_model_keeps_what_the_masks_say() -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    masks = prune_tiles(spec, tensors, 0.5)
    sparse, out = quantize_model(spec, tensors, masks=masks)
    assert tensor_faults(sparse, out) == []
    for name, linear in sparse.linears():
        if linear.kind != "bsr_s8":
            continue
        n, k = linear.out_features, linear.in_features
        q = bsr_to_dense(*(out[f"{name}.{part}"] for part in ("tiles", "indices", "indptr")), n, k)
        kept = tensors[f"{name}.weight"] * expand_mask(masks[name], n, k)
        expected, scale = quantize_rows(kept)
        np.testing.assert_array_equal(q, expected)
        np.testing.assert_array_equal(out[f"{name}.scale"], scale)


def test_32_bits_change_nothing_and_others_are_refused() -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    same, out = quantize_model(spec, tensors, "f32")
    assert same == spec and all(out[name] is tensors[name] for name in tensors)
    with pytest.raises(ValueError, match="kind is 'g6'; it must be one of s8, s4, g4, f32"):
        quantize_model(spec, tensors, "g6")
