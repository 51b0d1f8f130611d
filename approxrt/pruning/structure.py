"""Taking heads, FFN channels and whole blocks out of a model for real: the matrices shrink.

What is taken out leaves its mean output as a bias: with x the inputs of a block's second linear (a head's context,
an FFN channel's activation), removing columns R of W adds W[:, R] E[x_R] to the bias. That is the best constant in the
least-squares sense, and where x_R is constant (a head or unit whose own weights are all pruned) it is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec, DecoderLayerSpec, DecoderSpec
from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS, TILE_N
from approxrt.artifact.storage.bsr import expand_mask, to_tiles
from approxrt.errors import UnsupportedModelError

QKV = ("query", "key", "value")
GROUPS = 12  # of FFN channels a layer

Spec = TypeVar("Spec", ModelSpec, DecoderSpec)
AnyLayer = LayerSpec | DecoderLayerSpec


@dataclass(frozen=True)
class Structure:
    """Hold what stays, by layer: indices of heads and FFN channels in their present order; empty removes the block."""

    heads: tuple[np.ndarray, ...]
    channels: tuple[np.ndarray, ...]

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
            for mine, theirs in ((self.heads, whole.heads), (self.channels, whole.channels))
            for a, b in zip(mine, theirs, strict=True)
        )


@dataclass(frozen=True)
class Selection:
    """Say how a tensor follows a structure: rows (axis 0) or columns (axis 1) `indices` stay; None deletes it."""

    axis: int
    indices: np.ndarray | None

    def apply(self, array: np.ndarray) -> np.ndarray | None:
        return None if self.indices is None else np.take(array, self.indices, axis=self.axis)


def refuse_unprunable(spec: AnySpec, name: str, command: str) -> None:
    """Raise UnsupportedModelError for an encoder whose blocks cannot be judged and pruned one by one."""
    if not isinstance(spec, ModelSpec):
        return
    reasons = {
        f"runs {len(spec.layers)} shared layers in {len(spec.layer_order)} steps": bool(spec.layer_order),
        "has a gate in its feed-forward": spec.gated,
        "turns queries and keys by their positions": bool(spec.rope_theta),
    }
    if found := [reason for reason, there in reasons.items() if there]:
        raise UnsupportedModelError(
            f"{name!r} ({spec.architecture}) {' and '.join(found)}, and {command} judges and prunes every layer by "
            "itself, of BERT's kind: it is not supported; supported: `approxrt finetune`, and `approxrt convert` "
            "(--bits, --density), which treats a shared layer once for all its uses"
        )


def head_rows(heads: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of query, key and value (columns of the output projection) that belong to `heads`."""
    return (np.asarray(heads)[:, None] * head_dim + np.arange(head_dim)).reshape(-1)


def kept_groups(layer: AnyLayer, heads: np.ndarray) -> np.ndarray:
    """Return the key-value groups that query heads `heads` read; of an encoder's layer each head is its own.

    Raises ValueError where some groups keep more heads than others: all of a layer have the same number.
    """
    if not layer.num_heads:
        return _NONE
    per = layer.num_heads // layer.num_kv_heads
    if per == 1:
        return np.asarray(heads)
    groups, counts = np.unique(np.asarray(heads) // per, return_counts=True)
    if len(set(counts.tolist())) > 1:
        raise ValueError(f"key-value groups keep {counts.tolist()} query heads; all must keep the same number")
    return groups


def selections(spec: AnySpec, keep: Structure) -> dict[str, Selection]:
    """Return what happens to each tensor; tensors that are not named stay as they are.

    A removed block of a pre-norm model loses its norm. With a Hadamard transform before `down`
    (`DecoderSpec.down_block`) FFN channels leave by whole blocks: ValueError says so.
    """
    out: dict[str, Selection] = {}
    layers: tuple[Any, ...] = spec.layers
    for i, (layer, heads, channels) in enumerate(zip(layers, keep.heads, keep.channels, strict=True)):
        at = f"layers.{i}"
        if layer.num_heads and not _same(heads, layer.num_heads):
            groups = kept_groups(layer, heads)
            for part, kept in zip(QKV, (heads, groups, groups), strict=True):
                rows = head_rows(kept, layer.head_dim) if len(heads) else None
                out |= {f"{at}.attention.{part}.{tensor}": Selection(0, rows) for tensor in ("weight", "bias")}
            out[f"{at}.attention.output.weight"] = Selection(
                1, head_rows(heads, layer.head_dim) if len(heads) else None
            )
            if spec.relative_buckets:
                out[f"{at}.attention.relative_bias"] = Selection(0, np.asarray(heads) if len(heads) else None)
            out |= {} if len(heads) else _norms(spec, f"{at}.attention.norm")
        if layer.intermediate_size and not _same(channels, layer.intermediate_size):
            if spec.down_block and not _whole_blocks(channels, spec.down_block):
                raise ValueError(f"layer {i}: FFN channels must leave by whole blocks of {spec.down_block}")
            selected = channels if len(channels) else None
            for part in ("gate", "up") if spec.gated else ("up",):
                out |= {f"{at}.ffn.{part}.{tensor}": Selection(0, selected) for tensor in ("weight", "bias")}
            out[f"{at}.ffn.down.weight"] = Selection(1, selected)
            out |= {} if len(channels) else _norms(spec, f"{at}.ffn.norm")
    return out


def shrunk_spec(spec: Spec, keep: Structure) -> Spec:
    """Return the spec of what stays."""
    kept = zip(spec.layers, keep.heads, keep.channels, strict=True)
    layers = tuple(
        layer.with_sizes(len(heads), len(kept_groups(layer, heads)), len(channels)) for layer, heads, channels in kept
    )
    return dataclasses.replace(spec, layers=layers)


def mean_biases(
    spec: AnySpec, tensors: Mapping[str, np.ndarray], keep: Structure, means: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """New output biases: what the removed heads and FFN channels put out on average.

    means   E[x] of the inputs of "layers.i.attention.output" and "layers.i.ffn.down", f32[in_features]
    """
    out: dict[str, np.ndarray] = {}
    layers: tuple[Any, ...] = spec.layers
    for i, (layer, heads, channels) in enumerate(zip(layers, keep.heads, keep.channels, strict=True)):
        for name, kept, count in (
            (f"layers.{i}.attention.output", head_rows(heads, layer.head_dim), layer.num_heads * layer.head_dim),
            (f"layers.{i}.ffn.down", np.asarray(channels), layer.intermediate_size),
        ):
            gone = np.setdiff1d(np.arange(count), kept)
            if len(gone):
                weight = tensors[f"{name}.weight"]
                out[f"{name}.bias"] = tensors[f"{name}.bias"] + weight[:, gone] @ means[name][gone]
    return out


def remove(
    spec: Spec,
    tensors: Mapping[str, np.ndarray],
    keep: Structure,
    means: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray] | None = None,
) -> tuple[Spec, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (spec, tensors, masks of tiles) of an all-f32 model without what `keep` leaves out."""
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
    spec: AnySpec,
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


def strips_of(channels: int) -> np.ndarray:
    """Return i64[channels]: the strip of `ffn.up`, of 16, that each FFN channel is in."""
    return np.arange(channels) // TILE_N


def channel_groups(spec: AnySpec, channels: int, groups: int = GROUPS) -> list[np.ndarray]:
    """Return FFN channels by the groups in which they leave, `groups` of them where their number allows it.

    Whole strips, whole groups of inputs with one scale, and whole blocks of the transform before `down`.
    """
    size = max(spec.down_block, GROUP_WEIGHTS * max(1, round(channels / groups / GROUP_WEIGHTS)))
    if spec.down_block:
        size = spec.down_block * max(1, round(size / spec.down_block))
    return [np.arange(start, min(start + size, channels)) for start in range(0, channels, size)]


def dead_structure(
    spec: ModelSpec, masks: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]]
) -> Structure:
    """Return what still has an effect that is not constant: heads and groups of channels that some kept tile reads and
    feeds."""
    heads, channels = [], []
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
        groups = strips_of(layer.intermediate_size)
        living = np.unique(groups[alive])
        channels.append(np.flatnonzero(np.isin(groups, living)) if layer.intermediate_size else _NONE)
    return Structure(tuple(heads), tuple(channels))


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


def _norms(spec: AnySpec, name: str) -> dict[str, Selection]:
    if not isinstance(spec, DecoderSpec):
        return {}  # a post-norm block keeps its norm: x = norm(x + b)
    parts = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return {f"{name}.{part}": Selection(0, None) for part in parts}


def _whole_blocks(channels: np.ndarray, block: int) -> bool:
    return len(channels) % block == 0 and bool(
        (np.asarray(channels).reshape(-1, block) == np.asarray(channels)[::block, None] + np.arange(block)).all()
        and (np.asarray(channels)[::block] % block == 0).all()
    )
