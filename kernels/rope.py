"""Rotary positions, and new keys and values into the cache, in one pass over the projections.

Of each token's row of qkv [M, (heads + 2 kv_heads) * d]: halves (i, i + d/2) of queries and keys turn by the angle of
the token's position (Su et al. 2021, arXiv 2104.09864),

    (a, b) -> (a cos - b sin, b cos + a sin)

queries stay where they are, keys and values go to row `slots[t]` of the cache [rows, 2 * kv_heads * d], keys first.
Angles come as tables cos, sin f32 [positions, d/2], which the host computes exactly; without tables (learned positions)
nothing turns. qkv and cache f16 or bf16, products in f32; positions, slots i32 [M].
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import narrow


@triton.jit
def rope_kernel(
    qkv_ptr, cache_ptr, positions_ptr, slots_ptr, cos_ptr, sin_ptr, ldq, ldc,
    ROPE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    heads = tl.arange(0, BLOCK_H)[:, None]
    dims = tl.arange(0, BLOCK_D)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    mask = (heads < HEADS + 2 * KV_HEADS) & (dims < half)
    at = qkv_ptr + token * ldq + heads * HEAD_DIM + dims
    a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=mask, other=0.0).to(tl.float32)
    if ROPE:
        angle = tl.load(positions_ptr + token) * half + dims
        cos = tl.load(cos_ptr + angle, mask=dims < half, other=1.0)
        sin = tl.load(sin_ptr + angle, mask=dims < half, other=0.0)
        turns = heads < HEADS + KV_HEADS
        a, b = tl.where(turns, a * cos - b * sin, a), tl.where(turns, b * cos + a * sin, b)
        queries = mask & (heads < HEADS)
        tl.store(at, narrow(a, qkv_ptr.dtype.element_ty), mask=queries)
        tl.store(at + half, narrow(b, qkv_ptr.dtype.element_ty), mask=queries)
    stored = mask & (heads >= HEADS)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    to = cache_ptr + slot * ldc + (heads - HEADS) * HEAD_DIM + dims
    tl.store(to, narrow(a, cache_ptr.dtype.element_ty), mask=stored)
    tl.store(to + half, narrow(b, cache_ptr.dtype.element_ty), mask=stored)


def rope(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Turns queries in place and writes keys and values to `cache`. `tables`: (cos, sin) or None. An even head_dim."""
    cos, sin = (qkv, qkv) if tables is None else tables
    rope_kernel[(qkv.shape[0],)](
        qkv, cache, positions, slots, cos, sin, qkv.stride(0), cache.stride(0), tables is not None,
        heads, kv_heads, head_dim, launch.next_power_of_2(heads + 2 * kv_heads), launch.next_power_of_2(head_dim // 2),
        num_warps=4, num_stages=1,
    )  # fmt: skip
