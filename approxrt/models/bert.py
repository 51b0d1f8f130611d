"""BERT (Devlin et al. 2018, arXiv 1810.04805), MiniLM among them."""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import Config, HeadNames, Readout, Weights
from approxrt.models.post_norm import PostNormFamily, build_post_norm

MODEL_TYPES = ("bert",)
PREFIX = "bert."
ACTIVATION_KEY = "hidden_act"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
FAMILY = PostNormFamily("bert", HeadNames("pooler.dense", "classifier", "tanh", pooled=True))


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` is None for a classifier, whose pooler reads the first token."""
    return build_post_norm(FAMILY, config, weights, pooling)
