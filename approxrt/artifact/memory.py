"""An artifact in memory: what engines take, without a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.encoder import ModelSpec


@dataclass(frozen=True)
class Memory:
    """Hold what the engine needs of an artifact: spec and tensors, not written to disk."""

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class InMemory:
    """A decoder as the engine takes it."""

    decoder_spec: DecoderSpec
    tensors: Mapping[str, np.ndarray]
