"""Choose the tiles to keep by magnitude alone: the baseline criterion, which needs no data.

A tile's score is its energy, the sum of its squared weights. Tiles at an edge
have fewer weights and score less; they also cost as much to run as full ones.

Two scopes:

  linear   (default) every linear keeps the same share of its own tiles. Scales of
           weights differ between layers for reasons that have nothing to do with
           importance (layer norms rescale what follows), so energies of two
           linears are not comparable, and no linear can be emptied.
  global   one threshold over all linears. Comparable only for models whose layers
           have similar weight scales; every linear keeps at least one tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.artifact.spec.formats import TILE_K, TILE_N
from approxrt.artifact.storage.bsr import to_tiles

Scope = Literal["linear", "global"]


def tile_scores(weight: np.ndarray) -> np.ndarray:
    """f32[N, K] -> f32[strips, columns]: the sum of squares of each 16x4 tile."""
    tiles = to_tiles(np.asarray(weight, np.float32))
    return np.einsum("scij,scij->sc", tiles, tiles)


def prunable_linears(spec: AnySpec) -> list[str]:
    """The layers' linears: not the head's, not the embeddings' projection."""
    return [name for name, _ in spec.linears() if name.startswith("layers.")]


def prune_tiles(
    spec: AnySpec,
    tensors: Mapping[str, np.ndarray],
    density: float,
    scope: Scope = "linear",
    block: tuple[int, int] = (TILE_N, TILE_K),
) -> dict[str, np.ndarray]:
    """Masks bool[strips, columns] of the tiles to keep, by linear.

    Tiles are kept or dropped by whole blocks of `block` outputs x inputs (multiples of a tile): a GPU's tensor cores
    need larger ones than a CPU.

    `density` in (0, 1] is the share of tiles kept, rounded to whole tiles (at
    least one): per linear or over all, as `scope` says. Of equal scores the
    first tile in row-major order stays. Tensors are those of an all-f32 spec.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must be over 0 and at most 1")
    scores = {name: tile_scores(tensors[f"{name}.weight"]) for name in prunable_linears(spec)}
    masks = _choose({name: block_sums(score, block) for name, score in scores.items()}, density, scope)
    return {name: expand_blocks(mask, scores[name].shape, block) for name, mask in masks.items()}


def block_sums(scores: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Scores of 16x4 tiles summed over blocks; those at an edge may hold fewer tiles."""
    high, wide = block[0] // TILE_N, block[1] // TILE_K
    rows = np.add.reduceat(scores, np.arange(0, scores.shape[0], high), axis=0)
    return np.add.reduceat(rows, np.arange(0, scores.shape[1], wide), axis=1)


def expand_blocks(mask: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """bool over blocks -> bool[strips, columns] over 16x4 tiles."""
    high, wide = block[0] // TILE_N, block[1] // TILE_K
    return np.repeat(np.repeat(mask, high, axis=0)[: shape[0]], wide, axis=1)[:, : shape[1]]


def _choose(scores: Mapping[str, np.ndarray], density: float, scope: Scope) -> dict[str, np.ndarray]:
    if scope == "linear":
        return {name: _keep(score.ravel(), density).reshape(score.shape) for name, score in scores.items()}
    if scope != "global":
        raise ValueError(f"scope is {scope!r}; it must be linear or global")
    if not scores:  # every block is removed
        return {}
    kept = _keep(np.concatenate([score.ravel() for score in scores.values()]), density)
    masks: dict[str, np.ndarray] = {}
    start = 0
    for name, score in scores.items():
        masks[name] = kept[start : start + score.size].reshape(score.shape)
        start += score.size
        if not masks[name].any():
            masks[name].flat[np.argmax(score)] = True
    return masks


def _keep(scores: np.ndarray, density: float) -> np.ndarray:
    """bool over `scores`: the largest share `density` of them."""
    count = max(1, round(density * scores.size))
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask
