"""Decide on the host what a decoder's step on the GPU is made of: rows of the cache, buckets, one block of integers.

Pure functions and bookkeeping, without torch. A step appends tokens to several sequences. Where each gets one, it is a
`decode` step (kernels/cached_attention.py), else a `prompt` step (kernels/attention.py, causal). As in `gpu_plan`,
sizes are rounded up to buckets, and the integers travel in one int32 block:

    ids [tokens] | positions [tokens] | slots [tokens] | outputs [outputs] | work [items, fields]

`slots` are the tokens' rows of the cache, `outputs` the rows whose logits are wanted, `work` the table of the attention
kernel at hand. What pads a step writes its keys to row 0 of the cache, which no sequence has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.runtime.cuda.plan import TILE_FIELDS, attention_tiles, round_tokens

PART = 256  # kernels/cached_attention.py
TABLE_FIELDS = 3
SPARE_ROWS = 1


@dataclass(frozen=True)
class StepBucket:
    """The sizes that one CUDA graph is captured for; `parts` is 0 for a prompt step, whose items are tiles."""

    tokens: int
    outputs: int
    items: int
    parts: int

    @property
    def fields(self) -> int:
        return TABLE_FIELDS if self.parts else TILE_FIELDS

    @property
    def integers(self) -> int:
        """Length of the step's block of int32."""
        return 3 * self.tokens + self.outputs + self.fields * self.items


def step_bucket(new: Sequence[int], before: Sequence[int], block_m: int, all_logits: bool) -> StepBucket:
    """The bucket of a step that appends new[i] tokens to a sequence of before[i]."""
    sequences = _power_of_2(len(new))
    if all(count == 1 for count in new):
        parts = _power_of_2(-(-(max(before) + 1) // PART))
        return StepBucket(sequences, sequences, sequences, parts)
    tokens = round_tokens(sum(new))
    # One more tile for the padding, as in `gpu_plan.bucket_of`.
    return StepBucket(tokens, tokens if all_logits else sequences, tokens // block_m + sequences + 1, 0)


@dataclass(frozen=True)
class StepViews:
    """The parts of a step's block: views of one array of numpy or one tensor."""

    ids: Any
    positions: Any
    slots: Any
    outputs: Any
    work: Any

    @staticmethod
    def of(block: Any, bucket: StepBucket) -> StepViews:
        """Views of `block` [bucket.integers]."""
        tokens = bucket.tokens
        at = 3 * tokens + bucket.outputs
        return StepViews(
            block[:tokens],
            block[tokens : 2 * tokens],
            block[2 * tokens : 3 * tokens],
            block[3 * tokens : at],
            block[at : at + bucket.fields * bucket.items].reshape(-1, bucket.fields),
        )


def fill_step(
    block: np.ndarray,
    bucket: StepBucket,
    ids: Sequence[Sequence[int]],
    before: Sequence[int],
    first_rows: Sequence[int],
    block_m: int,
    all_logits: bool,
) -> int:
    """Write a step into `block`: ids[i] follow before[i] tokens whose cache starts at first_rows[i].

    Returns how many outputs are real; they come first.
    """
    block[:] = 0
    views = StepViews.of(block, bucket)
    counts = [len(run) for run in ids]
    total = sum(counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    views.ids[:total] = np.concatenate([np.asarray(run, np.int32) for run in ids])
    for i, count in enumerate(counts):
        at = slice(starts[i], starts[i + 1])
        views.positions[at] = before[i] + np.arange(count)
        views.slots[at] = first_rows[i] + views.positions[at]
    outputs = np.arange(total) if all_logits and not bucket.parts else starts[1:] - 1
    views.outputs[: len(outputs)] = outputs
    if bucket.parts:
        for i in range(len(counts)):
            views.work[i] = i, first_rows[i], before[i] + 1
        # Padding has tokens of its own and no keys.
        views.work[len(counts) :, 0] = np.arange(len(counts), bucket.items)
        return len(outputs)
    rows = 0
    for i, count in enumerate(counts):
        tiles = attention_tiles([count], block_m)
        tiles[:, 0] += starts[i]
        tiles[:, 2], tiles[:, 3] = first_rows[i], before[i] + count
        tiles[:, 4] += before[i]
        views.work[rows : rows + len(tiles)] = tiles
        rows += len(tiles)
    for first in range(total, bucket.tokens, block_m):
        views.work[rows] = first, min(block_m, bucket.tokens - first), 0, 0, 0
        rows += 1
    return len(outputs)


class RowPool:
    """Know which rows of the cache belong to whom: runs of rows, first fit. `give_back` may be called at any moment."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._free = [(SPARE_ROWS, rows)]  # [begin, end), ascending, never adjacent
        # A cache is collected whenever Python likes, even while `take` runs: what comes back waits here.
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, count: int) -> int | None:
        """The first of `count` rows in one piece, or None where there are none."""
        self._merge()
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= count:
                self._free[i : i + 1] = [(begin + count, end)] if end - begin > count else []
                return begin
        return None

    def give_back(self, begin: int, count: int) -> None:
        """Rows that `take` gave."""
        self._returned.append((begin, begin + count))

    @property
    def free(self) -> int:
        """Return how many rows are nobody's."""
        self._merge()
        return sum(end - begin for begin, end in self._free)

    def _merge(self) -> None:
        runs = self._free
        while self._returned:
            runs = [*runs, self._returned.popleft()]
        merged: list[tuple[int, int]] = []
        for low, high in sorted(runs):
            if merged and merged[-1][1] == low:
                merged[-1] = merged[-1][0], high
            else:
                merged.append((low, high))
        self._free = merged


def _power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()
