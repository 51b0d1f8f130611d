"""The gate of a gated FFN, and the quantiser of what comes out: one pass over the row.

    h[t, i] = act(x[t, i]) * x[t, F + i];  q, s_t = quantised h (kernels/quantize_rows.py)

x of any float type [M, 2F]: gate and up side by side, as their stacked product leaves them. Writes, each if asked for,
h [M, F] and q i8 [M, ldq] with zeros from F on, s_t f32 [M]. h is quantised as f32.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.layer_norm import store_quantized
from approxrt.kernels.numerics import ACTIVATION_CODES, activate, narrow


@triton.jit
def gated_kernel(
    x_ptr, h_ptr, q_ptr, scale_ptr, M, F, ldx, ldh, ldq,
    ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_Q: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    cols = tl.arange(0, BLOCK)
    inside = (rows < M) & (cols[None, :] < F)
    at = x_ptr + rows * ldx + cols[None, :]
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    h = activate(gate, ACTIVATION) * tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
    if WRITE_H:
        tl.store(h_ptr + rows * ldh + cols[None, :], narrow(h, h_ptr.dtype.element_ty), mask=inside)
    if WRITE_Q:
        store_quantized(h, rows, cols, M, q_ptr, ldq, scale_ptr)


def gated(
    x: torch.Tensor,
    activation: str,
    h: torch.Tensor | None = None,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Writes into `h` and `quantized` = (q, scale), those that are given."""
    m, f = x.shape[0], x.shape[1] // 2
    q, scale = quantized if quantized is not None else (x, x)
    out = x if h is None else h
    config = launch.row_rule(max(f, q.shape[1]) if quantized is not None else f)
    gated_kernel[(launch.ceil_div(m, config["ROWS"]),)](
        x, out, q, scale, m, f, x.stride(0), out.stride(0), q.stride(0),
        ACTIVATION_CODES[activation], h is not None, quantized is not None, enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
