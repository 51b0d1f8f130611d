"""What every integer GEMM ends with: scales, bias, activation, residual; and how parts of a sum become one.

    y[t, o] = act(s_t * s_o * sum[t, o] + bias[o]) (+ residual[t, o])

A product of few tokens is cut along its inputs so that it fills the device. Each part adds its int32 sums to `sums`
[M, N]; the one that arrives last finishes the tile and leaves zeros behind for the next launch. Sums of integers are
exact in any order, so y does not depend on how work was cut. All are compiled without contraction to FMA: that leaves
one rounding order, whichever kernel a product runs on.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import activate, narrow


@triton.jit
def store_linear(
    acc, rows, cols, M, N, scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What every integer GEMM ends with: int32 sums [rows, cols] -> y."""
    mask = (rows[:, None] < M) & (cols[None, :] < N)
    at = y_ptr + rows[:, None] * ldy + cols[None, :]
    if y_ptr.dtype.element_ty == tl.int32:
        tl.store(at, acc, mask=mask)
    else:
        s_t = tl.load(scale_ptr + rows, mask=rows < M, other=0.0)
        s_o = tl.load(w_scale_ptr + cols, mask=cols < N, other=0.0)
        bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0)
        y = activate(acc.to(tl.float32) * (s_t[:, None] * s_o[None, :]) + bias[None, :], ACTIVATION)
        if RESIDUAL:
            y += tl.load(residual_ptr + rows[:, None] * ldr + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(at, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_part(
    acc, parts, tile, rows, cols, M, N, scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy,
    sums_ptr, arrivals_ptr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Ends an item that has `parts` - 1 others beside it on output tile `tile`."""
    if parts == 1:
        store_linear(
            acc, rows, cols, M, N,
            scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
        )  # fmt: skip
    else:
        mask = (rows[:, None] < M) & (cols[None, :] < N)
        at = sums_ptr + rows[:, None] * N + cols[None, :]
        tl.atomic_add(at, acc, mask=mask, sem="relaxed")
        # All threads have added before one of them says so; its release covers what the barrier has ordered.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
        if arrived == parts - 1:
            # Past L1: other multiprocessors wrote these.
            total = tl.load(at, mask=mask, other=0, cache_modifier=".cg")
            tl.store(at, tl.zeros_like(total), mask=mask)
            tl.store(arrivals_ptr + tile, 0)
            store_linear(
                total, rows, cols, M, N,
                scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, ldr, y_ptr, ldy, ACTIVATION, RESIDUAL,
            )  # fmt: skip


class Workspace:
    """int32 zeros for sums of split rows and their arrivals; every launch leaves them zero.

    Buffers grow by doubling and are kept: a captured graph may hold the address of an older one. Launches that share a
    workspace must follow one another on one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[int, torch.Tensor] = {}

    def zeros(self, tiles: int, sums: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(arrivals, sums): at least so many zeros."""
        # Sums start at a multiple of 16 bytes.
        first = launch.round_up(tiles, 4)
        size = max(1 << 16, launch.next_power_of_2(first + sums))
        if size not in self._buffers:
            self._buffers[size] = torch.zeros(size, dtype=torch.int32, device=self.device)
        buffer = self._buffers[size]
        return buffer, buffer[first:]
