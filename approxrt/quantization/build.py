"""Build an artifact of a model in torch: linears in their kinds, embeddings as they were stored, a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import EmbeddingKind, LinearKind
from approxrt.quantization.rtn import CLIP_RATIOS, quantize_linear
from approxrt.torch_models.encoder import TorchEncoder

EmbeddingParts = tuple[EmbeddingKind, dict[str, np.ndarray]]
LinearTensors = tuple[LinearKind, dict[str, np.ndarray]]


def quantized(
    model: TorchEncoder,
    kinds: Mapping[str, LinearKind],
    embeddings: EmbeddingParts | None = None,
    clip_ratios: tuple[float, ...] = CLIP_RATIOS,
    tensors_of: Mapping[str, LinearTensors] | None = None,
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) of the artifact. `kinds` by linear: s8 where it says nothing, and f32 in the head.

    embeddings   (kind, tensors named "embeddings.word.*") that stand for the model's rows; None: f32 rows. With
                 "embeddings.position.q" and ".scale" among them positions are int8, too
    tensors_of   linears that are quantised already: (kind, tensors but the bias)
    """
    spec, tensors = model.spec, model.tensors()
    stored: dict[str, LinearKind] = {}
    for name, _ in spec.linears():
        if tensors_of is not None and name in tensors_of:
            stored[name], parts = tensors_of[name]
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": array for part, array in parts.items()}
            continue
        kind: LinearKind = kinds.get(name, "f32" if name.startswith("head.") else "s8")
        if kind == "f32":
            continue
        mask = model.masks.get(name)
        if mask is not None and mask.all():
            mask = None
        stored[name], parts = quantize_linear(tensors.pop(f"{name}.weight"), kind, mask, clip_ratios)
        tensors |= {f"{name}.{part}": array for part, array in parts.items()}
    spec = spec.with_linear_kinds(stored)
    if embeddings is not None:
        spec = stored_spec(spec, embeddings)
        tensors = without_tables(tensors, embeddings) | embeddings[1]
    return spec, tensors


def stored_spec(spec: ModelSpec, embeddings: EmbeddingParts) -> ModelSpec:
    """The spec of a model whose embeddings are stored as `embeddings`."""
    kind, parts = embeddings
    return dataclasses.replace(
        spec,
        embedding_kind=kind,
        wide_words=len(parts["embeddings.word.wide"]) if kind == "s2" else 0,
        position_kind="s8" if "embeddings.position.q" in parts else "f32",
    )


def without_tables(tensors: Mapping[str, np.ndarray], embeddings: EmbeddingParts) -> dict[str, np.ndarray]:
    """The tensors without the tables that `embeddings` stands for."""
    tables = tuple({name.rpartition(".")[0] + "." for name in embeddings[1]})
    return {name: array for name, array in tensors.items() if not name.startswith(tables)}


def folder_bytes(path: Path) -> int:
    """Bytes of everything in an artifact's folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
