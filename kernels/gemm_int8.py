"""int8 GEMM with everything that follows it fused.

    y[t, o] = act(s_t * s_o * sum_i q[t, i] * w[o, i] + bias[o]) (+ residual[t, o])

q i8 [M, K] and w i8 [N, K], both row-major, K a multiple of BLOCK_K with zeros as padding; s_t f32 [M], s_o and bias
f32 [N]; residual any float type (row stride 0 repeats one row); y f16, bf16 or f32, or int32 for the bare sums.

Sums are int32 and exact: y does not depend on tile sizes, on SPLIT_K nor on the other rows of a batch. BLOCK_K is 64
or 128 bytes of a row: whole 32-byte k-steps of an int8 mma, rows that fill the 128-byte swizzle of shared memory.
Tiles are visited in groups of GROUP_M rows, so that programs running together share weights in L2.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.epilogue import Workspace, finish_part, store_linear
from approxrt.kernels.numerics import ACTIVATION_CODES


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(row tile, column tile) of program `pid`: column by column within GROUP_M rows of tiles."""
    in_group = GROUP_M * tiles_n
    first = pid // in_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    return first + pid % in_group % height, pid % in_group // height


@triton.jit
def gemm_int8_kernel(
    q_ptr, scale_ptr, w_ptr, w_scale_ptr, bias_ptr, residual_ptr, y_ptr, sums_ptr, arrivals_ptr,
    M, N, K, ldq, ldw, ldr, ldy,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Rows past the end are read from the last one and not stored: no mask in the loop.
    first, last = 0, K
    if SPLIT_K > 1:
        share = tl.cdiv(K, BLOCK_K * SPLIT_K) * BLOCK_K
        first = tl.program_id(1) * share
        last = tl.minimum(first + share, K)
    q_at = q_ptr + tl.minimum(rows, M - 1)[:, None] * ldq + (first + ks)[None, :]
    w_at = w_ptr + tl.minimum(cols, N - 1)[None, :] * ldw + (first + ks)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for _ in range(first, last, BLOCK_K):
        acc = tl.dot(tl.load(q_at), tl.load(w_at), acc, out_dtype=tl.int32)
        q_at += BLOCK_K
        w_at += BLOCK_K
    if SPLIT_K > 1:
        finish_part(
            acc, SPLIT_K, tile_n * tl.cdiv(M, BLOCK_M) + tile_m, rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy,
            sums_ptr, arrivals_ptr, ACTIVATION, RESIDUAL,
        )  # fmt: skip
    elif BLOCK_N >= 256:
        # By halves: addresses and floats of all columns at once do not fit in registers beside the sums.
        left, right = tl.split(acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1))
        half = tile_n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        store_linear(
            left, rows, half, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip
        store_linear(
            right, rows, half + BLOCK_N // 2, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip
    else:
        store_linear(
            acc, rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip


def gemm_int8(
    q: torch.Tensor,
    scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    config: launch.Config | None = None,
) -> None:
    """q i8 [M, K], w i8 [N, K] (K a multiple of 64) -> y [M, N] in place. Without a workspace K is not cut."""
    (m, k), n = q.shape, w.shape[0]
    if config is None:
        key = launch.key_of("gemm_int8", m=launch.size_bucket(m), n=n, k=k)
        config = launch.config(key, launch.gemm_int8_rule(m, n, k))
    tiles = launch.ceil_div(m, config["BLOCK_M"]) * launch.ceil_div(n, config["BLOCK_N"])
    sums = arrivals = scale
    if workspace is None:
        config = config.with_blocks(SPLIT_K=1)
    elif config["SPLIT_K"] > 1:
        arrivals, sums = workspace.zeros(tiles, m * n)
    rest = y if residual is None else residual
    gemm_int8_kernel[(tiles, config["SPLIT_K"])](
        q, scale, w, w_scale, bias, rest, y, sums, arrivals,
        m, n, k, q.stride(0), w.stride(0), rest.stride(0), y.stride(0),
        ACTIVATION_CODES[activation], residual is not None, enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
