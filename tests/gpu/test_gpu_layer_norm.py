"""kernels/layer_norm.py against the formula in float64, and its quantised output against the quantiser."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import EPS16, EPS32, empty, on_device, torch

from approxrt.kernels.layer_norm import layer_norm
from approxrt.runtime.reference.encoder import quantize_tokens


def formula(z: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None, eps: float) -> np.ndarray:
    z = z.astype(np.float64)
    if beta is None:
        return z / np.sqrt((z * z).mean(1, keepdims=True) + eps) * gamma
    centred = z - z.mean(1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(1, keepdims=True) + eps) * gamma + beta


@pytest.mark.parametrize(("m", "k"), [(1, 1), (7, 63), (4, 64), (9, 65), (3, 1025)])
@pytest.mark.parametrize("rms", [False, True])
def test_against_formula(m: int, k: int, rms: bool) -> None:
    rng = np.random.default_rng(m + k)
    x, residual = rng.normal(3, 2, (2, m, k)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, k)).astype(np.float32)
    z, h = empty(m, k), empty(m, k)
    q, scale = empty(m, -(-k // 64) * 64, dtype=torch.int8), empty(m)
    layer_norm(
        on_device(x), on_device(gamma), None if rms else on_device(beta), 1e-5,
        residual=on_device(residual), z=z, h=h, quantized=(q, scale),
    )  # fmt: skip
    np.testing.assert_array_equal(z.cpu().numpy(), x + residual)
    want = formula(x + residual, gamma, None if rms else beta, 1e-5)
    got = h.cpu().numpy()
    # Means are sums by a tree, log2 K roundings of values near 6; the subtraction keeps their absolute error.
    bound = (2 * np.log2(k + 1) + 12) * EPS32 * (np.abs(want) + (1 + np.abs(x + residual).max()) * np.abs(gamma))
    assert np.all(np.abs(got - want) <= bound if k > 1 else np.abs(got - want) <= 1e-2)
    want_q, want_scale = quantize_tokens(got)
    np.testing.assert_array_equal(q[:, :k].cpu().numpy(), want_q)
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)
    assert not q[:, k:].any()


def test_float16_in_and_out_without_residual() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 96)).astype(np.float16)
    gamma, beta = rng.normal(size=(2, 96)).astype(np.float32)
    h = empty(6, 96, dtype=torch.float16)
    layer_norm(on_device(x), on_device(gamma), on_device(beta), 1e-12, h=h)
    want = formula(x, gamma, beta, 1e-12)
    assert np.all(np.abs(h.float().cpu().numpy() - want) <= EPS16 * np.abs(want) + 40 * EPS32 * (1 + np.abs(want)))


def test_a_removed_block_adds_one_row_to_all() -> None:
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    bias = np.linspace(-2, 2, 64, dtype=np.float32)
    ones, zeros = np.ones(64, np.float32), np.zeros(64, np.float32)
    h = empty(5, 64)
    layer_norm(
        on_device(x), on_device(ones), on_device(zeros), 1e-12, residual=on_device(bias[None]).expand(5, 64), h=h
    )
    np.testing.assert_allclose(h.cpu().numpy(), formula(x + bias, ones, zeros, 1e-12), rtol=0, atol=1e-5)
