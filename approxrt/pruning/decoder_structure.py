"""Taking heads, FFN units and whole blocks out of a decoder for real: the matrices shrink.

As `approxrt.pruning.structure` for encoders, with two differences. Query heads share keys and values in groups, and all
groups of a layer have the same number of them: what stays is so many groups, with so many heads each. And with a
Hadamard transform before `down` (`DecoderSpec.down_block`), units leave by whole blocks.

What goes leaves its mean output as a bias; where the statistics of the inputs are at hand, the output projection and
`down` are refitted over the inputs that stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.pruning.reconstruct import refit_kept
from approxrt.pruning.second_order import Statistics
from approxrt.pruning.structure import QKV, Selection, Structure, head_rows, mean_biases

GROUPS = 12  # of FFN units a layer


def kept_groups(layer: DecoderLayerSpec, heads: np.ndarray) -> np.ndarray:
    """The key-value groups that query heads `heads` read. Raises ValueError where some have more heads than others."""
    if not layer.num_heads:
        return np.arange(0)
    groups, counts = np.unique(np.asarray(heads) // (layer.num_heads // layer.num_kv_heads), return_counts=True)
    if len(set(counts.tolist())) > 1:
        raise ValueError(f"key-value groups keep {counts.tolist()} query heads; all must keep the same number")
    return groups


def unit_groups(spec: DecoderSpec, units: int, groups: int = GROUPS) -> list[np.ndarray]:
    """FFN units by the groups in which they leave, `groups` of them where the units' number allows it.

    Whole strips, whole groups of inputs with one scale, and whole blocks of the transform before `down`.
    """
    size = max(spec.down_block, GROUP_WEIGHTS * max(1, round(units / groups / GROUP_WEIGHTS)))
    if spec.down_block:
        size = spec.down_block * max(1, round(size / spec.down_block))
    return [np.arange(start, min(start + size, units)) for start in range(0, units, size)]


def selections(spec: DecoderSpec, keep: Structure) -> dict[str, Selection]:
    """What happens to each tensor of a linear or norm; tensors that are not named stay as they are."""
    out: dict[str, Selection] = {}
    for i, (layer, heads, units) in enumerate(zip(spec.layers, keep.heads, keep.units, strict=True)):
        at = f"layers.{i}"
        if len(heads) < layer.num_heads:
            groups = kept_groups(layer, heads)
            for part, kept in zip((*QKV, "output"), (heads, groups, groups, heads), strict=True):
                rows = head_rows(kept, layer.head_dim) if len(heads) else None
                if part == "output":
                    out[f"{at}.attention.output.weight"] = Selection(1, rows)
                else:
                    out |= {f"{at}.attention.{part}.{tensor}": Selection(0, rows) for tensor in ("weight", "bias")}
            out |= {} if len(heads) else _norms(spec, f"{at}.attention.norm")
        if len(units) < layer.intermediate_size:
            if spec.down_block and not _whole_blocks(units, spec.down_block):
                raise ValueError(f"layer {i}: units must leave by whole blocks of {spec.down_block}")
            inner = units if len(units) else None
            for part in ("gate", "up") if spec.gated else ("up",):
                out |= {f"{at}.ffn.{part}.{tensor}": Selection(0, inner) for tensor in ("weight", "bias")}
            out[f"{at}.ffn.down.weight"] = Selection(1, inner)
            out |= {} if len(units) else _norms(spec, f"{at}.ffn.norm")
    return out


def shrunk_spec(spec: DecoderSpec, keep: Structure) -> DecoderSpec:
    """The spec of what stays."""
    layers = []
    for layer, heads, units in zip(spec.layers, keep.heads, keep.units, strict=True):
        changes: dict[str, Any] = {
            "num_heads": len(heads),
            "num_kv_heads": len(kept_groups(layer, heads)),
            "intermediate_size": len(units),
        }
        if not len(heads):
            changes |= dict.fromkeys(("query", "key", "value", "attention_output"), "f32")
        if not len(units):
            changes |= dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "f32")
        layers.append(dataclasses.replace(layer, **changes))
    return dataclasses.replace(spec, layers=tuple(layers))


def remove(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], keep: Structure, stats: Mapping[str, Statistics]
) -> tuple[DecoderSpec, dict[str, np.ndarray], dict[str, Statistics]]:
    """(spec, tensors, statistics) of an all-f32 decoder without what `keep` leaves out.

    stats   of at least the output projections and `down` of layers that lose something
    """
    out = dict(tensors)
    chosen = selections(spec, keep)
    second = [name.removesuffix(".weight") for name, selection in chosen.items() if selection.axis == 1]
    means = {name: stats[name].mean for name in second}
    biases = mean_biases(spec, tensors, keep, means)
    left = dict(stats)
    for name in second:
        indices = chosen[f"{name}.weight"].indices
        if indices is None:
            out[f"{name}.bias"] = biases[f"{name}.bias"]
            continue
        found = stats[name]
        kept = np.zeros(len(found.mean), bool)
        kept[indices] = True
        out[f"{name}.weight"], more = refit_kept(tensors[f"{name}.weight"], kept, found)
        out[f"{name}.bias"] = tensors[f"{name}.bias"] + more
        left[name] = found.select(indices)
    for name, selection in chosen.items():
        value = selection.apply(out[name])
        if value is None:
            del out[name]
            left.pop(name.removesuffix(".weight"), None)
        else:
            out[name] = np.ascontiguousarray(value)
    return shrunk_spec(spec, keep), out, left


def _norms(spec: DecoderSpec, name: str) -> dict[str, Selection]:
    parts = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return {f"{name}.{part}": Selection(0, None) for part in parts}


def _whole_blocks(units: np.ndarray, block: int) -> bool:
    return len(units) % block == 0 and bool(
        (np.asarray(units).reshape(-1, block) == np.asarray(units)[::block, None] + np.arange(block)).all()
        and (np.asarray(units)[::block] % block == 0).all()
    )
