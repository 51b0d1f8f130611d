"""Tiles of 16 outputs x 4 inputs: views of a matrix by tile, and block-sparse storage.

Storage is that of `approxrt.artifact.spec.encoder`: CSR over tiles. A matrix whose
sides are no multiples of the tile is padded with zeros.
"""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import TILE_K, TILE_N


def grid(n: int, k: int) -> tuple[int, int]:
    """Return (strips, columns): the tiles that cover an [n, k] matrix."""
    return -(-n // TILE_N), -(-k // TILE_K)


def to_tiles(matrix: np.ndarray) -> np.ndarray:
    """[N, K] -> [strips, columns, 16, 4], padded with zeros; same dtype."""
    n, k = matrix.shape
    strips, columns = grid(n, k)
    if (strips * TILE_N, columns * TILE_K) != (n, k):
        padded = np.zeros((strips * TILE_N, columns * TILE_K), matrix.dtype)
        padded[:n, :k] = matrix
        matrix = padded
    return matrix.reshape(strips, TILE_N, columns, TILE_K).transpose(0, 2, 1, 3)


def expand_mask(mask: np.ndarray, n: int, k: int) -> np.ndarray:
    """bool[strips, columns] over tiles -> bool[N, K] over elements."""
    return np.repeat(np.repeat(mask, TILE_N, axis=0)[:n], TILE_K, axis=1)[:, :k]


def dense_to_bsr(q: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (tiles i8[nnz, 16, 4], indices u16[nnz], indptr i32[strips + 1]) of the tiles that `mask` keeps.

    `q` is i8[N, K]; `mask` is bool[strips, columns]. A kept tile may be all zero:
    it is stored, as the mask says.
    """
    if mask.shape != grid(*q.shape):
        raise ValueError(f"mask {mask.shape} does not cover a {q.shape} matrix; {grid(*q.shape)} tiles do")
    tiles = np.ascontiguousarray(to_tiles(q)[mask])
    indices = np.nonzero(mask)[1].astype(np.uint16)
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return tiles, indices, indptr


def bsr_to_dense(tiles: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n: int, k: int) -> np.ndarray:
    """The [n, k] matrix, zeros where no tile is stored; dtype of `tiles`."""
    strips, columns = grid(n, k)
    full = np.zeros((strips, columns, TILE_N, TILE_K), tiles.dtype)
    full[np.repeat(np.arange(strips), np.diff(indptr)), indices] = tiles
    return np.ascontiguousarray(full.transpose(0, 2, 1, 3).reshape(strips * TILE_N, columns * TILE_K)[:n, :k])
