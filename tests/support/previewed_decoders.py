"""Random decoders whose head is previewed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from decoders import small_decoder_spec
from specs import random_tensors

from approxrt.artifact.spec.decoder import DecoderSpec, HeadPreviewSpec

VOCAB = 70


@dataclasses.dataclass
class InMemory:
    decoder_spec: DecoderSpec
    tensors: dict[str, np.ndarray]


def previewed(margin: float, width: int = 64, project: Any = "g8", out: Any = "g4", **changes: Any) -> InMemory:
    """Random linears for a preview: they say nothing about the head, so that every mistake shows."""
    spec = small_decoder_spec("g8", hidden=48, **changes)
    layers = tuple(dataclasses.replace(layer, head_dim=16) for layer in spec.layers)
    preview = HeadPreviewSpec(width, margin, project, out)
    spec = dataclasses.replace(spec, layers=layers, head_preview=preview)
    tensors = random_tensors(spec)
    tensors["head.preview.out.bias"] += np.linspace(-1, 1, VOCAB, dtype=np.float32)
    return InMemory(spec, tensors)
