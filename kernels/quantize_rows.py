"""Dynamic quantisation of activations, a scale a token.

    m = max|x_t|, s_t = m / 127, q[t, i] = round_half_even(x[t, i] * (127 / m)) in [-127, 127]

x f16/bf16/f32 [M, K] with any row stride; q i8 [M, ldq], ldq >= K, whose columns from K on become 0 (the GEMMs read
whole K-blocks); scale f32 [M]. A row below 1e-30 gives zeros and a scale of 0.

A program holds ROWS whole rows in registers, so that x is read once. Compiled without contraction to FMA: rounding
then is that of the CPU engine bit for bit.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import quantization_scale, quantize


@triton.jit
def quantize_rows_kernel(x_ptr, q_ptr, scale_ptr, M, K, ldx, ldq, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = rows[:, None] < M
    x = tl.load(x_ptr + rows[:, None] * ldx + cols[None, :], mask=inside & (cols[None, :] < K), other=0.0).to(
        tl.float32
    )
    peak = tl.max(tl.abs(x), axis=1)
    tl.store(scale_ptr + rows, quantization_scale(peak), mask=rows < M)
    tl.store(
        q_ptr + rows[:, None] * ldq + cols[None, :], quantize(x, peak[:, None]), mask=inside & (cols[None, :] < ldq)
    )


def quantize_rows(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """x [M, K] -> q i8 [M, ldq], scale f32 [M], in place."""
    m, k = x.shape
    config = launch.row_rule(q.shape[1])
    grid = (launch.ceil_div(m, config["ROWS"]),)
    quantize_rows_kernel[grid](
        x, q, scale, m, k, x.stride(0), q.stride(0), enable_fp_fusion=False, **config.kwargs()
    )  # fmt: skip
