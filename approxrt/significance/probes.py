"""Random weights in a scheme's stored form: models of them are timed, and never answer anything."""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS, TILE_K, TILE_N
from approxrt.artifact.spec.int4_faults import group_count
from approxrt.artifact.storage.bsr import grid
from approxrt.artifact.storage.int4 import pack_nibbles
from approxrt.quantization.scheme import Scheme


def random_linear(n: int, k: int, scheme: Scheme, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the stored parts of random weights, scattered over random tiles: times do not depend on their values."""
    if scheme.grouped:
        scale = np.full((n, -(-k // GROUP_WEIGHTS)), 1e-3, np.float16)
        if scheme.format == "g8":
            return {"q": rng.integers(-127, 128, (n, k), np.int8), "group_scale": scale}
        parts = {"q4": _nibbles((n, -(-k // 2)), k), "group_scale": scale}
        more = {"q2": np.zeros((n, -(-k // 4)), np.uint8)} if scheme.format == "g6" else {"group_offset": -scale}
        return parts | more
    out: dict[str, np.ndarray] = {"scale": np.full(n, 1e-3, np.float32)}
    if not scheme.sparse:
        if scheme.format == "s8":
            return out | {"q": rng.integers(-127, 128, (n, k), np.int8)}
        # Nibbles of 1 and 3: any are as fast.
        scales = np.ones((n, -(-k // GROUP_WEIGHTS)), np.uint8)
        return out | {"q4": _nibbles((n, -(-k // 2)), k), "group_scale": scales}
    strips, columns = grid(n, k)
    count = max(1, round(scheme.density * columns))
    places = np.sort(np.argsort(rng.random((strips, columns)), axis=1)[:, :count], axis=1)
    indptr = np.arange(0, strips * count + 1, count, dtype=np.int32)
    out |= {"indices": places.reshape(-1).astype(np.uint16), "indptr": indptr}
    mask = np.zeros((strips, columns), bool)
    np.put_along_axis(mask, places, True, axis=1)
    if scheme.format == "s8":
        q = rng.integers(-127, 128, (strips * count, TILE_N, TILE_K), np.int8)
        return out | {"tiles": _without_padding(q, mask, n, k)}
    q = rng.integers(-7, 8, (strips * count, TILE_N, TILE_K), np.int8)
    scales = np.ones((group_count(indptr), TILE_N), np.uint8)
    return out | {"tiles4": pack_nibbles(_without_padding(q, mask, n, k)), "group_scale": scales}


def _nibbles(shape: tuple[int, int], k: int) -> np.ndarray:
    pattern = np.where(np.arange(k) % 2, 3, 1).astype(np.int8)
    row: np.ndarray = pack_nibbles(pattern[None])
    return np.ascontiguousarray(np.broadcast_to(row, shape))


def _without_padding(tiles: np.ndarray, mask: np.ndarray, n: int, k: int) -> np.ndarray:
    """Weights past the matrix's sides are zero."""
    strips, columns = np.nonzero(mask)
    rows = strips[:, None] * TILE_N + np.arange(TILE_N)
    inputs = columns[:, None] * TILE_K + np.arange(TILE_K)
    tiles[(rows >= n)[:, :, None] | (inputs >= k)[:, None, :]] = 0
    return tiles
