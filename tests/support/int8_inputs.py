"""Inputs of int8 products."""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import TILE_K, TILE_N
from approxrt.artifact.storage.bsr import dense_to_bsr


def extreme(rng: np.random.Generator, shape: tuple[int, ...], low: int) -> np.ndarray:
    """Values drawn from the ends of the range as often as from its middle."""
    middle = rng.integers(low, 128, shape)
    ends = rng.choice([low, -127, -1, 0, 1, 127], shape)
    return np.where(rng.random(shape) < 0.5, middle, ends).astype(np.int8)


def unit(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(n, np.float32), np.zeros(n, np.float32)


def random_bsr(rng: np.random.Generator, n: int, k: int, density: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indptr, indices, tiles) with values over the whole range."""
    mask = rng.random((-(-n // TILE_N), -(-k // TILE_K))) < density
    tiles, indices, indptr = dense_to_bsr(extreme(rng, (n, k), -127), mask)
    return indptr, indices, tiles
