"""Block-sparse int8 GEMM: only stored blocks of weights are read and multiplied.

    y[t, o] = act(s_t * s_o * sum_i q[t, i] * w[o, i] + bias[o]) (+ residual[t, o])

Weights as blocks i8 [blocks, BLOCK_N, BLOCK_K] sorted by row of blocks, columns i32 [blocks] (inputs BLOCK_K * column
and on). q i8 [M, ldq], ldq a multiple of BLOCK_K; the rest as in kernels/gemm_int8.py. Blocks are at least 32 x 64:
what a tensor-core instruction takes, 64 bytes of a row.

Rows of blocks have unequal lengths, so work comes as a table of items i32 [items, 4]
(`approxrt.runtime.cuda.layout.work_items`):

    row of blocks, first block, end, parts of this row

longest first, since programs start in the table's order: short items fill what the long ones leave. A row that is
longer than the others may be several items, whose sums are added (kernels/epilogue.py). A row without blocks is an
item of no blocks, whose y is act(bias).
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.epilogue import Workspace, finish_part, store_linear
from approxrt.kernels.numerics import ACTIVATION_CODES

ITEM_FIELDS = 4


@triton.jit
def gemm_bsr_int8_kernel(
    q_ptr, scale_ptr, blocks_ptr, columns_ptr, items_ptr, w_scale_ptr, bias_ptr, residual_ptr, y_ptr,
    sums_ptr, arrivals_ptr, M, N, ldq, ldr, ldy,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    item = items_ptr + tl.program_id(0) // tiles_m * 4
    tile_m = tl.program_id(0) % tiles_m
    row, begin, end = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = row * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    q_at = q_ptr + tl.minimum(rows, M - 1)[:, None] * ldq + ks[None, :]
    w_at = blocks_ptr + begin.to(tl.int64) * (BLOCK_N * BLOCK_K)
    w_at = w_at + tl.arange(0, BLOCK_N)[None, :] * BLOCK_K + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for block in range(begin, end):
        q = tl.load(q_at + tl.load(columns_ptr + block) * BLOCK_K)
        acc = tl.dot(q, tl.load(w_at), acc, out_dtype=tl.int32)
        w_at += BLOCK_N * BLOCK_K
    if SPLIT:
        parts = tl.load(item + 3)
        finish_part(
            acc, parts, row * tiles_m + tile_m, rows, cols, M, N, scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr,
            y_ptr, ldy, sums_ptr, arrivals_ptr, ACTIVATION, RESIDUAL,
        )  # fmt: skip
    else:
        store_linear(
            acc, rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip


def gemm_bsr_int8(
    q: torch.Tensor,
    scale: torch.Tensor,
    blocks: torch.Tensor,
    columns: torch.Tensor,
    items: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    config: launch.Config | None = None,
) -> None:
    """q i8 [M, ldq], blocks i8 [blocks, BLOCK_N, BLOCK_K] -> y [M, N] in place.

    `workspace`: needed where `items` cuts rows; without one no row may be cut.
    """
    m, n = q.shape[0], w_scale.shape[0]
    block_n, block_k = blocks.shape[1:]
    config = config or launch.gemm_bsr_config(m, n, block_n, block_k)
    tiles_m = launch.ceil_div(m, config["BLOCK_M"])
    arrivals = sums = scale
    if workspace is not None:
        arrivals, sums = workspace.zeros(tiles_m * launch.ceil_div(n, block_n), m * n)
    rest = y if residual is None else residual
    gemm_bsr_int8_kernel[(tiles_m * items.shape[0],)](
        q, scale, blocks, columns, items, w_scale, bias, rest, y, sums, arrivals,
        m, n, q.stride(0), rest.stride(0), y.stride(0),
        ACTIVATION_CODES[activation], residual is not None, workspace is not None,
        BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
