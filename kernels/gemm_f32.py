"""float32 GEMM for what an artifact leaves unquantised: the task head, or a whole model of kind f32.

    y[t, o] = act(sum_i x[t, i] * w[o, i] + bias[o]) (+ residual[t, o])

x of any float type [M, K], w f32 [N, K], bias f32 [N]; any strides between rows, K arbitrary; y of any float type.
Products are float32 ("ieee"), not tf32: a head's answers must not lose ten bits, and it runs once a text. BLOCK_K is
fixed, so that a row's sum is added in one order in every batch.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import ACTIVATION_CODES, activate, narrow


@triton.jit
def gemm_f32_kernel(
    x_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, M, N, K, ldx, ldw, ldr, ldy,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        in_k = k + ks < K
        x = tl.load(
            x_ptr + rows[:, None] * ldx + (k + ks)[None, :], mask=(rows[:, None] < M) & in_k[None, :], other=0.0
        )
        w = tl.load(
            w_ptr + cols[None, :] * ldw + (k + ks)[:, None], mask=(cols[None, :] < N) & in_k[:, None], other=0.0
        )
        acc = tl.dot(x.to(tl.float32), w, acc, input_precision="ieee")
    mask = (rows[:, None] < M) & (cols[None, :] < N)
    y = activate(acc + tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :], ACTIVATION)
    if RESIDUAL:
        y += tl.load(residual_ptr + rows[:, None] * ldr + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows[:, None] * ldy + cols[None, :], narrow(y, y_ptr.dtype.element_ty), mask=mask)


def gemm_f32(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
) -> None:
    """x [M, K], w f32 [N, K] -> y [M, N] in place."""
    (m, k), n = x.shape, w.shape[0]
    config = launch.gemm_f32_rule(m)
    rest = y if residual is None else residual
    gemm_f32_kernel[(launch.ceil_div(m, config["BLOCK_M"]), launch.ceil_div(n, config["BLOCK_N"]))](
        x, w, bias, rest, y, m, n, k, x.stride(0), w.stride(0), rest.stride(0), y.stride(0),
        ACTIVATION_CODES[activation], residual is not None, **config.kwargs(),
    )  # fmt: skip
