"""Values of int4 tensors: every nibble and group scale in range, paddings zero, vectorised.

The kernels trust what passes here: with |q4| <= 7 and m <= 18 their 16-bit sums
and 8-bit products cannot overflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from approxrt.artifact.spec.formats import GROUP_TILES, MAX_GROUP_SCALE, TILE_K, TILE_N

# Bytes looked at in one go: the copies that a test makes stay in the L2 cache.
_BLOCK = 1 << 17
_ZEROS = 0x88  # two weights of 0


def nibble_faults(name: str, packed: np.ndarray) -> Iterator[str]:
    """Nibbles of 0: 1 to 15 stand for -7 to 7."""
    flat = packed.reshape(-1)
    bad = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        # The high nibble is 0 below 16; the low one where the byte, moved up by 4 bits, is 0.
        if block.min() < 16 or (block << 4).min() == 0:
            bad += int(np.count_nonzero(block < 16) + np.count_nonzero(block & 15 == 0))
    if bad:
        yield f"tensor {name!r} has {bad} nibbles of 0; 1 to 15 stand for weights of -7 to 7"


def row_faults(name: str, packed: np.ndarray, k: int) -> Iterator[str]:
    """Faults of `q4` u8[N, ceil(k / 2)]."""
    yield from nibble_faults(name, packed)
    if k % 2 and np.any(packed[:, -1] >> 4 != 8):
        yield f"tensor {name!r} has weights past input {k}; the surplus nibble of a row must be 8"


def scale_faults(name: str, scales: np.ndarray, highest: int = MAX_GROUP_SCALE) -> Iterator[str]:
    """Group scales outside 1 to `highest`."""
    if scales.size and (scales.min() < 1 or scales.max() > highest):
        outside = (scales < 1) | (scales > highest)
        first = int(np.argmax(outside))
        yield (
            f"tensor {name!r} has {int(np.count_nonzero(outside))} group scales outside 1 to {highest} "
            f"(the first is {scales.reshape(-1)[first]} at {first})"
        )


def tile_padding_faults(
    name: str, tiles4: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
) -> Iterator[str]:
    """Weights past the matrix of `shape` in `tiles4` u8[nnz, 16, 2] whose indices are sound."""
    n, k = shape
    if n % TILE_N and np.any(tiles4[indptr[-2] :, n % TILE_N :, :] != _ZEROS):
        yield f"tensor '{name}.tiles4' has nonzero weights in rows past output {n}; padding must be nibbles of 8"
    rest = k % TILE_K
    if rest:
        last = tiles4[indices == -(-k // TILE_K) - 1]
        bytes_past, half = last[:, :, -(-rest // 2) :], last[:, :, rest // 2] >> 4
        if np.any(bytes_past != _ZEROS) or (rest % 2 and np.any(half != 8)):
            yield f"tensor '{name}.tiles4' has nonzero weights in columns past input {k}; padding must be nibbles of 8"


def group_count(indptr: np.ndarray) -> int:
    """Rows of `group_scale`: each strip's stored tiles by eights, the last ones may be fewer."""
    return int((-(-np.diff(indptr.astype(np.int64)) // GROUP_TILES)).sum())
