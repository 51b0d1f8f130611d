"""GEMM of int8 activations with int4 weights, which stay int4 in memory.

    w[o, i] = m[o, i / 32] * q4[o, i]        q4 in [-7, 7], m in [1, 18]: an int8
    y[t, o] = act(s_t * s_o * sum_i q[t, i] * w[o, i] + bias[o]) (+ residual[t, o])

Sums are those of the int8 kernel with the same w, bit for bit. Weights are re-laid (`pack_int4`): of each 128 inputs,
byte j of 64 holds q4 + 8 of input j in its low nibble and of input 64 + j in its high one, so that both halves come out
whole, without interleaving. u8 [N, K / 2], groups u8 [N, K / 32]; q i8 [M, K]; K a multiple of 128.

The product is computed transposed, outputs x tokens: weights come out of registers, which is where an mma's first
operand may be (the second must be in shared memory on Hopper), and few tokens fill its narrow side.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.epilogue import Workspace, finish_part, store_linear
from approxrt.kernels.numerics import ACTIVATION_CODES

PACK = 128  # inputs that are packed together


@triton.jit
def expand_int4(packed, m, shift: tl.constexpr, BLOCK_N: tl.constexpr):
    """u8 [BLOCK_N, 64] and its half's group scales u8 [BLOCK_N, 2] -> i8 [BLOCK_N, 64]."""
    q4 = ((packed.to(tl.int32) >> shift) & 15) - 8
    scales = tl.broadcast_to(m.to(tl.int32)[:, :, None], (BLOCK_N, 2, 32)).reshape(BLOCK_N, 64)
    return (q4 * scales).to(tl.int8)


@triton.jit
def gemm_int4_kernel(
    q_ptr, scale_ptr, w_ptr, groups_ptr, w_scale_ptr, bias_ptr, residual_ptr, y_ptr, sums_ptr, arrivals_ptr,
    M, N, K, ldq, ldr, ldy,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m, tile_n = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows past the end are read from the last one and not stored.
    safe = tl.minimum(cols, N - 1)
    share = tl.cdiv(K, 128 * SPLIT_K) * 128
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, K)
    js = tl.arange(0, 64)
    q_at = q_ptr + tl.minimum(rows, M - 1)[None, :] * ldq + (first + js)[:, None]
    w_at = w_ptr + safe[:, None] * (K // 2) + (first // 2 + js)[None, :]
    m_at = groups_ptr + safe[:, None] * (K // 32) + (first // 32 + tl.arange(0, 2))[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for _ in range(first, last, 128):
        packed = tl.load(w_at)
        acc = tl.dot(expand_int4(packed, tl.load(m_at), 0, BLOCK_N), tl.load(q_at), acc, out_dtype=tl.int32)
        acc = tl.dot(expand_int4(packed, tl.load(m_at + 2), 4, BLOCK_N), tl.load(q_at + 64), acc, out_dtype=tl.int32)
        q_at += 128
        w_at += 64
        m_at += 4
    if SPLIT_K > 1:
        finish_part(
            tl.trans(acc), SPLIT_K, tile_n * tiles_m + tile_m, rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy,
            sums_ptr, arrivals_ptr, ACTIVATION, RESIDUAL,
        )  # fmt: skip
    else:
        store_linear(
            tl.trans(acc), rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip


def pack_int4(q4: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i8 [N, K] in [-7, 7], u8 [N, ceil(K / 32)]) -> (u8 [N, K' / 2], u8 [N, K' / 32]), K' = K up to 128.

    Padding is weights of 0.
    """
    n, k = q4.shape
    padded = launch.round_up(k, PACK)
    nibbles = np.full((n, padded), 8, np.uint8)
    nibbles[:, :k] = (q4 + np.int8(8)).astype(np.uint8)
    low, high = nibbles.reshape(n, padded // PACK, 2, PACK // 2).transpose(2, 0, 1, 3)
    scales = np.ones((n, padded // 32), np.uint8)
    scales[:, : groups.shape[1]] = groups
    return (low | high << 4).reshape(n, padded // 2), scales


def gemm_int4(
    q: torch.Tensor,
    scale: torch.Tensor,
    w: torch.Tensor,
    groups: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    config: launch.Config | None = None,
) -> None:
    """q i8 [M, K], w and groups of `pack_int4` -> y [M, N] in place. Without a workspace K is not cut."""
    (m, k), n = q.shape, w.shape[0]
    if config is None:
        key = launch.key_of("gemm_int4", m=launch.size_bucket(m), n=n, k=k)
        config = launch.config(key, launch.gemm_int4_rule(m, n, k))
    tiles = launch.ceil_div(m, config["BLOCK_M"]) * launch.ceil_div(n, config["BLOCK_N"])
    sums = arrivals = scale
    if workspace is None:
        config = config.with_blocks(SPLIT_K=1)
    elif config["SPLIT_K"] > 1:
        arrivals, sums = workspace.zeros(tiles, m * n)
    rest = y if residual is None else residual
    gemm_int4_kernel[(tiles, config["SPLIT_K"])](
        q, scale, w, groups, w_scale, bias, rest, y, sums, arrivals,
        m, n, k, q.stride(0), rest.stride(0), y.stride(0),
        ACTIVATION_CODES[activation], residual is not None, enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
