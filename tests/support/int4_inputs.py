"""Inputs of int4 products."""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_TILES, GROUP_WEIGHTS, MAX_GROUP_SCALE, TILE_K, TILE_N
from approxrt.artifact.storage.bsr import dense_to_bsr
from approxrt.artifact.storage.int4 import pack_nibbles


def activations(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """int8 with the ends of the range as often as its middle; -128 and 127 are u = 0 and 255."""
    ends = rng.choice([-128, -127, -1, 0, 1, 127], (rows, k))
    return np.where(rng.random((rows, k)) < 0.5, rng.integers(-128, 128, (rows, k)), ends).astype(np.int8)


def random_q4(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    ends = rng.choice([-7, 0, 7], shape)
    return np.where(rng.random(shape) < 0.5, rng.integers(-7, 8, shape), ends).astype(np.int8)


def random_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    ends = rng.choice([1, MAX_GROUP_SCALE], shape)
    return np.where(rng.random(shape) < 0.5, rng.integers(1, MAX_GROUP_SCALE + 1, shape), ends).astype(np.uint8)


def unit(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(n, np.float32), np.zeros(n, np.float32)


def random_dense(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(q4, group_scale) as an artifact has them."""
    return pack_nibbles(random_q4(rng, (n, k))), random_scales(rng, (n, -(-k // GROUP_WEIGHTS)))


def random_bsr(
    rng: np.random.Generator, n: int, k: int, density: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(indptr, indices, tiles4, group_scale)."""
    mask = rng.random((-(-n // TILE_N), -(-k // TILE_K))) < density
    tiles, indices, indptr = dense_to_bsr(random_q4(rng, (n, k)), mask)
    groups = int((-(-np.diff(indptr) // GROUP_TILES)).sum())
    return indptr, indices, pack_nibbles(tiles), random_scales(rng, (groups, TILE_N))
