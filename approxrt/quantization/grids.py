"""Grids that a model brings along (kinds g4, g6, g8), while parts of it go and weights move.

A grid is the parts of a matrix by name, as in `approxrt.quantization.groupwise`: integers with float16 scales, and for
g4 offsets, of 32 inputs. A choice of rows keeps it to the bit, and so does a choice of columns by whole groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from approxrt.quantization.gptq import offsets_of, steps_of, with_integers

Parts = Mapping[str, np.ndarray]
# What a matrix's tensors may be called, but for its bias.
PARTS = ("q", "q4", "q2", "scale", "group_scale", "group_offset", "tiles", "tiles4", "indices", "indptr")


def parts_of(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the quantised linear `name`, by their parts, without its bias."""
    return {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}


def nearest(weight: np.ndarray, parts: Parts, limits: tuple[int, int]) -> dict[str, np.ndarray]:
    """The parts with the integers, within `limits`, that stand nearest to f32[N, K]; scales and offsets stay."""
    n, k = weight.shape
    steps = steps_of(dict(parts), n, k).astype(np.float32)
    offsets = offsets_of(dict(parts), k).astype(np.float32)
    q = np.clip(np.rint((weight - offsets) / steps), *limits)
    return with_integers(dict(parts), q.astype(np.int8))
