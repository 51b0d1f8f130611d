"""Sign-matching attention over tiles of 64 keys: a query tile attends only to the key tiles that match its signs best.

Nagarajan et al. 2020 (arXiv 2010.03688), whose single keys are tiles here, since tensor cores take no fewer. The
definition is `approxrt.runtime.reference.encoder.kept_keys_by_tiles`:

    b_g      = sum over the keys j of group g (8 neighbours) of sign(k_j)            int8, element by element
    score    = sum over the tile's queries i of max over the key tile's groups g of sign(q_i) . b_g      int32
    kept     = the `keep` best key tiles by score, the query tile's own, the first, those with an `always` token, and if
               causal the one before the own; all where a sequence has no more than `keep` tiles or under `dense_below`
               tokens
    out_i    = softmax(scale * q_i . k_j) v_j over the keys of kept tiles, exactly

and with `rest` the keys left out stand as so many keys like the mean of all. Layouts as in kernels/attention.py, with
query tiles of 64 whatever the head. Choosing costs an eighth of one int8 product of queries and keys.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.attention import attend
from approxrt.kernels.numerics import narrow

TILE = 64
GROUPS = 8  # of a tile
_LOWEST = tl.constexpr(-(2**30))


@triton.jit
def signs(x):
    """1 or -1 by the sign bit, int8, of float16 or bfloat16 x."""
    return tl.where(x.to(tl.int16, bitcast=True) < 0, -1, 1).to(tl.int8)


@triton.jit
def summarize_kernel(
    k_ptr, ids_ptr, always_ptr, tiles_ptr, sums_ptr, forced_ptr, ldk, ALWAYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Of each key tile and head: b of its 8 groups -> sums i8 [tiles, heads, 8, BLOCK_D]; whether it must be kept."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    keys = tl.load(tiles_ptr + tile * 5 + 1)
    row = tl.load(tiles_ptr + tile * 5)
    js = tl.arange(0, 64)
    dims = tl.arange(0, BLOCK_D)
    mask = (js[:, None] < keys) & (dims[None, :] < HEAD_DIM)
    k = tl.load(k_ptr + (row + js)[:, None] * ldk + head * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    b = tl.where(mask, signs(k).to(tl.int32), 0)
    sums = tl.sum(b.reshape(8, 8, BLOCK_D), axis=1)
    groups = tl.arange(0, 8)
    at = sums_ptr + ((tile * HEADS + head) * 8 + groups)[:, None] * BLOCK_D + dims[None, :]
    tl.store(at, sums.to(tl.int8))
    if head == 0:
        ids = tl.load(ids_ptr + row + js, mask=js < keys, other=-1)
        # A sequence's first token is always kept.
        hits = (js < keys) & (tl.load(tiles_ptr + tile * 5 + 4) + js == 0)
        for i in tl.static_range(ALWAYS):
            hits = hits | (ids == tl.load(always_ptr + i))
        tl.store(forced_ptr + tile, tl.max(hits.to(tl.int32), axis=0))


@triton.jit
def select_kernel(
    q_ptr, tiles_ptr, sums_ptr, forced_ptr, scores_ptr, lists_ptr, counts_ptr, ldq, keep, dense_below,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CAUSAL: tl.constexpr, MAX_TILES: tl.constexpr,
):  # fmt: skip
    """Scores of all key tiles for one query tile and head, then the ascending list of those kept."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    place = tile * HEADS + head
    queries, row = tl.load(tiles_ptr + tile * 5 + 1), tl.load(tiles_ptr + tile * 5)
    keys, position = tl.load(tiles_ptr + tile * 5 + 3), tl.load(tiles_ptr + tile * 5 + 4)
    own = position // 64
    first = tile - own  # of this sequence's tiles in the table
    count = tl.cdiv(keys, 64)
    if CAUSAL:
        count = tl.minimum(count, own + 1)
    if queries == 0:
        count = 0
    rows = tl.arange(0, 64)
    dims = tl.arange(0, BLOCK_D)
    js = tl.arange(0, MAX_TILES)
    all_kept = (count <= keep) | (keys < dense_below)
    if all_kept == 0:
        mask = (rows[:, None] < queries) & (dims[None, :] < HEAD_DIM)
        q = tl.load(q_ptr + (row + rows)[:, None] * ldq + head * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        # Elements behind the head's are zeros in the sums.
        a = signs(q)
        groups = tl.arange(0, 64)
        for start in range(0, count, 8):
            at = first + start + groups // 8
            inside = start + groups // 8 < count
            b_at = ((at * KV_HEADS + head // GROUP) * 8 + groups % 8)[None, :] * BLOCK_D + dims[:, None]
            b = tl.load(sums_ptr + b_at, mask=inside[None, :], other=0)
            # Groups of a sequence's last tile that hold no keys do not count.
            filled = inside & ((start * 8 + groups) * 8 < keys)
            m = tl.where(filled[None, :], tl.dot(a, b, out_dtype=tl.int32), _LOWEST)
            best = tl.max(m.reshape(64, 8, 8), axis=2)
            votes = tl.sum(tl.where((rows < queries)[:, None], best, 0), axis=0)
            each = tl.arange(0, 8)
            tl.store(scores_ptr + place * MAX_TILES + start + each, votes, mask=start + each < count)
        tl.debug_barrier()
    valid = js < count
    forced = (js == own) | (tl.load(forced_ptr + first + js, mask=valid, other=0) != 0)
    if CAUSAL:
        forced = forced | (js == own - 1)
    score = tl.load(scores_ptr + place * MAX_TILES + js, mask=valid & (all_kept == 0), other=0)
    # No two keys are equal: among equal scores the first tile comes first, if causal the last.
    order = js if CAUSAL else MAX_TILES - 1 - js
    free = valid & (forced == 0)
    key = tl.where(free, score.to(tl.int64) * MAX_TILES + order, -(2**62))
    rank = tl.zeros((MAX_TILES,), tl.int32)
    for start in range(0, count, 8):
        # Eight others at a time, read back from where they are: registers hold one row of keys only.
        other = start + tl.arange(0, 8)
        real = other < count
        held = (other == own) | (tl.load(forced_ptr + first + other, mask=real, other=0) != 0)
        if CAUSAL:
            held = held | (other == own - 1)
        rival = tl.load(scores_ptr + place * MAX_TILES + other, mask=real & (all_kept == 0), other=0).to(tl.int64)
        rival = rival * MAX_TILES + (other if CAUSAL else MAX_TILES - 1 - other)
        rival = tl.where(real & (held == 0), rival, -(2**62))
        rank += tl.sum((rival[None, :] > key[:, None]).to(tl.int32), axis=1)
    kept = valid & (forced | (rank < keep) | all_kept)
    index = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(lists_ptr + place * MAX_TILES + index, js, mask=kept)
    tl.store(counts_ptr + place, tl.sum(kept.to(tl.int32), axis=0))


@triton.jit
def sign_attention_kernel(
    q_ptr, k_ptr, v_ptr, means_ptr, out_ptr, tiles_ptr, sequences_ptr, lists_ptr, counts_ptr,
    ldq, ldk, ldv, ldm, ldo, scale_log2,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CAUSAL: tl.constexpr, REST: tl.constexpr, MAX_TILES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    head = tl.program_id(1)
    place = tile * HEADS + head
    queries, row = tl.load(tiles_ptr + tile * 5 + 1), tl.load(tiles_ptr + tile * 5)
    key_row, keys = tl.load(tiles_ptr + tile * 5 + 2), tl.load(tiles_ptr + tile * 5 + 3)
    position = tl.load(tiles_ptr + tile * 5 + 4)
    if queries == 0:
        return
    rows = tl.arange(0, 64)
    dims = tl.arange(0, BLOCK_D)
    column = head // GROUP * HEAD_DIM
    mask = (rows[:, None] < queries) & (dims[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + (row + rows)[:, None] * ldq + head * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    k_at = k_ptr + (key_row + rows)[None, :] * ldk + column + dims[:, None]
    v_at = v_ptr + (key_row + rows)[:, None] * ldv + column + dims[None, :]
    best = tl.full((64,), float("-inf"), tl.float32)
    total = tl.zeros((64,), tl.float32)
    out = tl.zeros((64, BLOCK_D), tl.float32)
    covered = 0
    for i in range(tl.load(counts_ptr + place)):
        start = tl.load(lists_ptr + place * MAX_TILES + i) * 64
        left = keys - start
        k = tl.load(k_at + start * ldk, mask=(rows[None, :] < left) & (dims[:, None] < HEAD_DIM), other=0.0)
        v = tl.load(v_at + start * ldv, mask=(rows[:, None] < left) & (dims[None, :] < HEAD_DIM), other=0.0)
        valid = rows[None, :] < left
        if CAUSAL:
            valid = valid & (start + rows[None, :] <= (position + rows)[:, None])
        best, total, out = attend(q, k, v, valid, best, total, out, scale_log2)
        covered += tl.minimum(left, 64)
    if REST:
        missing = keys - covered
        if missing > 0:
            at = means_ptr + tl.load(sequences_ptr + tile) * ldm + column + dims
            mean_k = tl.load(at, mask=dims < HEAD_DIM, other=0.0)
            mean_v = tl.load(at + KV_HEADS * HEAD_DIM, mask=dims < HEAD_DIM, other=0.0)
            score = tl.sum(q.to(tl.float32) * mean_k[None, :], axis=1) * scale_log2 + tl.log2(missing.to(tl.float32))
            higher = tl.maximum(best, score)
            shrink, p = tl.exp2(best - higher), tl.exp2(score - higher)
            total = total * shrink + p
            out = out * shrink[:, None] + p[:, None] * mean_v[None, :]
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    at = out_ptr + (row + rows)[:, None] * ldo + head * HEAD_DIM + dims[None, :]
    tl.store(at, narrow(out, out_ptr.dtype.element_ty), mask=mask)


def sign_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    tiles: torch.Tensor,
    ids: torch.Tensor,
    head_dim: int,
    scale: float,
    keep: int,
    max_tiles: int,
    *,
    dense_below: int = 0,
    always: torch.Tensor | None = None,
    causal: bool = False,
    rest: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of the 64-query tiles in `tiles`, of which a sequence has at most `max_tiles` (a power of two).

    tiles, ids   i32 [tiles, 5] as `attention_tiles(lengths, 64)` makes them; i32 [rows] token ids
    keep         key tiles a query tile keeps beside the forced ones
    always       i32 [n]: tokens whose tiles are never dropped
    rest         (mean keys and values f32 [sequences, 2 * kv_heads * head_dim], sequence of each tile i32 [tiles])

    Returns counts i32 [tiles, heads]: how many key tiles were kept.
    """
    if causal and rest is not None:
        raise ValueError("rest is for encoders: a causal query's mean would hold keys behind it")
    heads, kv_heads, count = q.shape[1] // head_dim, k.shape[1] // head_dim, tiles.shape[0]
    block_d = max(16, launch.next_power_of_2(head_dim))

    def room(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=q.device)

    sums, forced = room(count, kv_heads, GROUPS, block_d, dtype=torch.int8), room(count)
    scores, lists, counts = room(count, heads, max_tiles), room(count, heads, max_tiles), room(count, heads)
    summarize_kernel[(count, kv_heads)](
        k, ids, ids if always is None else always, tiles, sums, forced, k.stride(0),
        0 if always is None else len(always), head_dim, block_d, kv_heads, num_warps=4, num_stages=1,
    )  # fmt: skip
    select_kernel[(count, heads)](
        q, tiles, sums, forced, scores, lists, counts, q.stride(0), keep, dense_below,
        heads // kv_heads, head_dim, block_d, heads, kv_heads, causal, max_tiles, num_warps=4, num_stages=2,
    )  # fmt: skip
    means, sequences = (q, tiles) if rest is None else rest
    sign_attention_kernel[(count, heads)](
        q, k, v, means, out, tiles, sequences, lists, counts,
        q.stride(0), k.stride(0), v.stride(0), means.stride(0), out.stride(0), scale * 1.4426950408889634,
        heads // kv_heads, head_dim, block_d, heads, kv_heads, causal, rest is not None, max_tiles,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return counts
