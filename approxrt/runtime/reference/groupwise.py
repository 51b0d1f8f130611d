"""The arithmetic of weights with float16 scales of groups (kinds g4, g6, g8) in numpy, float32 operation by operation.

csrc/args.h has the formula. Here it is for tests that compare bits, and for the float64 reference what activations
become. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import unpack_quarters, unpack_unsigned

MAX_SHIFT = 7
FLOOR = np.float32(1e-30)


def quantize_groups(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x f32[tokens, K] -> (a i8[tokens, G, 32], shifts i32[tokens, G], scales f32[tokens]); zeros behind K.

    x ~ scale * 2^shift * a. With m = max|x_t| and p the group's: shift = 7 - e, e the largest of 0 .. 7 with
    p * 2^e <= m; a = round_half_even(x * (127 / m) * 2^e); scale = m / 127 / 2^7.
    """
    tokens, k = x.shape
    groups = np.zeros((tokens, -(-k // GROUP_WEIGHTS), GROUP_WEIGHTS), np.float32)
    groups.reshape(tokens, -1)[:, :k] = x
    peaks = np.abs(groups).max(axis=2)
    most = peaks.max(axis=1)
    live = most > FLOOR
    doublings = (most.view(np.int32)[:, None] - peaks.view(np.int32)) >> 23
    e = np.minimum(doublings, MAX_SHIFT)
    inverse = np.where(live, np.float32(127) / np.where(live, most, np.float32(1)), np.float32(0))
    factor = inverse[:, None] * np.exp2(e).astype(np.float32)
    a = np.clip(np.rint(groups * factor[:, :, None]), -127, 127).astype(np.int8)
    scales = np.where(live, most * (np.float32(1) / np.float32(127)) * np.float32(2.0**-MAX_SHIFT), np.float32(0))
    return a, np.where(live[:, None], MAX_SHIFT - e, 0).astype(np.int32), scales


def dequantized_tokens(x: np.ndarray) -> np.ndarray:
    """f64[tokens, K]: what the engine reads of x f32[tokens, K], exactly."""
    a, shifts, scales = quantize_groups(x)
    wide = a.astype(np.float64) * np.exp2(shifts)[:, :, None] * scales.astype(np.float64)[:, None, None]
    return wide.reshape(len(x), -1)[:, : x.shape[1]]


def product(x: np.ndarray, parts: Mapping[str, np.ndarray], bias: np.ndarray) -> np.ndarray:
    """f32[tokens, N]: x f32[tokens, K] times a matrix by its parts, plus bias, to the last bit."""
    k = x.shape[1]
    a, shifts, scales = quantize_groups(x)
    d = parts["group_scale"].astype(np.float32)
    if "q" in parts:
        q, m = parts["q"].astype(np.int64) + 128, d * np.float32(-128)
    elif "q2" in parts:
        q = (unpack_unsigned(parts["q4"], k) | unpack_quarters(parts["q2"], k) << 4).astype(np.int64)
        m = d * np.float32(-32)
    else:
        q, m = unpack_unsigned(parts["q4"], k).astype(np.int64), parts["group_offset"].astype(np.float32)
    n, count = d.shape
    padded = np.zeros((n, count * GROUP_WEIGHTS), np.int64)
    padded[:, :k] = q
    q = padded.reshape(n, count, GROUP_WEIGHTS)
    total = np.zeros((len(x), n), np.float32)
    for g in range(count):
        inputs, power = a[:, g].astype(np.int64), np.int64(1) << shifts[:, g].astype(np.int64)
        total = fma(((inputs @ q[:, g].T) * power[:, None]).astype(np.float32), d[:, g], total)
        total = fma((inputs.sum(1) * power).astype(np.float32)[:, None], m[:, g], total)
    return fma(total, scales[:, None], bias)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c with one rounding.

    In float64 the product is exact and the sum is not; rounding it to odd (Boldo and Melquiond 2008) makes the second
    rounding, to float32, the only one that counts.
    """
    p, c = np.broadcast_arrays(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    total = p + c
    back = total - p
    error = (p - (total - back)) + (c - back)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    away = np.sign(error) == np.sign(total)
    odd = np.where((error != 0) & even, np.where(away, bits + 1, bits - 1), bits)
    rounded: np.ndarray = odd.view(np.float64).astype(np.float32)
    return rounded
