"""Weights to int4 with two levels of scales, by squared error; no data needed.

W[o, i] ~ scale[o] * m * q4 with one m for a group of 32 weights (see
`approxrt.artifact.spec.encoder`): m is an integer, so the step of a group can only be a
multiple of its output's scale. Three searches, over all groups at once:

  1. each group's best step, as if it were free: the best clip ratio of max/7;
  2. the output's scale, of a few near (largest of these steps) / (largest m), with
     each m the nearest to its group's step. A scale below that clips the group of
     the largest step and is finer for all others;
  3. with that scale, m less and more by one.

Against the usual int4 (groups of 32, each with a float32 step of max/7), the mean
squared error is 0.90 of it for normal weights in rows of 384 and for most of
MiniLM's linears, 0.92 for those with rows of 1,536; with free float32 steps
search 1 alone would reach 0.89. A test holds the first figure.
"""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_TILES, GROUP_WEIGHTS, MAX_GROUP_SCALE, TILE_K, TILE_N
from approxrt.artifact.spec.int4_faults import group_count
from approxrt.artifact.storage.bsr import dense_to_bsr
from approxrt.artifact.storage.int4 import pack_nibbles, tile_groups

CLIP_RATIOS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
SCALE_FACTORS = (1.0, 1.06, 0.94, 1.13, 0.88, 0.8)

# Weights worked on in one go: what is computed of them stays in the L2 cache.
_BLOCK = 1 << 15

_SMALLEST = np.float32(np.finfo(np.float32).tiny)


def quantize_rows4(weight: np.ndarray, highest: int = MAX_GROUP_SCALE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32[N, K] -> (q4 u8[N, ceil(K / 2)], group_scale u8[N, ceil(K / 32)], scale f32[N]).

    Group scales are 1 to `highest`. The scale of an all-zero row is 1.
    """
    n, k = weight.shape
    per_row = -(-k // GROUP_WEIGHTS)
    groups = np.zeros((n, per_row * GROUP_WEIGHTS), np.float32)
    groups[:, :k] = weight
    starts = np.arange(n + 1) * per_row
    q, m, scale = quantize_groups(groups.reshape(n * per_row, 1, GROUP_WEIGHTS), starts, highest)
    return pack_nibbles(q.reshape(n, per_row * GROUP_WEIGHTS)[:, :k]), m.reshape(n, per_row), scale[:, 0]


def quantize_tiles4(weight: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The tiles of f32[N, K] that `mask` bool[strips, columns] keeps, as the tensors of a bsr_s4 linear.

    Groups are formed of kept tiles only, as they are stored; scales are chosen from those weights.
    """
    kept, indices, indptr = dense_to_bsr(np.asarray(weight, np.float32), mask)
    group, within = tile_groups(indptr), _place_in_group(indptr)
    groups = np.zeros((group_count(indptr), TILE_N, GROUP_TILES, TILE_K), np.float32)
    groups[group, :, within] = kept
    starts = np.concatenate([[0], np.cumsum(-(-np.diff(indptr) // GROUP_TILES))])
    q, m, scale = quantize_groups(groups.reshape(-1, TILE_N, GROUP_WEIGHTS), starts)
    tiles = q.reshape(groups.shape)[group, :, within]
    return {
        "tiles4": pack_nibbles(tiles),
        "group_scale": m,
        "indices": indices,
        "indptr": indptr,
        "scale": np.ascontiguousarray(scale.reshape(-1)[: len(weight)]),
    }


def quantize_groups(
    groups: np.ndarray, starts: np.ndarray, highest: int = MAX_GROUP_SCALE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32[G, C, 32] -> (q i8[G, C, 32], m u8[G, C], scale f32[R, C]).

    C outputs side by side; row r of them owns groups starts[r] .. starts[r+1]-1. Rows
    do not depend on each other; the scale of one that is zero or has no groups is 1.
    """
    count, columns, _ = groups.shape
    q = np.empty(groups.shape, np.int8)
    m = np.ones((count, columns), np.uint8)
    scale = np.ones((len(starts) - 1, columns), np.float32)
    rows = np.flatnonzero(np.diff(starts))
    limit = max(1, _BLOCK // (columns * GROUP_WEIGHTS))
    begin = 0
    while begin < len(rows):
        # As many rows as fit a block, at least one.
        end = max(begin + 1, int(np.searchsorted(starts[rows + 1], starts[rows[begin]] + limit, side="right")))
        first, last = starts[rows[begin]], starts[rows[end - 1] + 1]
        chosen = rows[begin:end]
        q[first:last], m[first:last], scale[chosen] = _quantize_block(
            groups[first:last], starts[chosen] - first, np.diff(starts)[chosen], highest
        )
        begin = end
    return q, m, scale


def _quantize_block(
    groups: np.ndarray, starts: np.ndarray, counts: np.ndarray, highest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`quantize_groups` of rows that all have groups."""
    peak = np.abs(groups).max(axis=2)
    row_peak = np.maximum.reduceat(peak, starts, axis=0)
    row_peak[row_peak == 0] = 1
    # Relative to the row's peak, so that squares of tiny weights do not underflow.
    whole = np.repeat(row_peak, counts, axis=0)
    relative, peak = groups / whole[:, :, None], peak / whole

    best = np.full(peak.shape, np.inf, np.float32)
    free = np.zeros(peak.shape, np.float32)
    for ratio in CLIP_RATIOS:
        step = peak * np.float32(ratio / 7)
        _keep_better(best, _errors(relative, step), (free, step))

    largest = np.maximum.reduceat(free, starts, axis=0)
    largest[largest == 0] = 1
    row_best = np.full(largest.shape, np.inf, np.float32)
    row_scale, m, best = np.empty_like(largest), np.empty_like(free), np.empty_like(free)
    for factor in SCALE_FACTORS:
        scale = largest * np.float32(factor / highest)
        spread = np.repeat(scale, counts, axis=0)
        trial = np.clip(np.rint(free / spread), 1, highest)
        error = _errors(relative, trial * spread)
        better = _keep_better(row_best, np.add.reduceat(error, starts, axis=0), (row_scale, scale))
        groups_better = np.repeat(better, counts, axis=0)
        m[groups_better], best[groups_better] = trial[groups_better], error[groups_better]

    spread, nearest = np.repeat(row_scale, counts, axis=0), m.copy()
    for change in (-1, 1):
        trial = np.clip(nearest + np.float32(change), 1, highest)
        _keep_better(best, _errors(relative, trial * spread), (m, trial))

    scale = np.maximum(row_scale * row_peak, _SMALLEST)
    zero = np.maximum.reduceat(peak, starts, axis=0) == 0
    scale[zero] = 1
    m[peak == 0] = 1
    step = m * np.repeat(scale, counts, axis=0)
    q = np.clip(np.rint(groups / step[:, :, None]), -7, 7).astype(np.int8)
    return q, m.astype(np.uint8), scale


def _errors(relative: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Squared error of each group [G, C] when its weights are rounded to multiples of `step` up to 7."""
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    exact = relative * inverse[:, :, None]
    rounded = np.rint(exact)
    np.clip(rounded, -7, 7, out=rounded)
    rounded -= exact
    return np.einsum("gci,gci->gc", rounded, rounded) * np.square(step)


def _keep_better(best: np.ndarray, error: np.ndarray, choice: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Take `error` and the new choice where it is below `best` and the new choice (in place); returns where. Ties
    stay."""
    better = error < best
    best[better] = error[better]
    kept, new = choice
    kept[better] = new[better]
    return better


def _place_in_group(indptr: np.ndarray) -> np.ndarray:
    """i64[nnz]: a tile's place, 0 to 7, in its group."""
    counts = np.diff(indptr).astype(np.int64)
    return (np.arange(counts.sum()) - np.repeat(indptr[:-1].astype(np.int64), counts)) % GROUP_TILES
