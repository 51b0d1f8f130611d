"""kernels/gemm_int8.py: sums exactly, outputs within rounding of the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import DEVICE, EPS16, EPS32, empty, on_device, padded, random_int8, torch

from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.gemm_int8 import gemm_int8
from approxrt.kernels.launch import Config
from approxrt.runtime.reference.encoder import _activation

TILE = Config({"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP_M": 2, "SPLIT_K": 1}, 4, 3)


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(m + n + k)
    q, w = padded(random_int8(rng, m, k)), padded(random_int8(rng, n, k))
    scales = rng.uniform(1e-3, 1e-2, m).astype(np.float32), rng.uniform(1e-3, 1e-2, n).astype(np.float32)
    return q, scales[0], w, scales[1], rng.normal(size=n).astype(np.float32)


@pytest.mark.parametrize("m", [1, 31, 32, 33, 65])
@pytest.mark.parametrize(("n", "k"), [(31, 63), (32, 64), (33, 130), (65, 128)])
def test_sums_are_exact(m: int, n: int, k: int) -> None:
    q, scale, w, w_scale, bias = operands(m, n, k)
    sums = empty(m, n, dtype=torch.int32)
    gemm_int8(*map(on_device, (q, scale, w, w_scale, bias)), sums, config=TILE)
    np.testing.assert_array_equal(sums.cpu().numpy(), q.astype(np.int64) @ w.astype(np.int64).T)


def test_wide_tiles_are_stored_by_halves() -> None:
    q, scale, w, w_scale, bias = operands(20, 300, 64)
    sums = empty(20, 300, dtype=torch.int32)
    wide = Config({"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 1, "SPLIT_K": 1})
    gemm_int8(*map(on_device, (q, scale, w, w_scale, bias)), sums, config=wide)
    np.testing.assert_array_equal(sums.cpu().numpy(), q.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize("activation", ["identity", "gelu", "gelu_tanh", "relu", "tanh", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_epilogue(activation: str, dtype: torch.dtype) -> None:
    m, n, k = 33, 40, 64
    q, scale, w, w_scale, bias = operands(m, n, k)
    residual = np.random.default_rng(1).normal(size=(m, n)).astype(np.float32)
    y = empty(m, n, dtype=dtype)
    gemm_int8(*map(on_device, (q, scale, w, w_scale, bias)), y, activation, on_device(residual), config=TILE)
    z = scale[:, None].astype(np.float64) * w_scale * (q.astype(np.float64) @ w.T.astype(np.float64)) + bias
    act = torch.nn.functional.silu if activation == "silu" else lambda x: _activation(activation, x)
    want = act(torch.from_numpy(z)).numpy() + residual
    # Products of scales and with the sum, the bias, the residual: a rounding each; an activation's slope is at most
    # 1.13, and exp2 and erf err by a few units.
    bound = 8 * EPS32 * (np.abs(z) + np.abs(bias) + np.abs(residual) + 1)
    if dtype == torch.float16:
        bound = bound + EPS16 * np.abs(want)
    assert np.all(np.abs(y.float().cpu().numpy() - want) <= bound)


def test_a_row_of_residual_may_be_repeated_and_rows_may_have_strides() -> None:
    m, n, k = 5, 33, 64
    q, scale, w, w_scale, bias = operands(m, n, k)
    row = np.linspace(-1, 1, n, dtype=np.float32)
    y = empty(m, 80)
    args = list(map(on_device, (q, scale, w, w_scale, bias)))
    gemm_int8(*args, y[:, :n], residual=on_device(row[None]).expand(m, n), config=TILE)
    z = scale[:, None] * w_scale * (q.astype(np.int32) @ w.T.astype(np.int32)) + bias + row
    np.testing.assert_allclose(y[:, :n].cpu().numpy(), z, rtol=0, atol=1e-5 * np.abs(z).max())
    assert (y[:, n:] == 77).all()


def test_float16_saturates() -> None:
    y = empty(1, 16, dtype=torch.float16)
    q, w = np.full((1, 64), 127, np.int8), np.full((16, 64), 127, np.int8)
    one = np.ones(16, np.float32)
    gemm_int8(*map(on_device, (q, one[:1], w, one, one)), y)
    assert (y == 65504).all()


@pytest.mark.parametrize("split", [2, 3, 5])
def test_parts_of_a_sum_are_one(split: int) -> None:
    """Bit for bit, epilogue and all, and the workspace is zero again; five parts leave some of 4 K-blocks empty."""
    m, n = 33, 70
    q, scale, w, w_scale, bias = (on_device(a) for a in operands(m, n, 256))
    want, got = empty(m, n, dtype=torch.float16), empty(m, n, dtype=torch.float16)
    gemm_int8(q, scale, w, w_scale, bias, want, "gelu", want.clone(), config=TILE)
    workspace = Workspace(torch.device(DEVICE))
    for _ in range(2):
        got.fill_(77)
        cut = TILE.with_blocks(SPLIT_K=split)
        gemm_int8(q, scale, w, w_scale, bias, got, "gelu", got.clone(), workspace, cut)
        assert torch.equal(got, want)
        assert not any(buffer.any() for buffer in workspace._buffers.values())


def test_answers_do_not_depend_on_tiles_nor_on_the_batch() -> None:
    """The same row alone, in a batch, and with the rules' own tiles."""
    q, scale, w, w_scale, bias = (on_device(a) for a in operands(40, 48, 192))
    one, many, rule = (empty(40, 48, dtype=torch.float16) for _ in range(3))
    for row in (0, 39):
        gemm_int8(q[row : row + 1], scale[row : row + 1], w, w_scale, bias, one[row : row + 1], "gelu")
    gemm_int8(q, scale, w, w_scale, bias, many, "gelu", config=TILE)
    gemm_int8(q, scale, w, w_scale, bias, rule, "gelu")
    assert torch.equal(many, rule) and torch.equal(one[[0, 39]], many[[0, 39]])
