"""The gate of a gated FFN, a rotation, and the quantiser of what comes out: one pass over the row.

    g[t, i] = act(x[t, i]) * x[t, F + i]        or without a gate: act(x[t, i])
    h = g, or every block of HADAMARD elements of g times a Hadamard matrix over its root (Sylvester's construction)
    q, s_t = quantised h (kernels/quantize_rows.py)

x of any float type [M, 2F]: gate and up side by side, as their stacked product leaves them; without a gate [M, F].
Writes, each if asked for, h [M, F] and q i8 [M, ldq] with zeros from F on, s_t f32 [M]. All in f32. The rotation
spreads outliers before they are quantised; F is a multiple of HADAMARD, which is 16, 32, 64 or 128.
"""

import math

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.layer_norm import store_quantized
from approxrt.kernels.numerics import ACTIVATION_CODES, activate, narrow


@triton.jit
def gate_values(at, F, mask, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    """g at the addresses `at` of x, f32, zero outside of `mask`."""
    g = activate(tl.load(at, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    if GATE:
        g *= tl.load(at + F, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, g, 0.0)


@triton.jit
def hadamard_rows(first, ROWS: tl.constexpr, HADAMARD: tl.constexpr):
    """ROWS rows from `first` on of Sylvester's matrix, f32: at (i, j) -1 to the number of bits that i and j share."""
    shared = (first + tl.arange(0, ROWS))[:, None] & tl.arange(0, HADAMARD)[None, :]
    shared = shared ^ (shared >> 4)
    shared = shared ^ (shared >> 2)
    shared = shared ^ (shared >> 1)
    return (1 - 2 * (shared & 1)).to(tl.float32)


@triton.jit
def gated_kernel(
    x_ptr, h_ptr, q_ptr, scale_ptr, M, F, ldx, ldh, ldq, root,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, HADAMARD: tl.constexpr,
    WRITE_H: tl.constexpr, WRITE_Q: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    rows = (first + tl.arange(0, ROWS))[:, None]
    cols = tl.arange(0, BLOCK)
    inside = (rows < M) & (cols[None, :] < F)
    if HADAMARD > 0:
        # Blocks of a row one below the other, times the matrix, 16 of its rows at a time: operands stay in registers.
        each: tl.constexpr = BLOCK // HADAMARD
        index = tl.arange(0, ROWS * each)[:, None]
        block_row, block_col = first + index // each, index % each * HADAMARD
        # Blocks do not straddle F, so that what is behind it stays zero.
        mask = (block_row < M) & (block_col < F)
        at = x_ptr + block_row * ldx + block_col + tl.arange(0, 16)[None, :]
        acc = tl.zeros((ROWS * each, HADAMARD), tl.float32)
        for k in range(0, HADAMARD, 16):
            g = gate_values(at + k, F, mask & (block_col + k < F), ACTIVATION, GATE)
            acc = tl.dot(g, hadamard_rows(k, 16, HADAMARD), acc, input_precision="ieee")
        h = acc.reshape(ROWS, BLOCK) * root
    else:
        h = gate_values(x_ptr + rows * ldx + cols[None, :], F, inside, ACTIVATION, GATE)
    if WRITE_H:
        tl.store(h_ptr + rows * ldh + cols[None, :], narrow(h, h_ptr.dtype.element_ty), mask=inside)
    if WRITE_Q:
        store_quantized(h, rows, cols, M, q_ptr, ldq, scale_ptr)


def gated(
    x: torch.Tensor,
    activation: str,
    h: torch.Tensor | None = None,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    gate: bool = True,
    hadamard: int = 0,
) -> None:
    """Writes into `h` and `quantized` = (q, scale), those that are given. `hadamard`: a block's size, or 0."""
    m, f = x.shape[0], x.shape[1] // 2 if gate else x.shape[1]
    if hadamard and (hadamard not in (16, 32, 64, 128) or f % hadamard):
        raise ValueError(f"hadamard is {hadamard}; it must be 16, 32, 64 or 128 and divide {f}")
    q, scale = quantized if quantized is not None else (x, x)
    out = x if h is None else h
    config = launch.gated_rule(max(f, q.shape[1]) if quantized is not None else f, hadamard)
    gated_kernel[(launch.ceil_div(m, config["ROWS"]),)](
        x, out, q, scale, m, f, x.stride(0), out.stride(0), q.stride(0), 1 / math.sqrt(max(1, hadamard)),
        ACTIVATION_CODES[activation], gate, hadamard,
        h is not None, quantized is not None, enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
