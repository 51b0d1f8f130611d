"""Weights with a float16 scale (and offset) for 32 of them: how the formats g4, g6 and g8 lie in memory, and what they
say.

g4   W[o, i] = d[o, i/32] * q4 + m[o, i/32]     q4 in [0, 15]; Q4_0 and Q4_1 of .gguf files are of this form
g6   W[o, i] = d[o, i/32] * (q - 32)            q in [0, 63], as 4 and 2 bits
g8   W[o, i] = d[o, i/32] * q                   q in [-128, 127]; so is Q8_0
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS, LinearKind


def dequantize_groups(parts: Mapping[str, np.ndarray], k: int) -> np.ndarray:
    """f32[N, k] that the tensors of a g4, g6 or g8 matrix stand for; the one rounding is that of adding the offset."""
    d = np.repeat(parts["group_scale"].astype(np.float32), GROUP_WEIGHTS, axis=1)[:, :k]
    if "q" in parts:
        eights: np.ndarray = parts["q"] * d
        return eights
    if "q2" in parts:
        q = unpack_unsigned(parts["q4"], k) | unpack_quarters(parts["q2"], k) << 4
        sixes: np.ndarray = (q.astype(np.float32) - np.float32(32)) * d
        return sixes
    m = np.repeat(parts["group_offset"].astype(np.float32), GROUP_WEIGHTS, axis=1)[:, :k]
    fours: np.ndarray = unpack_unsigned(parts["q4"], k) * d + m
    return fours


def matrix_parts(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the g4, g6 or g8 matrix `name`, by their parts."""
    parts = ("q", "q4", "q2", "group_scale", "group_offset")
    return {part: tensors[f"{name}.{part}"] for part in parts if f"{name}.{part}" in tensors}


def kind_of(parts: Mapping[str, np.ndarray]) -> LinearKind:
    """g8 of q, g6 of q4 and q2, g4 of q4 alone."""
    return "g8" if "q" in parts else "g6" if "q2" in parts else "g4"


def pack_unsigned(q: np.ndarray) -> np.ndarray:
    """u8[N, K] in [0, 15] -> u8[N, ceil(K / 2)], the even one in the low nibble; an odd K ends with a nibble of 0."""
    if q.shape[1] % 2:
        q = np.concatenate([q, np.zeros((len(q), 1), np.uint8)], axis=1)
    packed: np.ndarray = q[:, 0::2] | (q[:, 1::2] << 4)
    return packed


def unpack_unsigned(packed: np.ndarray, k: int) -> np.ndarray:
    """u8[N, ceil(k / 2)] -> u8[N, k]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :k]


def pack_quarters(q: np.ndarray) -> np.ndarray:
    """u8[N, K] in [0, 3] -> u8[N, ceil(K / 4)], the first of four in the low bits."""
    q = np.pad(q, ((0, 0), (0, -q.shape[1] % 4)))
    packed: np.ndarray = q[:, 0::4] | q[:, 1::4] << 2 | q[:, 2::4] << 4 | q[:, 3::4] << 6
    return packed


def unpack_quarters(packed: np.ndarray, k: int) -> np.ndarray:
    """u8[N, ceil(k / 4)] -> u8[N, k]."""
    fields = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return fields.reshape(len(packed), 4 * packed.shape[1])[:, :k]
