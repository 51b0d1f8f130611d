"""ELECTRA (Clark et al. 2020, arXiv 2003.10555), the discriminator.

Small variants embed in fewer dimensions and project to the hidden size. The
head's activation is GELU whatever `hidden_act` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import Config, HeadNames, Readout, Weights
from approxrt.models.post_norm import ConfigKeys, PostNormFamily, build_post_norm

MODEL_TYPES = ("electra",)
PREFIX = "electra."
ACTIVATION_KEY = "hidden_act"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
FAMILY = PostNormFamily(
    "electra",
    HeadNames("classifier.dense", "classifier.out_proj", "gelu"),
    keys=ConfigKeys(embedding_size="embedding_size"),
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` is None for a classifier."""
    return build_post_norm(FAMILY, config, weights, pooling)
