"""Weights with a float16 scale (and offset) for 32 of them, the kinds g4, g6 and g8 (`approxrt.artifact.spec.encoder`).

  g4   W[o, i] = d[o, i/32] * q4 + m[o, i/32]     q4 in [0, 15]; Q4_0 and Q4_1 of .gguf files are of this form
  g6   W[o, i] = d[o, i/32] * (q - 32)            q in [0, 63], as 4 and 2 bits
  g8   W[o, i] = d[o, i/32] * q                   q in [-128, 127]; so is Q8_0

Rounding needs no data: g4 takes, a group, the least squared error among some intervals, each followed by the line that
fits best through what it rounds to; g6 tries some scales; g8 takes the group's largest weight as 127.
"""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import pack_quarters, pack_unsigned

# Shares of a group's interval, about its middle: what lies outside is clipped and the rest has finer steps.
INTERVALS = (1.0, 0.92, 0.84)
# What the largest weight of a group becomes in six bits.
SIXES = (-32, -33, -31, 31)
LARGEST_HALF = np.float32(65504)

# Weights worked on in one go: what is computed of them stays in the L2 cache.
_BLOCK = 1 << 16


def quantize_groups4(weight: np.ndarray) -> dict[str, np.ndarray]:
    """f32[N, K] -> q4 u8[N, ceil(K / 2)], group_scale and group_offset f16[N, ceil(K / 32)]."""
    n, k = weight.shape
    groups, counts = _in_groups(weight)
    d, m = (np.empty(len(groups), np.float16) for _ in range(2))
    q = np.empty(groups.shape, np.uint8)
    step = max(1, _BLOCK // GROUP_WEIGHTS)
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        q[part], d[part], m[part] = _best_line(groups[part], counts[part])
    return {
        "q4": pack_unsigned(q.reshape(n, -1)[:, :k]),
        "group_scale": d.reshape(n, -1),
        "group_offset": m.reshape(n, -1),
    }


def quantize_groups8(weight: np.ndarray) -> dict[str, np.ndarray]:
    """f32[N, K] -> q i8[N, K], group_scale f16[N, ceil(K / 32)]."""
    n, k = weight.shape
    groups, _ = _in_groups(weight)
    d = _half(np.abs(groups).max(axis=1, initial=0) / np.float32(127))
    q = np.clip(np.rint(groups * _inverse(d)[:, None]), -127, 127).astype(np.int8)
    return {"q": np.ascontiguousarray(q.reshape(n, -1)[:, :k]), "group_scale": d.reshape(n, -1)}


def quantize_groups6(weight: np.ndarray) -> dict[str, np.ndarray]:
    """f32[N, K] -> q4 u8[N, ceil(K / 2)], q2 u8[N, ceil(K / 4)], group_scale f16[N, ceil(K / 32)]."""
    n, k = weight.shape
    groups, counts = _in_groups(weight)
    d = np.empty(len(groups), np.float16)
    q = np.empty(groups.shape, np.uint8)
    step = max(1, _BLOCK // GROUP_WEIGHTS)
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        block = groups[part]
        largest = block[np.arange(len(block)), np.abs(block).argmax(axis=1)]
        best = np.full(len(block), np.inf, np.float32)
        for ends in SIXES:
            # The largest weight at an end: -32 is one step further than 31.
            tried = _half(largest / np.float32(ends))
            rounded = np.clip(np.rint(block * _inverse(tried)[:, None]), -32, 31)
            error = block - rounded * tried.astype(np.float32)[:, None]
            squared = np.einsum("gi,gi->g", error, error)
            better = squared < best
            best[better], d[part][better] = squared[better], tried[better]
            q[part][better] = (rounded[better] + 32).astype(np.uint8)
    q[np.arange(GROUP_WEIGHTS) >= counts[:, None]] = 0
    flat = q.reshape(n, -1)[:, :k]
    return {"q4": pack_unsigned(flat & 15), "q2": pack_quarters(flat >> 4), "group_scale": d.reshape(n, -1)}


def _in_groups(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (f32[N * ceil(K / 32), 32] with zeros behind K, how many weights each group has)."""
    n, k = weight.shape
    per_row = -(-k // GROUP_WEIGHTS)
    groups = np.zeros((n, per_row * GROUP_WEIGHTS), np.float32)
    groups[:, :k] = weight
    counts = np.full((n, per_row), GROUP_WEIGHTS)
    counts[:, -1] = k - (per_row - 1) * GROUP_WEIGHTS
    return groups.reshape(-1, GROUP_WEIGHTS), counts.reshape(-1)


def _best_line(groups: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (q u8[G, 32], d f16[G], m f16[G])."""
    real = np.arange(GROUP_WEIGHTS) < counts[:, None]
    low = np.where(real, groups, np.inf).min(axis=1)
    high = np.where(real, groups, -np.inf).max(axis=1)
    middle, width = (high + low) / 2, high - low
    best = np.full(len(groups), np.inf, np.float32)
    q, d, m = np.zeros(groups.shape, np.uint8), np.zeros(len(groups), np.float16), np.zeros(len(groups), np.float16)
    for share in INTERVALS:
        step = width * np.float32(share / 15)
        tried = (_half(step), _half(middle - step * np.float32(7.5)))
        for _ in range(2):
            nearest = _nearest(groups, *tried)
            error = groups - (nearest * tried[0].astype(np.float32)[:, None] + tried[1].astype(np.float32)[:, None])
            squared = np.einsum("gi,gi->g", error * real, error)
            better = squared < best
            best[better], q[better] = squared[better], nearest[better]
            d[better], m[better] = tried[0][better], tried[1][better]
            tried = _line(groups, nearest.astype(np.float32), real, counts)
    q[~real] = 0
    return q, d, m


def _line(groups: np.ndarray, q: np.ndarray, real: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line d * q + m through the weights that is best by least squares."""
    mean_q, mean_w = (q * real).sum(1) / counts, groups.sum(1) / counts
    centred = (q - mean_q[:, None]) * real
    variance = (centred * centred).sum(1)
    d = (centred * groups).sum(1) / np.where(variance > 0, variance, 1)
    return _half(d), _half(mean_w - d * mean_q)


def _nearest(groups: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    exact = (groups - m.astype(np.float32)[:, None]) * _inverse(d)[:, None]
    return np.clip(np.rint(exact), 0, 15).astype(np.uint8)


def _half(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)


def _inverse(d: np.ndarray) -> np.ndarray:
    wide = d.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
