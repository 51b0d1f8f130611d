"""Add, normalise, quantise for the next linear: one pass over the row.

    z = x (+ residual)
    LayerNorm: h = (z - mean z) / sqrt(var z + eps) * gamma + beta        RMSNorm: h = z / sqrt(mean z^2 + eps) * gamma
    q, s_t = quantised h (kernels/quantize_rows.py)

x and residual [M, K] of any float type (a residual with row stride 0 repeats one row: what is left of a removed
block); gamma, beta f32 [K]. Writes, each if asked for: z (the stream of a pre-norm model), h, and q i8 [M, ldq] with
zeros from K on and s_t f32 [M]. h is quantised as f32, before it is rounded to its stored type.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import narrow, quantization_scale, quantize


@triton.jit
def normalize(z, inside, gamma, beta, K, eps, RMS: tl.constexpr):
    """f32 z [rows, BLOCK], zero outside -> h, zero outside."""
    if RMS:
        h = z * (1.0 / tl.sqrt_rn(tl.sum(z * z, axis=1) / K + eps))[:, None] * gamma[None, :]
    else:
        centred = tl.where(inside, z - (tl.sum(z, axis=1) / K)[:, None], 0.0)
        deviation = tl.sqrt_rn(tl.sum(centred * centred, axis=1) / K + eps)
        h = tl.where(inside, centred * (1.0 / deviation)[:, None] * gamma[None, :] + beta[None, :], 0.0)
    return h


@triton.jit
def layer_norm_kernel(
    x_ptr, residual_ptr, gamma_ptr, beta_ptr, z_ptr, h_ptr, q_ptr, scale_ptr,
    M, K, ldx, ldr, ldz, ldh, ldq, eps,
    RMS: tl.constexpr, RESIDUAL: tl.constexpr, WRITE_Z: tl.constexpr, WRITE_H: tl.constexpr, WRITE_Q: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    cols = tl.arange(0, BLOCK)
    inside = (rows < M) & (cols[None, :] < K)
    z = tl.load(x_ptr + rows * ldx + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        z += tl.load(residual_ptr + rows * ldr + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if WRITE_Z:
        tl.store(z_ptr + rows * ldz + cols[None, :], narrow(z, z_ptr.dtype.element_ty), mask=inside)
    gamma = tl.load(gamma_ptr + cols, mask=cols < K, other=0.0)
    beta = gamma
    if not RMS:
        beta = tl.load(beta_ptr + cols, mask=cols < K, other=0.0)
    h = normalize(z, inside, gamma, beta, K, eps, RMS)
    if WRITE_H:
        tl.store(h_ptr + rows * ldh + cols[None, :], narrow(h, h_ptr.dtype.element_ty), mask=inside)
    if WRITE_Q:
        store_quantized(h, rows, cols, M, q_ptr, ldq, scale_ptr)


@triton.jit
def store_quantized(h, rows, cols, M, q_ptr, ldq, scale_ptr):
    """f32 h, zero outside, with rows [R, 1] and cols [BLOCK] -> q i8 and its scales."""
    peak = tl.max(tl.abs(h), axis=1, keep_dims=True)
    tl.store(scale_ptr + rows, quantization_scale(peak), mask=rows < M)
    tl.store(q_ptr + rows * ldq + cols[None, :], quantize(h, peak), mask=(rows < M) & (cols[None, :] < ldq))


def layer_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    h: torch.Tensor | None = None,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Writes into `z`, `h` and `quantized` = (q, scale), those that are given. No beta: RMSNorm."""
    m, k = x.shape
    q, scale = quantized if quantized is not None else (x, x)
    config = launch.row_rule(max(k, q.shape[1]) if quantized is not None else k)
    grid = (launch.ceil_div(m, config["ROWS"]),)
    first = x if residual is None else residual
    z_out, h_out = x if z is None else z, x if h is None else h
    layer_norm_kernel[grid](
        x, first, gamma, gamma if beta is None else beta, z_out, h_out, q, scale,
        m, k, x.stride(0), first.stride(0), z_out.stride(0), h_out.stride(0), q.stride(0), eps,
        beta is None, residual is not None, z is not None, h is not None, quantized is not None,
        enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
