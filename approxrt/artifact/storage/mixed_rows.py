"""Embedding tables of two bits a weight, and of four in the rows that matter more: what the format s2 says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import unpack_quarters
from approxrt.artifact.storage.int4 import row_integers

NAME = "embeddings.word"


def mixed_integers(tensors: Mapping[str, np.ndarray], k: int) -> np.ndarray:
    """i16[V, k]: what `scale` multiplies in each row of a table of kind s2."""
    q2, q4, wide, m = (tensors[f"{NAME}.{part}"] for part in ("q2", "q4", "wide", "group_scale"))
    narrow = np.ones(len(m), bool)
    narrow[wide] = False
    out = np.empty((len(m), k), np.int16)
    out[wide] = row_integers(q4, m[wide], k)
    spread = np.repeat(m[narrow].astype(np.int16), GROUP_WEIGHTS, axis=1)[:, :k]
    out[narrow] = (2 * unpack_quarters(q2, k).astype(np.int16) - 3) * spread
    return out


def dequantize_mixed(tensors: Mapping[str, np.ndarray], k: int) -> np.ndarray:
    """f32[V, k]: the rows that a table of kind s2 stands for."""
    rows: np.ndarray = mixed_integers(tensors, k).astype(np.float32) * tensors[f"{NAME}.scale"][:, None]
    return rows
