"""One vector a sequence of packed hidden states: its first token's, or the mean over its tokens.

x of any float type [T, H], cu_seqlens i32 [S + 1]; out f32 [S, H]. A sequence of no tokens gets zeros. Tokens are
added one by one in order, in f32: the sum is that of the sequence alone.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch

_BLOCK = 128


@triton.jit
def pooling_kernel(x_ptr, cu_seqlens_ptr, out_ptr, H, ldx, ldo, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    sequence = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(cu_seqlens_ptr + sequence), tl.load(cu_seqlens_ptr + sequence + 1)
    last = end
    if not MEAN:
        last = tl.minimum(begin + 1, end)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(begin, last):
        total += tl.load(x_ptr + row * ldx + cols, mask=cols < H, other=0.0).to(tl.float32)
    tl.store(out_ptr + sequence * ldo + cols, total / tl.maximum(last - begin, 1), mask=cols < H)


def pooling(x: torch.Tensor, cu_seqlens: torch.Tensor, out: torch.Tensor, mean: bool) -> None:
    """out [S, H] in place."""
    grid = (cu_seqlens.shape[0] - 1, launch.ceil_div(x.shape[1], _BLOCK))
    pooling_kernel[grid](
        x, cu_seqlens, out, x.shape[1], x.stride(0), out.stride(0), mean, _BLOCK, num_warps=4, num_stages=1
    )  # fmt: skip
