"""kernels/gemm_f32.py and kernels/pooling.py: what a task's head runs on."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import EPS32, empty, on_device, torch

from approxrt.kernels.gemm_f32 import gemm_f32
from approxrt.kernels.pooling import pooling


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (15, 63, 31), (16, 64, 32), (17, 65, 33), (65, 2, 100)])
@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_against_float64(m: int, n: int, k: int, activation: str) -> None:
    rng = np.random.default_rng(m + n + k)
    x, w, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (n, k), (n,)))
    residual = rng.normal(size=(m, n)).astype(np.float32)
    y = empty(m, n)
    gemm_f32(on_device(x), on_device(w), on_device(bias), y, activation, on_device(residual))
    z = x.astype(np.float64) @ w.T.astype(np.float64) + bias
    want = (np.tanh(z) if activation == "tanh" else z) + residual
    # Higham 2002, 3.1, for any order of the sum
    bound = EPS32 * ((k + 4) * (np.abs(x) @ np.abs(w).T + np.abs(bias)) + np.abs(residual) + 4)
    assert np.all(np.abs(y.cpu().numpy() - want) <= bound)


def test_a_row_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    x, w, bias = (on_device(rng.normal(size=s).astype(np.float32)) for s in ((80, 96), (70, 96), (70,)))
    many, one = empty(80, 70), empty(1, 70)
    gemm_f32(x, w, bias, many)
    gemm_f32(x[79:], w, bias, one)
    assert torch.equal(many[79:], one)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("h", [127, 128, 129])
def test_pooling(h: int, mean: bool) -> None:
    lengths = [3, 1, 0, 7]
    x = np.random.default_rng(h).normal(size=(11, h)).astype(np.float16)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    out = empty(4, h)
    pooling(on_device(x), on_device(cu_seqlens), out, mean)
    for i, n in enumerate(lengths):
        rows = x[cu_seqlens[i] : cu_seqlens[i] + n].astype(np.float64)
        want = np.zeros(h) if n == 0 else rows.mean(0) if mean else rows[0]
        np.testing.assert_allclose(out[i].cpu().numpy(), want, rtol=0, atol=16 * EPS32 * np.abs(x).max())
