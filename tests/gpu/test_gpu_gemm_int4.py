"""kernels/gemm_int4.py and kernels/gemv.py: weights of 4 bits give the sums of their int8 form, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import DEVICE, empty, on_device, padded, random_int8, torch

from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.gemm_int4 import gemm_int4, pack_int4
from approxrt.kernels.gemm_int8 import gemm_int8
from approxrt.kernels.gemv import gemv
from approxrt.kernels.launch import Config

TILE = Config({"BLOCK_M": 16, "BLOCK_N": 32, "SPLIT_K": 1})


def operands(m: int, n: int, k: int):
    """(q, s_t, q4, groups, weights m * q4 padded, s_o, bias)."""
    rng = np.random.default_rng(m + n + k)
    q4 = rng.integers(-7, 8, (n, k), dtype=np.int8)
    groups = rng.integers(1, 19, (n, -(-k // 32)), dtype=np.uint8)
    w = padded(q4 * np.repeat(groups, 32, axis=1)[:, :k].astype(np.int8), 128)
    scales = rng.uniform(1e-3, 1e-2, m).astype(np.float32), rng.uniform(1e-3, 1e-2, n).astype(np.float32)
    return padded(random_int8(rng, m, k), 128), scales[0], q4, groups, w, scales[1], rng.normal(size=n).astype("f4")


@pytest.mark.parametrize("m", [1, 16, 17])
@pytest.mark.parametrize(("n", "k"), [(31, 33), (32, 128), (65, 300)])
def test_sums_are_exact(m: int, n: int, k: int) -> None:
    q, scale, q4, groups, w, w_scale, bias = operands(m, n, k)
    want = q.astype(np.int64) @ w.astype(np.int64).T
    sums = empty(m, n, dtype=torch.int32)
    packed = [on_device(a) for a in pack_int4(q4, groups)]
    gemm_int4(on_device(q), on_device(scale), *packed, on_device(w_scale), on_device(bias), sums, config=TILE)
    np.testing.assert_array_equal(sums.cpu().numpy(), want)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_equals_the_int8_kernel(split: int) -> None:
    m, n, k = 20, 70, 384
    q, scale, q4, groups, w, w_scale, bias = operands(m, n, k)
    packed = [on_device(a) for a in pack_int4(q4, groups)]
    q, scale, w, w_scale, bias = (on_device(a) for a in (q, scale, w, w_scale, bias))
    residual = on_device(np.random.default_rng(0).normal(size=(m, n)).astype(np.float16))
    want, got = empty(m, n, dtype=torch.float16), empty(m, n, dtype=torch.float16)
    gemm_int8(q, scale, w, w_scale, bias, want, "gelu", residual)
    workspace = Workspace(torch.device(DEVICE))
    cut = TILE.with_blocks(SPLIT_K=split)
    gemm_int4(q, scale, *packed, w_scale, bias, got, "gelu", residual, workspace, cut)
    assert torch.equal(got, want)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), [(3, 33), (16, 128), (17, 300), (40, 1100)])
def test_gemv_sums_are_exact(n: int, k: int, bits: int) -> None:
    m = 2
    q, scale, q4, groups, w, w_scale, bias = operands(m, n, k)
    w8 = random_int8(np.random.default_rng(0), *w.shape) if bits == 8 else w
    sums = empty(m, n, dtype=torch.int32)
    packed, packed_groups = map(on_device, pack_int4(q4, groups))
    args = (on_device(w8), None) if bits == 8 else (packed, packed_groups)
    gemv(
        on_device(q), on_device(scale), args[0], on_device(w_scale), on_device(bias), sums, groups=args[1],
        config=Config({"BLOCK_N": 16, "BLOCK_K": 256}),
    )  # fmt: skip
    np.testing.assert_array_equal(sums.cpu().numpy(), q.astype(np.int64) @ w8.astype(np.int64).T)


@pytest.mark.parametrize("bits", [8, 4])
def test_gemv_equals_the_gemm(bits: int) -> None:
    """Bit for bit, epilogue and all: a token's answer does not depend on which of them ran."""
    m, n, k = 3, 70, 256
    q, scale, q4, groups, w, w_scale, bias = operands(m, n, k)
    packed, packed_groups = map(on_device, pack_int4(q4, groups))
    q, scale, w, w_scale, bias = (on_device(a) for a in (q, scale, w, w_scale, bias))
    residual = on_device(np.random.default_rng(0).normal(size=(m, n)).astype(np.float32))
    want, got = empty(m, n), empty(m, n)
    gemm_int8(q, scale, w, w_scale, bias, want, "silu", residual)
    args = (w, None) if bits == 8 else (packed, packed_groups)
    gemv(q, scale, args[0], w_scale, bias, got, "silu", residual, args[1])
    assert torch.equal(got, want)
