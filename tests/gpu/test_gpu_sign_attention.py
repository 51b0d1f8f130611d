"""kernels/sign_attention.py: the kept tiles exactly, the output within float16, against the reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from gpu_support import EPS16, empty, on_device, torch

from approxrt.kernels.sign_attention import sign_attention
from approxrt.runtime.cuda.plan import attention_tiles
from approxrt.runtime.reference.encoder import kept_keys_by_tiles
from approxrt.runtime.reference.encoder import sign_attention as formula

pytestmark = pytest.mark.slow

HEADS, D = 2, 32


def random_qkv(total: int, seed: int, kv_heads: int = HEADS, d: int = D) -> tuple[np.ndarray, ...]:
    """Neighbouring keys are alike, so that tiles differ in how well they match."""
    rng = np.random.default_rng(seed)
    themes = np.repeat(rng.normal(size=(-(-total // 64), kv_heads * d)), 64, axis=0)[:total]
    q, k, v = (rng.normal(size=(total, heads * d)) for heads in (HEADS, kv_heads, kv_heads))
    return q.astype(np.float16), (k + themes).astype(np.float16), v.astype(np.float16)


def heads_first(x: np.ndarray, d: int = D) -> torch.Tensor:
    return torch.from_numpy(x.reshape(len(x), -1, d)).transpose(0, 1).double()


def bound(v: np.ndarray) -> float:
    return (2 * EPS16 + 1e-5) * float(np.abs(v).max())


def check(
    lengths: list[int], keep: int, *, causal: bool = False, kv_heads: int = HEADS, d: int = D, rest: bool = False,
    always: tuple[int, ...] = (), dense_below: int = 0, seed: int = 0,
) -> list[int]:  # fmt: skip
    """Compare every sequence with the reference; how many key tiles each tile of the first head kept."""
    total = sum(lengths)
    q, k, v = random_qkv(total, seed, kv_heads, d)
    ids = np.random.default_rng(seed).integers(0, 500, total).astype(np.int32)
    tiles = attention_tiles(lengths, 64)
    starts = np.cumsum([0, *lengths])
    extra = None
    if rest:
        means = np.stack(
            [np.concatenate([k[a:b], v[a:b]], 1).astype(np.float32).mean(0) for a, b in itertools.pairwise(starts)]
        )
        owners = np.searchsorted(starts, tiles[:, 2], side="right") - 1
        extra = on_device(means), on_device(owners.astype(np.int32))
    out = empty(total, HEADS * d, dtype=torch.float16)
    # A tile of no queries pads the table.
    padded = np.concatenate([tiles, np.zeros((1, 5), np.int32)])
    if extra is not None:
        extra = extra[0], torch.nn.functional.pad(extra[1], (0, 1))
    counts = sign_attention(
        *map(on_device, (q, k, v)), out, on_device(padded), on_device(ids), d, 1 / math.sqrt(d), keep, 8,
        dense_below=dense_below, always=on_device(np.array(always, np.int32)) if always else None, causal=causal,
        rest=extra,
    )  # fmt: skip
    for a, b in itertools.pairwise(starts):
        n = b - a
        wanted = torch.from_numpy(np.isin(ids[a:b], always))
        least = n if n < dense_below else keep
        kept = kept_keys_by_tiles(*(heads_first(x[a:b], d) for x in (q, k)), least, wanted, causal)
        want = formula(*(heads_first(x[a:b], d) for x in (q, k, v)), 1 / math.sqrt(d), kept, rest)
        got = out[a:b].cpu().double()
        assert float((got - want.transpose(0, 1).reshape(n, -1)).abs().max()) <= bound(v)
        for row in np.flatnonzero(tiles[:, 2] == a):
            first = int(tiles[row, 4])
            # A causal query tile's last row sees every kept tile.
            seen = kept[:, min(first + 63, n - 1)]
            whole = torch.nn.functional.pad(seen, (0, -n % 64)).reshape(HEADS, -1, 64).any(2).sum(1)
            assert counts[row].cpu().tolist() == whole.tolist()
    return counts[: len(tiles), 0].cpu().tolist()


@pytest.mark.parametrize("lengths", [[1], [64], [65], [400, 63, 130], [512]])
@pytest.mark.parametrize("keep", [1, 2])
def test_encoder(lengths: list[int], keep: int) -> None:
    check(lengths, keep)


def test_tiles_are_left_out() -> None:
    """Of eight tiles: the own, the first, and one or two more."""
    assert check([512], 1) == [2] + [3] * 7
    assert check([512], 7) == [8] * 8


@pytest.mark.parametrize("d", [16, 24, 64])
def test_head_dims(d: int) -> None:
    check([330], 1, d=d)


def test_causal_with_shared_heads() -> None:
    counts = check([500], 1, causal=True, kv_heads=1)
    # The first, the own and the one before it, and one of those in between.
    assert counts == [1, 2, 3, 4, 4, 4, 4, 4]


def test_always_kept_tokens_and_short_sequences() -> None:
    free = check([512, 200], 1, dense_below=300)
    forced = check([512, 200], 1, dense_below=300, always=(7, 11, 13))
    assert free[8:] == [4, 4, 4, 4] and sum(forced) > sum(free)


@pytest.mark.parametrize("lengths", [[512], [300, 20]])
def test_what_is_left_out_stands_as_its_mean(lengths: list[int]) -> None:
    check(lengths, 1, rest=True)


def test_equal_scores() -> None:
    """All keys alike: the first tiles win, if causal the last."""
    n, d = 512, 16
    x = on_device(np.ones((n, d), np.float16))
    tiles, ids = on_device(attention_tiles([n], 64)), on_device(np.zeros(n, np.int32))
    for causal in (False, True):
        ones = torch.ones(1, n, d)
        kept = kept_keys_by_tiles(ones, ones, 2, None, causal)
        counts = sign_attention(x, x, x, torch.empty_like(x), tiles, ids, d, 1.0, 2, 8, causal=causal)
        last = kept[0, 63::64, :].reshape(8, 8, 64).any(2)
        assert counts[:, 0].cpu().tolist() == last.sum(1).tolist()
    assert last[7].tolist() == [True, False, False, False, True, True, True, True]
