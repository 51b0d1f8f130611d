"""Weights to int8: symmetric, one scale an output channel (or embedding row); and whole models to int8 or int4 kinds.

W[o, i] ~ scale[o] * q[o, i], q in [-127, 127]. The scale is clip * max|W[o]| / 127
with the clip ratio, per row, that gives the least squared error: clipping a lone
outlier a little makes the steps finer for all other weights of its row. No data
is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import LinearKind, TableKind
from approxrt.artifact.storage.bsr import dense_to_bsr, expand_mask
from approxrt.artifact.storage.groupwise import kind_of
from approxrt.quantization.groupwise import quantize_groups4, quantize_groups6, quantize_groups8
from approxrt.quantization.int4 import quantize_rows4, quantize_tiles4

# What linears of a whole model may be rounded to without data, and with scales of groups what its embedding table and
# head.
MODEL_KINDS: tuple[LinearKind, ...] = ("s8", "s4", "g4", "f32")
TABLE_KINDS: tuple[LinearKind, ...] = ("g8", "g6")
Spec = TypeVar("Spec", ModelSpec, DecoderSpec)

# One outlier at the peak of a row of n like weights: the error is least at a ratio of 1 / (1 + n / (12 * 127^2)),
# 0.99 for the 1,536 inputs of MiniLM's widest rows, 0.9 for 20,000. The gain there is 0.1 dB, most of it from steps
# that happen to fall well.
CLIP_RATIOS = (1.0, 0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9)

# Rows are worked on in blocks of this many elements, which stay in the L2 cache.
_BLOCK = 1 << 15

_SMALLEST = np.float32(np.finfo(np.float32).tiny)


def quantize_rows(weight: np.ndarray, clip_ratios: tuple[float, ...] = CLIP_RATIOS) -> tuple[np.ndarray, np.ndarray]:
    """f32[N, K] -> (q i8[N, K], scale f32[N]).

    The scale of an all-zero row is 1. The first of equally good ratios wins, so
    the result is the same everywhere.
    """
    n, k = weight.shape
    q = np.empty((n, k), np.int8)
    scale = np.empty(n, np.float32)
    rows = max(1, _BLOCK // max(1, k))
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        q[block], scale[block] = _quantize_block(weight[block], clip_ratios)
    return q, scale


def _quantize_block(weight: np.ndarray, clip_ratios: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    weight = np.asarray(weight, np.float32)
    peak = np.abs(weight).max(axis=1, initial=0)
    best_error = np.full(len(weight), np.inf, np.float32)
    best_scale = np.ones(len(weight), np.float32)
    # Errors are compared relative to the row's peak, so that squares of tiny weights do not underflow.
    relative = weight / np.where(peak > 0, peak, 1)[:, None]
    for ratio in clip_ratios:
        step = np.float32(ratio / 127)
        rounded = np.rint(relative / step)
        np.clip(rounded, -127, 127, out=rounded)
        rounded *= step
        rounded -= relative
        error = np.einsum("ij,ij->i", rounded, rounded)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = peak[better] * step
    best_scale = np.where(peak > 0, np.maximum(best_scale, _SMALLEST), np.float32(1))
    q = np.clip(np.rint(weight / best_scale[:, None]), -127, 127).astype(np.int8)
    return q, best_scale


def dequantize(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """scale[o] * q[o, i] as f32."""
    return q.astype(np.float32) * scale[:, None]


def quantize_model(
    spec: Spec,
    tensors: Mapping[str, np.ndarray],
    kind: LinearKind = "s8",
    masks: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, str], None] | None = None,
    grouped: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    table_kind: LinearKind = "g8",
) -> tuple[Spec, dict[str, np.ndarray]]:
    """An all-f32 model -> (spec, tensors) with int8 or int4 linears and word embeddings.

    `masks` gives, for linears that are to become block-sparse, which tiles stay
    (bool[strips, columns], see `approxrt.pruning.magnitude`); scales are then chosen
    from the weights that stay. An encoder's head stays f32: it runs once a text
    and is a thousandth of the model. With "f32" the model is returned as it
    is. `grouped` gives, with "g4", matrices that are of kind g4 or g8 already
    (their parts by name), which are taken as they are: 8-bit ones, too. With
    `table_kind` "g6" embedding table and head are rounded to 6 bits unless they have 4.
    `progress(elements, name)` is called after each tensor. Raises ValueError for
    a kind that is none of `MODEL_KINDS`, and for masks with "g4".
    """
    if kind not in MODEL_KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(MODEL_KINDS)}")
    if kind == "f32":
        return spec, dict(tensors)
    masks = masks or {}
    if kind == "g4" and masks:
        raise ValueError("kind is g4 with tiles to prune: kinds g4 and g8 are dense")
    given = dict(grouped or {}) if kind == "g4" else {}
    # Tensors may be computed when they are asked for: a matrix that is rounded is taken once, and not kept.
    rounded = {f"{name}.weight" for name, linear in spec.linears() if not spec.stays_f32(name) and linear.kind == "f32"}
    if spec.embedding_kind == "f32":
        rounded.add("embeddings.word.weight")
    out = {name: tensors[name] for name in tensors if name not in rounded}
    kinds: dict[str, LinearKind] = {}
    for name, linear in spec.linears():
        if spec.stays_f32(name) or linear.kind != "f32":
            continue
        weight = tensors[f"{name}.weight"]
        if name == "head.out" and kind == "g4":
            parts = _grouped_table(weight, given.get(name), table_kind)
            kinds[name] = kind_of(parts)
        elif name in given:
            kinds[name], parts = kind_of(given[name]), dict(given[name])
        else:
            kinds[name], parts = quantize_linear(weight, kind, masks.get(name))
        out |= {f"{name}.{part}": array for part, array in parts.items()}
        if progress:
            progress(weight.size, name)
    embedding_kind = spec.embedding_kind
    if embedding_kind == "f32":
        words = tensors["embeddings.word.weight"]
        embedding_kind = "s8" if kind == "s8" else "s4"
        if kind == "g4":
            parts = _grouped_table(words, given.get("embeddings.word"), table_kind)
            embedding_kind = cast(TableKind, kind_of(parts))
        elif kind == "s8":
            parts = dict(zip(("q", "scale"), quantize_rows(words), strict=True))
        else:
            rows = quantize_rows4(words, spec.embedding_group_scale)
            parts = dict(zip(("q4", "group_scale", "scale"), rows, strict=True))
        out |= {f"embeddings.word.{part}": array for part, array in parts.items()}
        if progress:
            progress(words.size, "embeddings.word")
    return dataclasses.replace(spec.with_linear_kinds(kinds), embedding_kind=embedding_kind), out


def _grouped_table(
    weight: np.ndarray, given: Mapping[str, np.ndarray] | None, kind: LinearKind
) -> dict[str, np.ndarray]:
    """An embedding table or head with float16 scales: as given if that is no wider than asked for, else rounded."""
    if given is not None and (kind == "g8" or kind_of(given) == "g4"):
        return dict(given)
    return quantize_groups6(weight) if kind == "g6" else quantize_groups8(weight)


def quantize_linear(
    weight: np.ndarray,
    kind: LinearKind,
    mask: np.ndarray | None = None,
    clip_ratios: tuple[float, ...] = CLIP_RATIOS,
) -> tuple[LinearKind, dict[str, np.ndarray]]:
    """Return (the stored kind, its tensors but the bias) of f32[N, K]: with a mask of tiles s8 and s4 are block-sparse.

    `clip_ratios` are those tried for s8.
    """
    if kind in _GROUPED:
        return kind, _GROUPED[kind](weight)
    if kind == "s4":
        if mask is not None:
            return "bsr_s4", quantize_tiles4(weight, mask)
        return "s4", dict(zip(("q4", "group_scale", "scale"), quantize_rows4(weight), strict=True))
    if mask is None:
        return "s8", dict(zip(("q", "scale"), quantize_rows(weight, clip_ratios), strict=True))
    q, scale = quantize_rows(weight * expand_mask(mask, *weight.shape), clip_ratios)
    tiles, indices, indptr = dense_to_bsr(q, mask)
    return "bsr_s8", {"tiles": tiles, "indices": indices, "indptr": indptr, "scale": scale}


_GROUPED: dict[LinearKind, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "g4": quantize_groups4,
    "g6": quantize_groups6,
    "g8": quantize_groups8,
}
