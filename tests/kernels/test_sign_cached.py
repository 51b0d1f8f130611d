"""Sign matching over a cache: which keys are kept, exactly, and the output, in float64 (runtime/reference.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cached_keys import KINDS, stored
from levels import EPS, every_level

from approxrt._C import kernels
from approxrt.runtime.reference.encoder import kept_keys

BLOCK = 64  # tokens between two rows of sums


def cache_of(
    k: np.ndarray,
    v: np.ndarray,
    kind: str,
    isa: str,
    rotation: np.ndarray | None,
    centre: np.ndarray | None,
    rest: bool,
) -> kernels.Cache:
    """A cache that is filled in pieces, as a prompt and steps of a few tokens fill it."""
    cache = kernels.Cache(len(k) + 5, k.shape[1], kind)
    cache.match_signs(rotation, None if rotation is None else rotation @ centre, rest)
    begin = 0
    for end in sorted({min(len(k), e) for e in (70, 71, 130, len(k))}):
        cache.write(k[begin:end], v[begin:end], begin, isa)
        cache.index(begin, end, isa)
        begin = end
    return cache


def expected(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    position: int,
    keep: int,
    window: int,
    scale: float,
    signs: tuple,
    rest: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(out, kept) in float64 of queries [tokens, heads, dim]; k and v as they are stored."""
    rotation, centre = signs
    n = len(k)
    matched_q, matched_k = q.astype(np.float64), k
    if rotation is not None:
        matched_q, matched_k = matched_q @ rotation.T.astype(np.float64), (k - centre) @ rotation.T.astype(np.float64)
        # A sign of what is nearly 0 may differ where it is computed in float32; none is.
        assert min(np.abs(matched_q).min(), np.abs(matched_k).min()) > 1e-6
    always = torch.zeros(n, dtype=torch.bool)
    always[0] = True
    kept = kept_keys(
        torch.from_numpy(matched_q).transpose(0, 1), torch.from_numpy(matched_k)[None], keep, always, True,
        window=window,
    ).numpy()  # fmt: skip
    scores = scale * np.einsum("thd,kd->htk", q.astype(np.float64), k)
    scores[~kept] = -np.inf
    out = np.empty(q.shape)
    for t in range(len(q)):
        own = position + t
        whole = (own + 1) // BLOCK * BLOCK
        for h in range(q.shape[1]):
            s, values = scores[h, t], v
            left = own + 1 - kept[h, t].sum()
            if rest and left:
                s = np.append(s, scale * q[t, h].astype(np.float64) @ k[:whole].mean(0) + np.log(left))
                values = np.concatenate([v, v[:whole].mean(0, keepdims=True)])
            weights = np.exp(s - s.max())
            out[t, h] = weights / weights.sum() @ values
    return out, kept


def check(
    isa: str,
    n: int,
    tokens: int,
    heads: int,
    dim: int,
    kind: str,
    keep: int,
    window: int,
    codes: int,
    rest: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    k, v = (rng.standard_normal((2, n, dim)) + 0.3).astype(np.float32)
    q = rng.standard_normal((tokens, heads, dim)).astype(np.float32)
    rotation = centre = None
    if codes:
        rotation = rng.standard_normal((codes, dim)).astype(np.float32)
        centre = k.mean(0)
    cache = cache_of(k, v, kind, isa, rotation, centre, rest)
    scale = 1 / np.sqrt(dim)
    out, words = cache.sign_attention(q, n - tokens, scale, keep, window, isa)
    # Integers have no negative zero.
    kept_k, kept_v = (x + 0.0 if kind == "int8" else x for x in (stored(k, kind), stored(v, kind)))
    want, kept = expected(q, kept_k, kept_v, n - tokens, keep, window, scale, (rotation, centre), rest)
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :n].astype(bool)
    np.testing.assert_array_equal(bits.transpose(1, 0, 2), kept)
    magnitude = scale * (np.abs(q).astype(np.float64) @ np.abs(kept_k).T).max()
    tolerance = ((dim + 3) * 2 * magnitude + 2 * n + 8) * EPS * np.abs(kept_v).max()
    assert np.abs(out - want).max() <= tolerance


@every_level
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "tokens", "heads", "dim"), [
    (64, 1, 1, 64), (130, 5, 3, 64), (600, 1, 3, 64), (700, 9, 2, 32), (200, 3, 3, 80), (140, 4, 1, 24),
])  # fmt: skip
def test_equals_the_reference(isa: str, kind: str, n: int, tokens: int, heads: int, dim: int) -> None:
    for keep, window, rest in ((1, 1, False), (40, 16, True), (n, 1, True)):
        check(isa, n, tokens, heads, dim, kind, keep, window, 0, rest, n + keep)


@every_level
@pytest.mark.parametrize(("dim", "codes"), [(64, 192), (64, 64), (32, 128), (48, 100), (16, 245), (10, 30)])
def test_signs_of_turned_keys(isa: str, dim: int, codes: int) -> None:
    check(isa, 300, 6, 3, dim, "f16", 24, 8, codes, True, codes)


@every_level
def test_a_query_stands_alone(isa: str) -> None:
    """Whatever queries are beside it, and however many keys come after it."""
    rng = np.random.default_rng(4)
    k, v = rng.standard_normal((2, 640, 64)).astype(np.float32)
    q = rng.standard_normal((40, 3, 64)).astype(np.float32)
    cache = cache_of(k, v, "f16", isa, None, None, True)
    together = cache.sign_attention(q, 600, 0.125, 20, 4, isa)[0]
    for t in (0, 7, 39):
        alone = cache.sign_attention(q[t : t + 1], 600 + t, 0.125, 20, 4, isa)[0]
        np.testing.assert_array_equal(alone[0], together[t])


@every_level
def test_tokens_that_are_written_again(isa: str) -> None:
    """A cache that was cut and went on elsewhere is as one that never was elsewhere."""
    rng = np.random.default_rng(5)
    k, v, other_k, other_v = rng.standard_normal((4, 300, 64)).astype(np.float32)
    rotation = rng.standard_normal((96, 64)).astype(np.float32)
    centre = np.zeros(64, np.float32)
    q = rng.standard_normal((4, 2, 64)).astype(np.float32)
    straight = cache_of(k, v, "int8", isa, rotation, centre, True)
    cut = cache_of(np.concatenate([k[:100], other_k[100:]]), np.concatenate([v[:100], other_v[100:]]), "int8", isa,
                   rotation, centre, True)  # fmt: skip
    cut.write(k[100:], v[100:], 100, isa)
    cut.index(100, 300, isa)
    for a, b in zip(*(c.sign_attention(q, 296, 0.1, 30, 8, isa) for c in (straight, cut)), strict=True):
        np.testing.assert_array_equal(a, b)
