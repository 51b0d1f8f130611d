"""kernels/gemm_bsr_int8.py: stored blocks alone, rows of unequal length, rows that are cut."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import DEVICE, empty, on_device, random_int8, torch

from approxrt.artifact.storage.bsr import expand_mask, grid
from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.gemm_bsr_int8 import gemm_bsr_int8
from approxrt.kernels.gemm_int8 import gemm_int8
from approxrt.kernels.launch import Config
from approxrt.runtime.cuda.layout import kept_blocks, to_blocks, work_items

TILE = Config({"BLOCK_M": 16})


def operands(m: int, n: int, k: int, block: tuple[int, int], density: float, seed: int = 0):
    """(q, s_t, weights, s_o, bias, kept 16x4 tiles): whole blocks are kept or not."""
    rng = np.random.default_rng(seed)
    strips, columns = grid(n, k)
    high, wide = block[0] // 16, block[1] // 4
    blocks = rng.random((-(-strips // high), -(-columns // wide))) < density
    kept = np.kron(blocks, np.ones((high, wide), bool))[:strips, :columns]
    w = random_int8(rng, n, k) * expand_mask(kept, n, k)
    q = random_int8(rng, m, -(-k // block[1]) * block[1])
    scales = rng.uniform(1e-3, 1e-2, m).astype(np.float32), rng.uniform(1e-3, 1e-2, n).astype(np.float32)
    return q, scales[0], w, scales[1], rng.normal(size=n).astype(np.float32), kept


def run(case, block: tuple[int, int], y: torch.Tensor, longest: int | None = None, **kwargs) -> None:
    q, scale, w, w_scale, bias, kept = case
    blocks, columns, indptr = to_blocks(w, kept, block)
    items = work_items(indptr, longest)
    arrays = map(on_device, (q, scale, blocks, columns, items, w_scale, bias))
    gemm_bsr_int8(*arrays, y, config=TILE, **kwargs)


@pytest.mark.parametrize("m", [1, 15, 17])
@pytest.mark.parametrize(("n", "k"), [(63, 60), (64, 64), (80, 260)])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("longest", [None, 1])
def test_sums_are_exact(m: int, n: int, k: int, density: float, longest: int | None) -> None:
    block = (32, 64)
    case = operands(m, n, k, block, density)
    sums, workspace = empty(m, n, dtype=torch.int32), None if longest is None else Workspace(torch.device(DEVICE))
    run(case, block, sums, longest, workspace=workspace)
    q, _, w, *_ = case
    np.testing.assert_array_equal(sums.cpu().numpy(), q[:, :k].astype(np.int64) @ w.astype(np.int64).T)
    if workspace is not None:
        assert not any(buffer.any() for buffer in workspace._buffers.values())


@pytest.mark.parametrize("block", [(128, 128), (64, 64)])
def test_equals_the_dense_kernel_bit_for_bit(block: tuple[int, int]) -> None:
    """Epilogue and all; rows of blocks from empty to full; with rows cut and whole."""
    m, n, k = 20, 300, 512
    case = operands(m, n, k, block, 0.5, seed=1)
    q, scale, w, w_scale, bias, kept = case
    lengths = kept_blocks(kept, *block).sum(axis=1)
    assert lengths.min() < lengths.max()
    residual = on_device(np.random.default_rng(2).normal(size=(m, n)).astype(np.float16))
    want, whole, cut = (empty(m, n, dtype=torch.float16) for _ in range(3))
    gemm_int8(*map(on_device, (q, scale, w, w_scale, bias)), want, "gelu", residual)
    run(case, block, whole, activation="gelu", residual=residual)
    run(case, block, cut, 2, activation="gelu", residual=residual, workspace=Workspace(torch.device(DEVICE)))
    assert torch.equal(whole, want) and torch.equal(cut, want)
