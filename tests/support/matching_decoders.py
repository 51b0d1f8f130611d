"""Random decoders that attend by matching signs."""

from __future__ import annotations

import dataclasses

from decoders import small_decoder_spec
from random_decoders import InMemory
from specs import random_tensors

from approxrt.artifact.spec.decoder import DecoderSpec


def matching(kind: str, codes: int, rest: bool, dim: int = 16) -> DecoderSpec:
    """Three layers; the middle one attends to all keys."""
    spec = small_decoder_spec(kind, hidden=48, count=3, max_positions=512)
    signs = {"attention_keep": 12, "sign_from": 80, "sign_window": 4, "sign_codes": codes, "attention_rest": rest}
    layers = tuple(dataclasses.replace(l, head_dim=dim, **({} if i == 1 else signs)) for i, l in enumerate(spec.layers))
    return dataclasses.replace(spec, layers=layers)


def model_of(spec: DecoderSpec, seed: int = 0) -> InMemory:
    tensors = random_tensors(spec, seed)
    for name in tensors:
        # Keys and queries large enough that it matters which are kept.
        if name.endswith(("query.weight", "key.weight", "query.scale", "key.scale")):
            tensors[name] = tensors[name] * 6
    return InMemory(spec, tensors)
