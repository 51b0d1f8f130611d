"""Decide on the host what a forward pass on the GPU is made of: buckets, tiles of queries, one block of integers.

Pure functions of lengths, without torch. A CUDA graph replays fixed sizes, so a pass is rounded up to a bucket of
tokens and sequences; what pads it belongs to no sequence, and attention and pooling never see it. All integers of a
pass travel in one int32 block, one copy from pinned memory:

    ids [tokens] | positions [tokens] | types [tokens] | cu_seqlens [sequences + 1] | attention tiles [tiles, 5]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Tokens of a pass. Hidden states, queries, keys, values and a 4-fold FFN of this many tokens of a 768-wide model take
# about 150 MB in float16.
TOKEN_BUDGET = 16384
SMALLEST_BUCKET = 16
TILE_FIELDS = 5  # kernels/attention.py


@dataclass(frozen=True)
class Bucket:
    """The sizes that one CUDA graph is captured for."""

    tokens: int
    sequences: int
    tiles: int

    @property
    def integers(self) -> int:
        """Length of the pass's block of int32."""
        return 3 * self.tokens + self.sequences + 1 + TILE_FIELDS * self.tiles


def round_tokens(tokens: int) -> int:
    """The bucket size at or above `tokens`: eight steps to each doubling, so that less than an eighth is padding.

    Below 128 the steps are 16, the least rows that an mma instruction has.
    """
    step = max(SMALLEST_BUCKET, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-max(tokens, 1) // step) * step


def bucket_of(lengths: Sequence[int], block_m: int) -> Bucket:
    """The bucket of a pass over sequences of these lengths, whose queries are cut by `block_m`."""
    tokens = round_tokens(sum(lengths))
    sequences = 1 << (len(lengths) - 1).bit_length()
    # sum of ceil(l / block_m) < tokens / block_m + sequences, where the padding is one sequence more
    return Bucket(tokens, sequences, tokens // block_m + sequences + 1)


def attention_tiles(lengths: Sequence[int], block_m: int) -> np.ndarray:
    """i32 [tiles, 5], longest sequences first: see kernels/attention.py. Sequences lie one after the other.

    Programs start in the table's order, so the tiles that take longest start first.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = [
        (starts[i] + first, min(block_m, lengths[i] - first), starts[i], lengths[i], first)
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i])
        for first in range(0, lengths[i], block_m)
    ]
    return np.array(rows, np.int32).reshape(-1, TILE_FIELDS)


@dataclass(frozen=True)
class PassViews:
    """The parts of a pass's block of int32: views of one array of numpy or one tensor."""

    ids: Any
    positions: Any
    types: Any
    cu_seqlens: Any
    tiles: Any

    @staticmethod
    def of(block: Any, bucket: Bucket) -> PassViews:
        """Views of `block` [bucket.integers]."""
        tokens = bucket.tokens
        at = 3 * tokens + bucket.sequences + 1
        return PassViews(
            block[:tokens],
            block[tokens : 2 * tokens],
            block[2 * tokens : 3 * tokens],
            block[3 * tokens : at],
            block[at : at + TILE_FIELDS * bucket.tiles].reshape(-1, TILE_FIELDS),
        )


def fill_pass(
    block: np.ndarray,
    bucket: Bucket,
    ids: Sequence[np.ndarray],
    types: Sequence[np.ndarray] | None,
    block_m: int,
) -> None:
    """Write a pass over the sequences `ids` into `block` i32 [bucket.integers].

    Padding: token 0 at position 0, sequences of no tokens, and tiles whose queries have no keys, which attention
    answers with zeros: what is computed for them is finite.
    """
    lengths = [len(sequence) for sequence in ids]
    total = sum(lengths)
    block[:] = 0
    views = PassViews.of(block, bucket)
    np.concatenate(ids, out=views.ids[:total])
    np.concatenate([np.arange(n, dtype=np.int32) for n in lengths], out=views.positions[:total])
    if types is not None:
        np.concatenate(types, out=views.types[:total])
    views.cu_seqlens[1 : len(ids) + 1] = np.cumsum(lengths)
    views.cu_seqlens[len(ids) + 1 :] = total
    tiles = attention_tiles(lengths, block_m)
    views.tiles[: len(tiles)] = tiles
    for i, first in enumerate(range(total, bucket.tokens, block_m), len(tiles)):
        views.tiles[i] = first, min(block_m, bucket.tokens - first), 0, 0, 0
