"""Random decoders of several shapes, in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from decoders import small_decoder_spec
from specs import random_tensors

from approxrt.artifact.spec.decoder import DecoderSpec


@dataclasses.dataclass
class InMemory:
    decoder_spec: DecoderSpec
    tensors: dict[str, np.ndarray]


def gpt_like(kind: str) -> DecoderSpec:
    spec = small_decoder_spec(
        kind, positions="learned", rope=None, norm="layer", gated=False, activation="gelu_tanh", tied_embeddings=False,
        head_kind=kind,
    )  # fmt: skip
    return dataclasses.replace(spec, layers=tuple(dataclasses.replace(l, ffn_gate="f32") for l in spec.layers))


def without_blocks(kind: str) -> DecoderSpec:
    """Attention, FFN, FFN, attention: the others of four layers are removed, the first attention among them."""
    spec = small_decoder_spec(kind, count=4)
    no_attention = {"num_heads": 0, "num_kv_heads": 0} | dict.fromkeys(
        ("query", "key", "value", "attention_output"), "f32"
    )
    no_ffn = {"intermediate_size": 0} | dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "f32")
    changes: list[dict[str, Any]] = [no_attention, no_ffn, no_attention, no_ffn]
    layers = tuple(dataclasses.replace(l, **change) for l, change in zip(spec.layers, changes, strict=True))
    return dataclasses.replace(spec, layers=layers)


def wide(kind: str) -> DecoderSpec:
    """Heads of whole strips, which few tokens share out one by one, and several pieces of gate and up."""
    spec = small_decoder_spec(kind, hidden=48)
    layers = tuple(dataclasses.replace(l, head_dim=16, intermediate_size=290) for l in spec.layers)
    return dataclasses.replace(spec, layers=layers)


def spread(kind: str) -> DecoderSpec:
    """With a transform before `down`."""
    spec = small_decoder_spec(kind, down_block=32)
    return dataclasses.replace(spec, layers=tuple(dataclasses.replace(l, intermediate_size=96) for l in spec.layers))


SHAPES = {"llama": small_decoder_spec, "wide": wide, "spread": spread, "gpt": gpt_like, "removed": without_blocks}


def build(shape: str, kind: str, seed: int = 0) -> InMemory:
    spec = SHAPES[shape](kind)
    return InMemory(spec, random_tensors(spec, seed))


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 70, count).tolist()
