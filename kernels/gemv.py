"""A few tokens times int8 or int4 weights, for decoding: bound by reading the weights, so by loads and not by mmas.

    y[t, o] = act(s_t * s_o * sum_i q[t, i] * w[o, i] + bias[o]) (+ residual[t, o])

int8 w [N, ldw] with K inputs a row; int4 w and groups as `kernels.gemm_int4.pack_int4` makes them. q i8 [M, ldq];
residual and y of any float type. Sums are int32, exact, those of the GEMMs.

A program takes BLOCK_N outputs and all their inputs in steps of BLOCK_K, each thread 16 consecutive bytes of a row;
tokens are the grid's second axis: the second token finds the weights in L2. From about four tokens on the GEMMs are
faster, which read the weights once.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import ACTIVATION_CODES, activate, narrow


@triton.jit
def gemv_kernel(
    q_ptr, scale_ptr, w_ptr, groups_ptr, w_scale_ptr, bias_ptr, residual_ptr, y_ptr, N, K, ldq, ldw, ldr, ldy,
    INT4: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1)
    safe = tl.minimum(cols, N - 1)[:, None]
    ks = tl.arange(0, BLOCK_K)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    if INT4:
        # Byte b of a row is of pack b / 64: inputs 128 * pack + b % 64 and that + 64; their groups lie two apart.
        for start in range(0, K // 2, BLOCK_K):
            b = start + ks
            inside = b < K // 2
            packed = tl.load(w_ptr + safe * (K // 2) + b, mask=inside, other=0x88).to(tl.int32)
            pack, j = b // 64, b % 64
            q_at = q_ptr + token * ldq + pack * 128 + j
            m_at = groups_ptr + safe * (K // 32) + pack * 4 + j // 32
            low = tl.load(q_at, mask=inside, other=0).to(tl.int32)
            high = tl.load(q_at + 64, mask=inside, other=0).to(tl.int32)
            m_low = tl.load(m_at, mask=inside, other=0).to(tl.int32)
            m_high = tl.load(m_at + 2, mask=inside, other=0).to(tl.int32)
            acc += ((packed & 15) - 8) * m_low * low + ((packed >> 4) - 8) * m_high * high
    else:
        for start in range(0, K, BLOCK_K):
            k = start + ks
            w = tl.load(w_ptr + safe * ldw + k, mask=k < K, other=0)
            acc += w.to(tl.int32) * tl.load(q_ptr + token * ldq + k, mask=k < K, other=0).to(tl.int32)
    total = tl.sum(acc, axis=1)
    mask = cols < N
    if y_ptr.dtype.element_ty == tl.int32:
        tl.store(y_ptr + token * ldy + cols, total, mask=mask)
    else:
        s_o = tl.load(w_scale_ptr + cols, mask=mask, other=0.0)
        bias = tl.load(bias_ptr + cols, mask=mask, other=0.0)
        y = activate(total.to(tl.float32) * (tl.load(scale_ptr + token) * s_o) + bias, ACTIVATION)
        if RESIDUAL:
            y += tl.load(residual_ptr + token * ldr + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + token * ldy + cols, narrow(y, y_ptr.dtype.element_ty), mask=mask)


def gemv(
    q: torch.Tensor,
    scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    config: launch.Config | None = None,
) -> None:
    """q i8 [M, K] -> y [M, N] in place; with `groups`, w is int4."""
    (m, k), n = q.shape, w.shape[0]
    if config is None:
        key = launch.key_of("gemv", n=n, k=k, bits=8 if groups is None else 4)
        config = launch.config(key, launch.gemv_rule(n, w.shape[1]))
    rest = y if residual is None else residual
    gemv_kernel[(launch.ceil_div(n, config["BLOCK_N"]), m)](
        q, scale, w, w if groups is None else groups, w_scale, bias, rest, y,
        n, k, q.stride(0), w.stride(0), rest.stride(0), y.stride(0),
        groups is not None, ACTIVATION_CODES[activation], residual is not None,
        enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
