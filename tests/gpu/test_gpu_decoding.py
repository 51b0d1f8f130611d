"""kernels/rope.py, gated.py and cached_attention.py: what a decoder's layer has besides an encoder's kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gpu_support import EPS16, EPS32, empty, on_device, torch

from approxrt.artifact.storage.hadamard import hadamard
from approxrt.kernels.cached_attention import PART, cached_attention
from approxrt.kernels.gated import gated
from approxrt.kernels.rope import rope
from approxrt.runtime.reference.encoder import quantize_tokens


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(3, 1, 16), (4, 4, 24), (9, 3, 64)])
def test_rope_and_cache(heads: int, kv_heads: int, d: int, turns: bool) -> None:
    m, rng = 5, np.random.default_rng(d)
    qkv = rng.normal(size=(m, (heads + 2 * kv_heads) * d)).astype(np.float16)
    positions, slots = np.array([0, 1, 7, 30, 2], np.int32), np.array([9, 3, 0, 5, 8], np.int32)
    angles = np.arange(31)[:, None] * 100.0 ** -np.linspace(0, 1, d // 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    device, cache = on_device(qkv), empty(10, 2 * kv_heads * d, dtype=torch.float16)
    tables = (on_device(cos), on_device(sin)) if turns else None
    rope(device, cache, on_device(positions), on_device(slots), heads, kv_heads, d, tables)
    a, b = np.split(qkv.astype(np.float64).reshape(m, -1, d), 2, axis=2)
    c, s = (x[positions][:, None, :].astype(np.float64) for x in (cos, sin))
    want = np.concatenate([a * c - b * s, b * c + a * s], axis=2) if turns else np.concatenate([a, b], axis=2)
    want[:, heads + kv_heads :] = qkv.reshape(m, -1, d)[:, heads + kv_heads :]
    bound = (EPS16 + 4 * EPS32) * np.abs(qkv.astype(np.float64)).max() * 1.5
    got = device.cpu().numpy().reshape(m, -1, d)
    assert np.abs(got[:, :heads] - want[:, :heads]).max() <= bound
    rows = cache.cpu().numpy().reshape(10, -1, d)
    assert np.abs(rows[slots] - want[:, heads:]).max() <= bound
    untouched = sorted(set(range(10)) - set(slots.tolist()))
    assert (rows[untouched] == 77).all()


@pytest.mark.parametrize(("m", "f"), [(1, 63), (4, 64), (3, 100)])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(m: int, f: int, activation: str) -> None:
    x = np.random.default_rng(f).normal(size=(m, 2 * f)).astype(np.float16)
    h, q, scale = empty(m, f), empty(m, 128, dtype=torch.int8), empty(m)
    gated(on_device(x), activation, h, (q, scale))
    gate, up = torch.from_numpy(x.astype(np.float64)).chunk(2, 1)
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    want = (act * up).numpy()
    assert np.all(np.abs(h.cpu().numpy() - want) <= 16 * EPS32 * (np.abs(want) + np.abs(up.numpy())))
    want_q, want_scale = quantize_tokens(h.cpu().numpy())
    np.testing.assert_array_equal(q[:, :f].cpu().numpy(), want_q)
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)
    assert not q[:, f:].any()


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("gate", [True, False])
def test_rotated_blocks(block: int, gate: bool) -> None:
    m, f = 3, 3 * block
    x = np.random.default_rng(block).normal(size=(m, 2 * f if gate else f)).astype(np.float32)
    h, q, scale = empty(m, f), empty(m, -(-f // 128) * 128, dtype=torch.int8), empty(m)
    gated(on_device(x), "silu", h, (q, scale), gate=gate, hadamard=block)
    wide = torch.from_numpy(x.astype(np.float64))
    g = torch.nn.functional.silu(wide[:, :f]) * (wide[:, f:] if gate else 1)
    want = (g.unflatten(1, (-1, block)) @ torch.from_numpy(hadamard(block)).double()).flatten(1).numpy()
    # Higham 2002, 3.1: a sum of `block` products in any order; activations before it err by a few units
    bound = (block + 20) * EPS32 * g.abs().unflatten(1, (-1, block)).sum(2).max().item()
    assert np.abs(h.cpu().numpy() - want).max() <= bound
    want_q, want_scale = quantize_tokens(h.cpu().numpy())
    np.testing.assert_array_equal(q[:, :f].cpu().numpy(), want_q)
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)
    assert not q[:, f:].any()


@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(3, 1, 64), (2, 2, 24)])
def test_cached_attention(heads: int, kv_heads: int, d: int) -> None:
    """Sequences of one key, of whole parts and around them, and one that is only padding; rows in any order."""
    keys, starts = [1, PART - 1, PART, PART + 1, 70, 0], [700, 0, 300, 560, 820, 0]
    rng = np.random.default_rng(d)
    q = rng.normal(size=(6, heads * d)).astype(np.float16)
    cache = rng.normal(size=(900, 2 * kv_heads * d)).astype(np.float16)
    rows = [2, 0, 1, 5, 3, 4]
    table = np.stack([rows, starts, keys], 1).astype(np.int32)
    out = empty(6, heads * d)
    cached_attention(on_device(q), on_device(cache), out, on_device(table), 2, heads, kv_heads, d, 1 / math.sqrt(d))
    k, v = np.split(cache.astype(np.float64).reshape(900, -1, d), 2, axis=1)
    for row, start, n in table.tolist():
        for head in range(heads):
            kh, vh = (x[start : start + n, head // (heads // kv_heads)] for x in (k, v))
            scores = kh @ q[row].reshape(heads, d)[head].astype(np.float64) / math.sqrt(d)
            weights = np.exp(scores - scores.max(initial=-np.inf)) if n else scores
            want = weights @ vh / weights.sum() if n else np.zeros(d)
            got = out[row].cpu().numpy().reshape(heads, d)[head]
            assert np.abs(got - want).max() <= (2 * EPS16 + 1e-5) * np.abs(v).max()


def test_more_parts_than_needed_change_nothing() -> None:
    """Bit for bit: the bucket of a graph may have room for longer sequences."""
    rng, d = np.random.default_rng(0), 32
    q, cache = on_device(rng.normal(size=(1, d)).astype("f2")), on_device(rng.normal(size=(600, 2 * d)).astype("f2"))
    outs = []
    for parts in (4, 8):
        outs.append(empty(1, d))
        cached_attention(q, cache, outs[-1], on_device(np.array([[0, 10, 580]], np.int32)), parts, 1, 1, d, 0.2)
    assert torch.equal(*outs)
