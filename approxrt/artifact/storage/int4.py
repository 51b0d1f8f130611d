"""int4 storage: nibbles in bytes, and the integers that they stand for.

A weight is scale[o] * m * q4 with q4 in [-7, 7] and one m for 32 weights of an
output (`approxrt.artifact.spec.encoder`). A nibble is q4 + 8; of two neighbours the
first is the byte's low nibble. An odd row ends with the nibble 8, a weight of 0.
"""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_TILES, GROUP_WEIGHTS


def pack_nibbles(q: np.ndarray) -> np.ndarray:
    """i8[..., K] in [-7, 7] -> u8[..., ceil(K / 2)]."""
    nibbles = (q + np.int8(8)).astype(np.uint8)
    if q.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.full((*q.shape[:-1], 1), 8, np.uint8)], axis=-1)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: np.ndarray, k: int) -> np.ndarray:
    """u8[..., ceil(k / 2)] -> i8[..., k]."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])[..., :k]
    return nibbles.astype(np.int8) - np.int8(8)


def row_integers(q4: np.ndarray, group_scale: np.ndarray, k: int) -> np.ndarray:
    """m * q4 of dense rows: (u8[N, ceil(k / 2)], u8[N, ceil(k / 32)]) -> i16[N, k]."""
    m = np.repeat(group_scale.astype(np.int16), GROUP_WEIGHTS, axis=1)[:, :k]
    return unpack_nibbles(q4, k) * m


def tile_integers(tiles4: np.ndarray, group_scale: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """m * q4 of tiles: (u8[nnz, 16, 2], u8[groups, 16], i32[strips + 1]) -> i16[nnz, 16, 4]."""
    return unpack_nibbles(tiles4, 4) * group_scale[tile_groups(indptr)].astype(np.int16)[:, :, None]


def tile_groups(indptr: np.ndarray) -> np.ndarray:
    """i64[nnz]: the row of `group_scale` that each tile's m is in."""
    counts = np.diff(indptr).astype(np.int64)
    groups = -(-counts // GROUP_TILES)
    first = np.cumsum(groups) - groups
    within = np.arange(counts.sum()) - np.repeat(indptr[:-1].astype(np.int64), counts)
    return np.repeat(first, counts) + within // GROUP_TILES
