"""Taking heads, FFN units and whole blocks out of a model for real: the matrices shrink.

What is taken out leaves its mean output as a bias: with x the inputs of a block's second linear (a head's context,
an FFN unit's activation), removing columns R of W adds W[:, R] E[x_R] to the bias. That is the best constant in the
least-squares sense, and where x_R is constant (a head or unit whose own weights are all pruned) it is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.artifact.spec.encoder import DENSE_ATTENTION, ModelSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS, TILE_N
from approxrt.artifact.storage.bsr import expand_mask, to_tiles

QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Structure:
    """What stays, by layer: indices of heads and of FFN units in their present order; empty removes the block."""

    heads: tuple[np.ndarray, ...]
    units: tuple[np.ndarray, ...]

    @staticmethod
    def of(spec: AnySpec) -> Structure:
        """All that there is."""
        return Structure(
            tuple(np.arange(layer.num_heads) for layer in spec.layers),
            tuple(np.arange(layer.intermediate_size) for layer in spec.layers),
        )

    def is_all_of(self, spec: AnySpec) -> bool:
        """Nothing is removed and nothing is moved."""
        whole = Structure.of(spec)
        return all(
            np.array_equal(a, b)
            for mine, theirs in ((self.heads, whole.heads), (self.units, whole.units))
            for a, b in zip(mine, theirs, strict=True)
        )


@dataclass(frozen=True)
class Selection:
    """How a tensor follows a structure: rows (axis 0) or columns (axis 1) `indices` stay; None deletes it."""

    axis: int
    indices: np.ndarray | None

    def apply(self, array: np.ndarray) -> np.ndarray | None:
        return None if self.indices is None else np.take(array, self.indices, axis=self.axis)


def head_rows(heads: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of query, key and value (columns of the output projection) that belong to `heads`."""
    return (np.asarray(heads)[:, None] * head_dim + np.arange(head_dim)).reshape(-1)


def selections(spec: ModelSpec, keep: Structure) -> dict[str, Selection]:
    """What happens to each tensor; tensors that are not named stay as they are."""
    out: dict[str, Selection] = {}
    for i, (layer, heads, units) in enumerate(zip(spec.layers, keep.heads, keep.units, strict=True)):
        if layer.num_heads and not _same(heads, layer.num_heads):
            rows = head_rows(heads, layer.head_dim) if len(heads) else None
            for part in QKV:
                out[f"layers.{i}.attention.{part}.weight"] = Selection(0, rows)
                out[f"layers.{i}.attention.{part}.bias"] = Selection(0, rows)
            out[f"layers.{i}.attention.output.weight"] = Selection(1, rows)
        if layer.intermediate_size and not _same(units, layer.intermediate_size):
            kept = units if len(units) else None
            out[f"layers.{i}.ffn.up.weight"] = Selection(0, kept)
            out[f"layers.{i}.ffn.up.bias"] = Selection(0, kept)
            out[f"layers.{i}.ffn.down.weight"] = Selection(1, kept)
    return out


def shrunk_spec(spec: ModelSpec, keep: Structure) -> ModelSpec:
    """The spec of what stays."""
    layers = []
    for layer, heads, units in zip(spec.layers, keep.heads, keep.units, strict=True):
        changes: dict[str, Any] = {"num_heads": len(heads), "intermediate_size": len(units)}
        if not len(heads):
            changes |= dict.fromkeys(("query", "key", "value", "attention_output"), "f32") | DENSE_ATTENTION
        if not len(units):
            changes |= dict.fromkeys(("ffn_up", "ffn_down"), "f32")
        layers.append(dataclasses.replace(layer, **changes))
    return dataclasses.replace(spec, layers=tuple(layers))


def mean_biases(
    spec: AnySpec, tensors: Mapping[str, np.ndarray], keep: Structure, means: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """New output biases: what the removed heads and units put out on average.

    means   E[x] of the inputs of "layers.i.attention.output" and "layers.i.ffn.down", f32[in_features]
    """
    out: dict[str, np.ndarray] = {}
    layers: tuple[Any, ...] = spec.layers
    for i, (layer, heads, units) in enumerate(zip(layers, keep.heads, keep.units, strict=True)):
        for name, kept, count in (
            (f"layers.{i}.attention.output", head_rows(heads, layer.head_dim), layer.num_heads * layer.head_dim),
            (f"layers.{i}.ffn.down", np.asarray(units), layer.intermediate_size),
        ):
            gone = np.setdiff1d(np.arange(count), kept)
            if len(gone):
                weight = tensors[f"{name}.weight"]
                out[f"{name}.bias"] = tensors[f"{name}.bias"] + weight[:, gone] @ means[name][gone]
    return out


def remove(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    keep: Structure,
    means: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray] | None = None,
) -> tuple[ModelSpec, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(spec, tensors, masks of tiles) of an all-f32 model without what `keep` leaves out."""
    out = dict(tensors) | mean_biases(spec, tensors, keep, means)
    chosen = selections(spec, keep)
    for name, selection in chosen.items():
        value = selection.apply(out[name])
        if value is None:
            del out[name]
        else:
            out[name] = value
    return shrunk_spec(spec, keep), out, shrink_masks(spec, masks or {}, chosen, tensors)


def shrink_masks(
    spec: ModelSpec,
    masks: Mapping[str, np.ndarray],
    chosen: Mapping[str, Selection],
    tensors: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Masks over the tiles of the shrunk matrices: a tile stays if any of its weights stayed."""
    out: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        selection = chosen.get(f"{name}.weight")
        if selection is None:
            out[name] = mask
            continue
        elements = selection.apply(expand_mask(mask, *tensors[f"{name}.weight"].shape))
        if elements is not None:
            out[name] = np.asarray(to_tiles(elements).any(axis=(2, 3)))
    return out


def unit_groups(count: int) -> np.ndarray:
    """i64[count]: the group of 16 (a strip of `ffn.up`) that each unit is in."""
    return np.arange(count) // TILE_N


def dead_structure(
    spec: ModelSpec, masks: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]]
) -> Structure:
    """What still has an effect that is not constant: heads and groups of units that some kept tile reads and feeds."""
    heads, units = [], []
    for i, layer in enumerate(spec.layers):
        at, inner = f"layers.{i}.", layer.num_heads * layer.head_dim
        alive = np.ones(inner, bool)
        for name, axis in ((f"{at}attention.value", 1), (f"{at}attention.output", 0)):
            if name in masks:
                alive &= expand_mask(masks[name], *shapes[name]).any(axis=axis)
        heads.append(np.flatnonzero(alive.reshape(layer.num_heads, layer.head_dim).any(axis=1)) if inner else _NONE)
        alive = np.ones(layer.intermediate_size, bool)
        for name, axis in ((f"{at}ffn.up", 1), (f"{at}ffn.down", 0)):
            if name in masks:
                alive &= expand_mask(masks[name], *shapes[name]).any(axis=axis)
        groups = unit_groups(layer.intermediate_size)
        living = np.unique(groups[alive])
        units.append(np.flatnonzero(np.isin(groups, living)) if layer.intermediate_size else _NONE)
    return Structure(tuple(heads), tuple(units))


_NONE = np.arange(0)


def _same(kept: np.ndarray, count: int) -> bool:
    return len(kept) == count and bool(np.array_equal(kept, np.arange(count)))


def selected(parts: Mapping[str, np.ndarray], selection: Selection) -> dict[str, np.ndarray] | None:
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
