"""kernels/embedding.py: rows of every kind, sums, norm and quantised output."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import EPS32, empty, on_device, torch
from specs import random_rows4

from approxrt.artifact.storage.int4 import row_integers
from approxrt.kernels.embedding import WordTable, embedding
from approxrt.runtime.reference.encoder import quantize_tokens


def random_table(kind: str, v: int, e: int, rng: np.random.Generator) -> tuple[WordTable, np.ndarray]:
    """(table on the device, its rows in float64)."""
    scale = rng.uniform(1e-3, 1e-2, v).astype(np.float32)
    if kind == "f32":
        words = rng.normal(size=(v, e)).astype(np.float32)
        return WordTable(on_device(words), e), words.astype(np.float64)
    if kind == "s8":
        q = rng.integers(-127, 128, (v, e), dtype=np.int8)
        return WordTable(on_device(q), e, on_device(scale)), q * scale[:, None].astype(np.float64)
    q4 = random_rows4((v, -(-e // 2)), e, rng)
    m = rng.integers(1, 256, (v, -(-e // 32)), dtype=np.uint8)
    table = WordTable(on_device(q4), e, on_device(scale), on_device(m))
    return table, row_integers(q4, m, e) * scale[:, None].astype(np.float64)


@pytest.mark.parametrize("kind", ["f32", "s8", "s4"])
@pytest.mark.parametrize("e", [31, 33, 64, 65])
def test_gather(kind: str, e: int) -> None:
    rng = np.random.default_rng(e)
    table, words = random_table(kind, 50, e, rng)
    ids = rng.integers(0, 50, 37).astype(np.int32)
    h = empty(37, e)
    embedding(table, on_device(ids), h)
    np.testing.assert_allclose(h.cpu().numpy(), words[ids], rtol=2 * EPS32, atol=0)


@pytest.mark.parametrize("types", [False, True])
def test_sum_norm_and_quantise(types: bool) -> None:
    rng, e, m = np.random.default_rng(0), 40, 9
    table, words = random_table("s8", 30, e, rng)
    ids, positions, kinds = (rng.integers(0, high, m).astype(np.int32) for high in (30, 16, 2))
    position_table, type_table = (rng.normal(size=(n, e)).astype(np.float32) for n in (16, 2))
    gamma, beta = rng.normal(size=(2, e)).astype(np.float32)
    h, q, scale = empty(m, e), empty(m, 64, dtype=torch.int8), empty(m)
    embedding(
        table, on_device(ids), h, positions=on_device(positions), position_table=on_device(position_table),
        types=on_device(kinds) if types else None, type_table=on_device(type_table) if types else None,
        norm=(on_device(gamma), on_device(beta), 1e-12), quantized=(q, scale),
    )  # fmt: skip
    want = words[ids] + position_table[positions] + (type_table[kinds] if types else 0)
    want = want - want.mean(1, keepdims=True)
    want = want / np.sqrt((want * want).mean(1, keepdims=True) + 1e-12) * gamma + beta
    np.testing.assert_allclose(h.cpu().numpy(), want, rtol=0, atol=64 * EPS32 * np.abs(want).max())
    want_q, want_scale = quantize_tokens(h.cpu().numpy())
    np.testing.assert_array_equal(q[:, :e].cpu().numpy(), want_q)
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)
    assert not q[:, e:].any()
