"""kernels/attention.py: packed sequences of unequal length, causal with a cache, shared key heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gpu_support import EPS16, INTERPRETED, empty, on_device, torch

from approxrt.kernels.attention import attention
from approxrt.runtime.cuda.plan import attention_tiles

BLOCK_M = 16


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offset: int | None) -> torch.Tensor:
    """[rows, heads, d] each; float64. `offset`: position of the first query among the keys, if causal."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    if offset is not None:
        behind = torch.arange(k.shape[1])[None, :] > offset + torch.arange(q.shape[1])[:, None]
        scores = scores.masked_fill(behind, -math.inf)
    return (torch.softmax(scores, -1) @ v).transpose(0, 1)


def random_heads(rng: np.random.Generator, rows: int, heads: int, d: int) -> np.ndarray:
    return rng.normal(size=(rows, heads * d)).astype(np.float16)


def bound(v: torch.Tensor) -> float:
    """Weights and the result are float16, products are exact, exponentials are of float32 scores near 10."""
    return (2 * EPS16 + 1e-5) * float(v.abs().max())


@pytest.mark.parametrize("d", [16, 24, 32, 64])
@pytest.mark.parametrize("lengths", [[1], [15, 16, 17], [63, 1, 64], [65, 130]])
def test_varlen(lengths: list[int], d: int) -> None:
    rng, heads, total = np.random.default_rng(d), 2, sum(lengths)
    # q, k and v side by side, as a fused projection leaves them
    qkv = on_device(random_heads(rng, total, 3 * heads, d))
    out = empty(total, heads * d, dtype=torch.float16)
    q, k, v = qkv.split(heads * d, 1)
    tiles = attention_tiles(lengths, BLOCK_M)
    tiles = np.concatenate([tiles, np.zeros((2, 5), np.int32)])
    attention(q, k, v, out, on_device(tiles), BLOCK_M, d, 1 / math.sqrt(d))
    start = 0
    for n in lengths:
        part = qkv[start : start + n].cpu().reshape(n, 3, heads, d)
        want = formula(part[:, 0], part[:, 1], part[:, 2], None).reshape(n, -1)
        assert float((out[start : start + n].cpu().double() - want).abs().max()) <= bound(v)
        start += n


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sequence_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """Bit for bit, and whatever the tiles of queries (where these are of one size: numpy's product, which interprets
    them, may add up otherwise for another number of rows)."""
    rng, heads, d, lengths = np.random.default_rng(1), 2, 32, [70, 5, 130]
    q, k, v = (on_device(random_heads(rng, sum(lengths), heads, d)).to(dtype) for _ in range(3))
    outs = []
    for block_m in (16, 32):
        out = empty(sum(lengths), heads * d, dtype=dtype)
        attention(q, k, v, out, on_device(attention_tiles(lengths, block_m)), block_m, d, 0.2)
        outs.append(out)
    alone = empty(70, heads * d, dtype=dtype)
    attention(q[:70], k[:70], v[:70], alone, on_device(attention_tiles([70], 16)), 16, d, 0.2)
    assert torch.equal(alone, outs[0][:70])
    if INTERPRETED:
        rounding = torch.finfo(dtype).eps
        assert float((outs[0].float() - outs[1].float()).abs().max()) <= 2 * rounding * float(v.abs().max())
    else:
        assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (17, 17), (64, 64), (5, 70), (1, 129), (33, 200)])
def test_causal_with_cache(queries: int, keys: int) -> None:
    """The last `queries` of `keys` tokens; six query heads share two key heads; a second sequence's rows follow."""
    rng, heads, kv_heads, d = np.random.default_rng(keys), 6, 2, 32
    q = on_device(random_heads(rng, queries, heads, d))
    cache = on_device(random_heads(rng, keys + 70, 2 * kv_heads, d))
    k, v = cache.split(kv_heads * d, 1)
    out = empty(queries, heads * d)
    offset, first = keys - queries, 3
    tiles = [
        (start, min(BLOCK_M, queries - start), first, keys, offset + start) for start in range(0, queries, BLOCK_M)
    ]
    attention(q, k, v, out, on_device(np.array(tiles, np.int32)), BLOCK_M, d, 1 / math.sqrt(d), causal=True)
    kc, vc = (x[first : first + keys].cpu().reshape(keys, kv_heads, d) for x in (k, v))
    want = formula(q.cpu().reshape(queries, heads, d), kc, vc, offset).reshape(queries, -1)
    assert float((out.cpu().double() - want).abs().max()) <= bound(v)


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((3, 16), 200.0, dtype=torch.float16)
    k = q * torch.tensor([[-1.0], [1.0], [0.5]], dtype=torch.float16)
    v = torch.arange(48, dtype=torch.float16).reshape(3, 16)
    out = empty(3, 16)
    q, k, v = (x.clone().to(out.device) for x in (q, k, v))
    attention(q, k, v, out, on_device(attention_tiles([3], BLOCK_M)), BLOCK_M, 16, 1.0)
    assert torch.equal(out, v[1].float().expand(3, 16))
