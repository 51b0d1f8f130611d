"""Sign-matching attention: the kept keys exactly and the output within float32, against the reference in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import EPS, SUPPORTED, every_level

from approxrt._C import kernels

torch = pytest.importorskip("torch")
from approxrt.runtime.reference.encoder import kept_keys, sign_attention  # noqa: E402

SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 130, 511, 512, 513, 1030]


def bits_of(mask: np.ndarray) -> np.ndarray:
    """bool[..., n] -> u64[..., words]: bits over keys in whole blocks of 512."""
    padded = np.zeros((*mask.shape[:-1], -(-mask.shape[-1] // 512) * 512), bool)
    padded[..., : mask.shape[-1]] = mask
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def draw(rng: np.random.Generator, queries: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, k, v = (rng.standard_normal((rows, d)).astype(np.float32) for rows in (queries, n, n))
    return q, k, v


def check(isa: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, keep: int, **options: Any) -> np.ndarray:
    """The kernel against the reference; returns the kept keys, bool[queries, n]."""
    scale = q.shape[1] ** -0.5
    always, rest = options.pop("always", None), options.pop("rest", False)
    planes = kernels.sign_planes(k) if options.pop("cached", False) else None
    words = None if always is None else bits_of(always)
    out, kept = kernels.sign_attention(
        q, k, v, scale, keep, isa, always=words, planes=planes, offset=len(k) - len(q), rest=rest, **options
    )
    tq, tk, tv = (torch.from_numpy(x)[None] for x in (q, k, v))
    mask = None if always is None else torch.from_numpy(always)
    chosen = kept_keys(tq, tk, keep, mask, **options)
    want = chosen[0].numpy()
    np.testing.assert_array_equal(kept, bits_of(want))
    exact = sign_attention(tq.double(), tk.double(), tv.double(), scale, chosen, rest)[0].numpy()
    # As in test_attention.py: the error of a score, of exp, and of sums over the kept keys.
    d, most = q.shape[1], int(want.sum(1).max())
    score = (d + 2) * EPS * scale * (np.abs(q) @ np.abs(k).T).max() + 2 * EPS * 10
    tolerance = (2 * score + 6e-7 + (2 * most + 8) * EPS) * np.abs(v).max()
    np.testing.assert_allclose(out, exact, rtol=0, atol=tolerance)
    return want


@every_level
@pytest.mark.parametrize("head_dim", [1, 13, 16, 32, 64, 128])
@pytest.mark.parametrize("n", SIZES)
def test_equals_the_reference(isa: str, head_dim: int, n: int) -> None:
    rng = np.random.default_rng(n * 1000 + head_dim)
    q, k, v = draw(rng, min(n, 9), n, head_dim)
    for keep in (1, 7, 40, n):
        want = check(isa, q, k, v, keep)
        assert (want.sum(1) == min(n, keep + 1 if keep < n else n)).all()


@every_level
@pytest.mark.parametrize("n", [5, 17, 64, 200, 600])
def test_causal_keeps_the_window_and_recent_ties(isa: str, n: int) -> None:
    q, k, v = draw(np.random.default_rng(n), n, n, 8)
    # Eight signs of hundreds of keys: nearly everything is a tie.
    for window in (1, 16):
        want = check(isa, q, k, v, 12, causal=True, window=window)
        assert not np.triu(want, 1).any()
        for i in range(n):
            assert want[i, max(0, i + 1 - window) : i + 1].all()


@every_level
@pytest.mark.parametrize("causal", [False, True])
def test_always_kept_keys_do_not_count(isa: str, causal: bool) -> None:
    rng = np.random.default_rng(3)
    q, k, v = draw(rng, 30, 300, 32)
    always = rng.random(300) < 0.1
    always[0] = True
    want = check(isa, q, k, v, 20, always=always, causal=causal)
    assert want[:, always & (np.arange(300) <= 270)].all()
    assert check(isa, q, k, v, 20, always=np.ones(300, bool), causal=causal).any()


@every_level
@pytest.mark.parametrize("n", [1, 40, 512, 700])
def test_one_token_over_a_cache_with_its_signs(isa: str, n: int) -> None:
    q, k, v = draw(np.random.default_rng(n), 1, n, 64)
    check(isa, q, k, v, 24, causal=True, cached=True)


@every_level
@pytest.mark.parametrize("head_dim", [13, 32, 64])
@pytest.mark.parametrize("n", [1, 20, 21, 64, 513])
def test_the_rest_stands_as_its_mean(isa: str, n: int, head_dim: int) -> None:
    q, k, v = draw(np.random.default_rng(n), min(n, 9), n, head_dim)
    for keep in (1, 19, 20):
        check(isa, q, k, v, keep, rest=True)
    check(isa, q[:1], k, v, 24, causal=True, cached=True, rest=True)


def test_the_rest_of_equal_keys_is_exact() -> None:
    """Keys that are all alike lose nothing when most of them stand as their mean."""
    q, k, v = draw(np.random.default_rng(2), 8, 200, 32)
    k[:] = k[0]
    v[:] = v[0]
    got = kernels.sign_attention(q, k, v, 0.2, 5, rest=True)[0]
    np.testing.assert_allclose(got, np.repeat(v[:1], 8, axis=0), rtol=1e-5, atol=1e-6)
    values = np.random.default_rng(3).standard_normal((200, 32)).astype(np.float32)
    kept = kernels.sign_attention(q, k, values, 0.2, 5, rest=True)[1]
    own = [np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")) for row in kept]
    want = [(values[i].sum(0) + (200 - len(i)) * values.mean(0)) / 200 for i in own]
    np.testing.assert_allclose(kernels.sign_attention(q, k, values, 0.2, 5, rest=True)[0], want, rtol=1e-4, atol=1e-5)


@every_level
def test_equal_keys_are_taken_in_order(isa: str) -> None:
    q, k, v = draw(np.random.default_rng(0), 700, 700, 32)
    k[:] = k[0]
    first = check(isa, q, k, v, 10)
    assert first[699, :10].all() and first[699, 10:699].sum() == 0
    last = check(isa, q, k, v, 10, causal=True)
    assert last[699, 674:].all() and last[699, :674].sum() == 0


@every_level
def test_a_query_does_not_depend_on_the_others(isa: str) -> None:
    q, k, v = draw(np.random.default_rng(1), 100, 100, 32)
    whole, kept = kernels.sign_attention(q, k, v, 0.2, 9, isa)
    for i in (0, 1, 50, 99):
        part, mine = kernels.sign_attention(q[i : i + 1], k, v, 0.2, 9, isa, offset=i)
        np.testing.assert_array_equal(part[0], whole[i])
        np.testing.assert_array_equal(mine[0], kept[i])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([isa for isa in SUPPORTED if isa != "scalar"] or ["scalar"]),
    st.integers(1, 1100),
    st.sampled_from([8, 24, 32, 40, 64, 96, 248]),
    st.integers(1, 200),
    st.booleans(),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_shape(isa: str, n: int, head_dim: int, keep: int, causal: bool, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, min(n, int(rng.integers(1, 5))), n, head_dim)
    # Zeros of both signs among the elements.
    k[rng.random(k.shape) < 0.2] *= 0
    options = {"window": window} if causal else {}
    check(isa, q, k, v, keep, causal=causal, always=rng.random(n) < 0.02, cached=bool(rng.integers(2)), **options)


def test_grouped_queries_share_keys() -> None:
    rng = np.random.default_rng(5)
    q, k, v = (torch.from_numpy(rng.standard_normal((heads, 50, 16))) for heads in (6, 2, 2))
    whole = sign_attention(q, k, v, 0.25, kept_keys(q, k, 8, causal=True))
    for head in range(6):
        mine, key, value = q[head : head + 1], *(x[head // 3 : head // 3 + 1] for x in (k, v))
        alone = sign_attention(mine, key, value, 0.25, kept_keys(mine, key, 8, causal=True))
        torch.testing.assert_close(alone[0], whole[head])


def test_padding_changes_nothing() -> None:
    rng = np.random.default_rng(6)
    q, k, v = (torch.from_numpy(rng.standard_normal((2, 40, 16))) for _ in range(3))
    wide = [torch.cat([torch.full((2, 7, 16), 9.0, dtype=x.dtype), x], 1) for x in (q, k, v)]
    kept = kept_keys(wide[0], wide[1], 8, valid=torch.arange(47) >= 7)
    plain = sign_attention(q, k, v, 0.25, kept_keys(q, k, 8))
    torch.testing.assert_close(sign_attention(*wide, 0.25, kept)[:, 7:], plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "must be positive"),
        ({"keep": 4, "window": 0}, "must be positive"),
        ({"keep": 4, "offset": 2}, "a key of its own"),
        ({"keep": 4, "causal": True, "rest": True}, "a mean for all queries alike"),
        ({"keep": 4, "always": np.zeros(1, np.uint64)}, "whole blocks"),
        ({"keep": 4, "always": np.full(8, 2**63, np.uint64)}, "behind the last key"),
        ({"keep": 4, "planes": np.zeros(8, np.uint64)}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    x = np.zeros((9, 16), np.float32)
    with pytest.raises(ValueError, match=message):
        kernels.sign_attention(x, x, x, 1.0, **options)


def test_too_wide_a_head_is_refused() -> None:
    x = np.zeros((2, 249), np.float32)
    with pytest.raises(ValueError, match="at most 248"):
        kernels.sign_attention(x, x, x, 1.0, 1)
