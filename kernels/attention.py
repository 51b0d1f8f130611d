"""Exact attention over packed sequences of unequal length; encoder, or causal over a KV cache.

    out_i = sum_j softmax_j(scale * q_i . k_j) v_j     over the keys of i's own sequence; if causal, j <= i's position

Rows are tokens, heads lie side by side: q [rows, heads * head_dim], k and v [rows, kv_heads * head_dim], each with its
row stride (slices of one fused projection will do); heads are a multiple of kv_heads, consecutive ones share one.
Types f16 or bf16, products on tensor cores with f32 sums; out of any float type.

Work comes as a table of query tiles (`approxrt.runtime.cuda.plan.attention_tiles`), i32 [tiles, 5]:

    first query row, queries (at most BLOCK_M; 0: nothing to do), first key row, keys, position of the first query

Queries without keys get zeros.

Nothing is padded: a tile's cost is that of its own sequence. Keys are taken by KEYS = 64 from the sequence's start
whatever BLOCK_M is, so that a token's sums are added in one order in every batch.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.numerics import narrow

KEYS = 64
TILE_FIELDS = 5


@triton.jit
def attend(q, k, v, valid, best, total, out, scale_log2):
    """One block of keys k [d, keys], v [keys, d] taken into a running softmax: (best, total, out) afterwards.

    Every query must have a valid key in the first block that it sees, so that `best` is finite from then on.
    """
    scores = tl.where(valid, tl.dot(q, k) * scale_log2, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1))
    p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(best - higher)
    total = total * shrink + tl.sum(p, axis=1)
    out = tl.dot(p.to(v.dtype), v, out * shrink[:, None])
    return higher, total, out


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tiles_ptr, ldq, ldk, ldv, ldo, scale_log2,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tile = tiles_ptr + tl.program_id(0) * 5
    head = tl.program_id(1)
    query_row, queries = tl.load(tile), tl.load(tile + 1)
    key_row, keys, position = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    if queries == 0:
        return
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    js = tl.arange(0, KEYS)
    column = head // GROUP * HEAD_DIM
    q_mask = (rows[:, None] < queries) & (dims[None, :] < HEAD_DIM)
    q_at = q_ptr + (query_row + rows)[:, None] * ldq + head * HEAD_DIM + dims[None, :]
    q = tl.load(q_at, mask=q_mask, other=0.0)
    k_at = k_ptr + (key_row + js)[None, :] * ldk + column + dims[:, None]
    v_at = v_ptr + (key_row + js)[:, None] * ldv + column + dims[None, :]

    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, position + queries)
    for start in range(0, end, KEYS):
        left = end - start
        k = tl.load(k_at, mask=(js[None, :] < left) & (dims[:, None] < HEAD_DIM), other=0.0)
        v = tl.load(v_at, mask=(js[:, None] < left) & (dims[None, :] < HEAD_DIM), other=0.0)
        valid = js[None, :] < left
        if CAUSAL:
            valid = valid & (start + js[None, :] <= (position + rows)[:, None])
        best, total, out = attend(q, k, v, valid, best, total, out, scale_log2)
        k_at += KEYS * ldk
        v_at += KEYS * ldv
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    out_at = out_ptr + (query_row + rows)[:, None] * ldo + head * HEAD_DIM + dims[None, :]
    tl.store(out_at, narrow(out, out_ptr.dtype.element_ty), mask=q_mask)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    tiles: torch.Tensor,
    block_m: int,
    head_dim: int,
    scale: float,
    causal: bool = False,
) -> None:
    """Attention of the query tiles in `tiles` i32 [tiles, 5], cut by `block_m`; writes their rows of `out`."""
    heads, kv_heads = q.shape[1] // head_dim, k.shape[1] // head_dim
    attention_kernel[(tiles.shape[0], heads)](
        q, k, v, out, tiles, q.stride(0), k.stride(0), v.stride(0), out.stride(0), scale * 1.4426950408889634,
        heads // kv_heads, head_dim, causal,
        block_m, max(16, launch.next_power_of_2(head_dim)), KEYS, num_warps=max(1, block_m // 16), num_stages=3,
    )  # fmt: skip
