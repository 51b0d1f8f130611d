"""Grids that a model brings along (kinds g4, g6, g8), while parts of it go and weights move.

A grid is the parts of a matrix by name, as in `approxrt.approx.groups`: integers with float16 scales, and for g4
offsets, of 32 inputs. A choice of rows keeps it to the bit, and so does a choice of columns by whole groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from approxrt.approx.gptq import offsets_of, steps_of, with_integers
from approxrt.approx.structure import Selection
from approxrt.artifact.spec import GROUP_WEIGHTS

Parts = Mapping[str, np.ndarray]
# What a matrix's tensors may be called, but for its bias.
PARTS = ("q", "q4", "q2", "scale", "group_scale", "group_offset", "tiles", "tiles4", "indices", "indptr")


def parts_of(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the quantised linear `name`, by their parts, without its bias."""
    return {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}


def selected(parts: Parts, selection: Selection) -> dict[str, np.ndarray] | None:
    """The grid of the rows or columns that stay; None where columns leave amid a group, or nothing stays."""
    if selection.indices is None:
        return None
    if selection.axis == 0:
        return {part: np.ascontiguousarray(array[selection.indices]) for part, array in parts.items()}
    groups = parts["group_scale"].shape[1]
    kept = np.asarray(selection.indices)
    if len(kept) % GROUP_WEIGHTS:
        return None
    first = kept[::GROUP_WEIGHTS]
    whole = (kept.reshape(-1, GROUP_WEIGHTS) == first[:, None] + np.arange(GROUP_WEIGHTS)).all()
    if not whole or (first % GROUP_WEIGHTS).any() or kept[-1] >= groups * GROUP_WEIGHTS:
        return None
    out = {}
    for part, array in parts.items():
        by_group = array.reshape(len(array), groups, -1)[:, first // GROUP_WEIGHTS]
        out[part] = np.ascontiguousarray(by_group.reshape(len(array), -1))
    return out


def nearest(weight: np.ndarray, parts: Parts, limits: tuple[int, int]) -> dict[str, np.ndarray]:
    """The parts with the integers, within `limits`, that stand nearest to f32[N, K]; scales and offsets stay."""
    n, k = weight.shape
    steps = steps_of(dict(parts), n, k).astype(np.float32)
    offsets = offsets_of(dict(parts), k).astype(np.float32)
    q = np.clip(np.rint((weight - offsets) / steps), *limits)
    return with_integers(dict(parts), q.astype(np.int8))
