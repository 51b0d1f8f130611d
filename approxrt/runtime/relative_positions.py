"""Attention biases by relative position: a table over buckets of distances, and what it says of every distance.

MPNet (Song et al. 2020, arXiv 2004.09297) adds T5's bias (Raffel et al. 2020, arXiv 1910.10683, section 2.1) to the
scores of every layer: a number for a head and a bucket of j - i. An artifact holds the table, which is small and loses
rows with pruned heads; engines read it expanded to every distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec


def relative_buckets(relative: np.ndarray, buckets: int, distance: int) -> np.ndarray:
    """Return the bucket of each j - i (key less query), of any shape, as int64.

    Half of the buckets are for keys before the query and itself, half for those behind it. Half of each are for the
    nearest, one by one; the others widen with the logarithm of |j - i| up to `distance`, and the last has all beyond.
    In float32, as in transformers' MPNetEncoder.relative_position_bucket: the same rounding decides at the edges.
    """
    half = buckets // 2
    exact = half // 2
    n = np.abs(relative).astype(np.int64)
    ratio = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(distance / exact))
    wide = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(relative > 0, half, 0) + np.where(n < exact, n, wide)


def distance_buckets(spec: ModelSpec, positions: int | None = None) -> np.ndarray:
    """Return the buckets of j - i from 1 - positions to positions - 1; positions: the most that the model has."""
    n = spec.max_positions if positions is None else positions
    return relative_buckets(np.arange(1 - n, n), spec.relative_buckets, spec.relative_distance)


def expanded_biases(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Return (name, f32[num_heads, 2 max_positions - 1] over j - i from 1 - max_positions) of every layer's table."""
    if not spec.relative_buckets:
        return
    columns = distance_buckets(spec)
    for i, layer in enumerate(spec.layers):
        if layer.has_attention:
            name = f"layers.{i}.attention.relative_bias"
            yield name, np.ascontiguousarray(tensors[name][:, columns], np.float32)
