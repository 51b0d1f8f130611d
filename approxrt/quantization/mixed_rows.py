"""Embedding tables of two bits a weight, and of four in the rows that matter more (kind `s2` of
`approxrt.artifact.spec.encoder`).

Which rows those are is for the task's texts to say: a table is a large part of a small model, and most of its rows are
words that the task hardly uses. Two bits are four levels, +-1 and +-3 halves of a step, one step for 32 weights: about
a tenth of a row's energy is lost (0.119 for normal weights at the best step, Max 1960, doi 10.1109/TIT.1960.1057548).
"""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS, MAX_ROW_GROUP_SCALE
from approxrt.artifact.storage.groupwise import pack_quarters
from approxrt.artifact.storage.mixed_rows import NAME
from approxrt.quantization.int4 import quantize_rows4

# Of a group's largest weight: where the outer levels may lie.
_OUTER = np.linspace(0.4, 1.0, 13, dtype=np.float32)
_FITS = 2  # rounds of least squares, step against levels
_BLOCK = 1 << 11  # rows worked on in one go


def quantize_mixed(words: np.ndarray, wide: np.ndarray) -> dict[str, np.ndarray]:
    """f32[V, E], ids i[F] ascending -> the tensors of kind s2, by their full names."""
    rest = np.setdiff1d(np.arange(len(words)), wide)
    groups = -(-words.shape[1] // GROUP_WEIGHTS)
    group_scale, scale = np.empty((len(words), groups), np.uint8), np.empty(len(words), np.float32)
    q4, group_scale[wide], scale[wide] = quantize_rows4(words[wide], MAX_ROW_GROUP_SCALE)
    q2 = np.empty((len(rest), -(-words.shape[1] // 4)), np.uint8)
    for begin in range(0, len(rest), _BLOCK):
        rows = rest[begin : begin + _BLOCK]
        q2[begin : begin + len(rows)], group_scale[rows], scale[rows] = quantize_rows2(words[rows])
    parts = {"q2": q2, "q4": q4, "wide": wide.astype(np.int32), "group_scale": group_scale, "scale": scale}
    return {f"{NAME}.{part}": array for part, array in parts.items()}


def quantize_rows2(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32[N, K] -> (q2 u8[N, ceil(K / 4)], group_scale u8[N, ceil(K / 32)], scale f32[N]).

    By squared error: each group's step of a few, then fitted to the levels that its weights took. The scale of an
    all-zero row is so small that its weights, which have no level of 0, vanish.
    """
    n, k = words.shape
    per_row = -(-k // GROUP_WEIGHTS)
    groups = np.zeros((n, per_row * GROUP_WEIGHTS), np.float32)
    groups[:, :k] = words
    groups = groups.reshape(n, per_row, GROUP_WEIGHTS)
    # Columns behind K are no weights: they must not have a say in the step.
    real = (np.arange(per_row * GROUP_WEIGHTS) < k).reshape(per_row, GROUP_WEIGHTS).astype(np.float32)
    # Relative to the row's largest, so that squares of tiny and huge weights are float32, too.
    unit = np.abs(words).max(axis=1, initial=0)
    unit[unit == 0] = 1
    groups = groups / unit[:, None, None]
    peak = np.abs(groups).max(axis=2)
    best, step = np.full(peak.shape, np.inf, np.float32), np.zeros_like(peak)
    for outer in _OUTER:
        trial = peak * (outer / 3)
        for fit in range(_FITS + 1):
            levels = _levels(groups, trial) * real
            error = np.square(groups - levels * trial[:, :, None]).sum(axis=2)
            better = error < best
            best[better], step[better] = error[better], trial[better]
            if fit < _FITS:
                trial = (groups * levels).sum(axis=2) / np.maximum(np.square(levels).sum(axis=2), 1)
    scale = step.max(axis=1) / MAX_ROW_GROUP_SCALE
    m = np.clip(
        np.rint(np.divide(step, scale[:, None], out=np.ones_like(step), where=scale[:, None] > 0)),
        1,
        MAX_ROW_GROUP_SCALE,
    )
    q = ((_levels(groups, m * scale[:, None]) + 3) / 2).astype(np.uint8).reshape(n, -1)[:, :k]
    return pack_quarters(q), m.astype(np.uint8), np.maximum(scale * unit, np.finfo(np.float32).tiny)


def frequent_rows(counts: np.ndarray, share: float) -> np.ndarray:
    """i64[F], ascending: the fewest rows that make up `share` of all uses. counts i64[V]: how often each is used."""
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order])
    enough = int(np.searchsorted(covered, share * covered[-1])) + 1 if len(covered) and covered[-1] else 0
    return np.sort(order[:enough][counts[order[:enough]] > 0])


def _levels(groups: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The nearest of -3, -1, 1, 3 times each group's step, f32[N, G, 32]."""
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    nearest = 2 * np.floor(groups * (inverse[:, :, None] * np.float32(0.5))) + 1
    levels: np.ndarray = np.clip(nearest, -3, 3)
    return levels
