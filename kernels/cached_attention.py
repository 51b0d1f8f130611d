"""Attention of one new token a sequence over its KV cache, cut along the keys to fill the device.

    out = sum_j softmax_j(scale * q . k_j) v_j         over the sequence's `keys` rows of the cache

q [rows, heads * d]; cache [rows, 2 * kv_heads * d], keys first, then values; f16 or bf16; out of any float type.
Work is a table i32 [sequences, 3]: query row, first cache row, keys (0: nothing is there, out is 0).

One program takes PART keys of a sequence for the query heads that share a key head (its rows of an mma), and leaves its
weighted values, largest score and sum of weights; a second kernel brings the parts of a head together, in order. Parts
lie at fixed places from a sequence's start, so that its sums do not depend on the others of a step.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.attention import attend
from approxrt.kernels.numerics import narrow

PART = 256
TABLE_FIELDS = 3


@triton.jit
def cached_attention_kernel(
    q_ptr, cache_ptr, table_ptr, parts_ptr, stats_ptr, ldq, ldc, scale_log2,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    query_row = tl.load(table_ptr + sequence * 3)
    key_row, keys = tl.load(table_ptr + sequence * 3 + 1).to(tl.int64), tl.load(table_ptr + sequence * 3 + 2)
    members = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    js = tl.arange(0, 64)
    mask = (members[:, None] < group) & (dims[None, :] < HEAD_DIM)
    head = kv_head * group + members
    q = tl.load(q_ptr + query_row * ldq + head[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    k_at = cache_ptr + (key_row + js)[None, :] * ldc + kv_head * HEAD_DIM + dims[:, None]
    v_at = cache_ptr + (key_row + js)[:, None] * ldc + (KV_HEADS + kv_head) * HEAD_DIM + dims[None, :]
    best = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    out = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for start in range(part * PART, tl.minimum(keys, part * PART + PART), 64):
        left = keys - start
        k = tl.load(k_at + start * ldc, mask=(js[None, :] < left) & (dims[:, None] < HEAD_DIM), other=0.0)
        v = tl.load(v_at + start * ldc, mask=(js[:, None] < left) & (dims[None, :] < HEAD_DIM), other=0.0)
        best, total, out = attend(q, k, v, js[None, :] < left, best, total, out, scale_log2)
    place = (sequence * HEADS + head) * PARTS + part
    tl.store(parts_ptr + place[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)
    tl.store(stats_ptr + place * 2, best, mask=members < group)
    tl.store(stats_ptr + place * 2 + 1, total, mask=members < group)


@triton.jit
def combine_kernel(
    parts_ptr, stats_ptr, table_ptr, out_ptr, ldo,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    place = (sequence * HEADS + head) * PARTS
    # A part without keys has -inf here and weighs nothing; of no keys at all nothing remains.
    best = tl.max(tl.load(stats_ptr + (place + tl.arange(0, PARTS)) * 2), axis=0)
    best = tl.maximum(best, -1e30)
    total = 0.0
    out = tl.zeros((BLOCK_D,), tl.float32)
    # One after the other: the order of the sum must not depend on how many parts there is room for.
    for part in range(PARTS):
        weight = tl.exp2(tl.load(stats_ptr + (place + part) * 2) - best)
        total += weight * tl.load(stats_ptr + (place + part) * 2 + 1)
        out += weight * tl.load(parts_ptr + (place + part) * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
    out = out / tl.where(total > 0.0, total, 1.0)
    at = out_ptr + tl.load(table_ptr + sequence * 3) * ldo + head * HEAD_DIM + dims
    tl.store(at, narrow(out, out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


def cached_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    out: torch.Tensor,
    table: torch.Tensor,
    parts: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> None:
    """One query row a row of `table` -> its row of `out`. `parts`: a power of two, at least keys / 256 of any."""
    sequences, block_d = table.shape[0], max(16, launch.next_power_of_2(head_dim))
    partial = torch.empty(sequences, heads, parts, head_dim, device=q.device)
    stats = torch.empty(sequences, heads, parts, 2, device=q.device)
    cached_attention_kernel[(sequences, kv_heads, parts)](
        q, cache, table, partial, stats, q.stride(0), cache.stride(0), scale * 1.4426950408889634,
        heads, kv_heads, head_dim, max(16, launch.next_power_of_2(heads // kv_heads)), block_d, parts, PART,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    combine_kernel[(sequences, heads)](
        partial, stats, table, out, out.stride(0), heads, head_dim, block_d, parts, num_warps=1, num_stages=1
    )  # fmt: skip
