"""MPNet (Song et al. 2020, arXiv 2004.09297): BERT with a bias of attention scores by relative position.

All layers share one table of biases, with as many buckets as transformers computes whatever the config says.
Positions count from the padding token on, as RoBERTa's do, and there are no token types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.faults import show
from approxrt.errors import UnsupportedModelError
from approxrt.models.base import Config, HeadNames, LayerNames, Readout, Weights
from approxrt.models.post_norm import PostNormFamily, build_post_norm

MODEL_TYPES = ("mpnet",)
PREFIX = "mpnet."
ACTIVATION_KEY = "hidden_act"
TOKEN_TYPES = False  # transformers drops those that a tokenizer gives
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30527,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "relative_attention_num_buckets": 32,
    "pad_token_id": 1,
}
# Constants in transformers, not in the config.
FIXED = {"relative_attention_num_buckets": 32, "pad_token_id": 1}
LAYER = LayerNames(
    query="encoder.layer.{i}.attention.attn.q",
    key="encoder.layer.{i}.attention.attn.k",
    value="encoder.layer.{i}.attention.attn.v",
    attention_output="encoder.layer.{i}.attention.attn.o",
    attention_norm="encoder.layer.{i}.attention.LayerNorm",
    ffn_up="encoder.layer.{i}.intermediate.dense",
    ffn_down="encoder.layer.{i}.output.dense",
    ffn_norm="encoder.layer.{i}.output.LayerNorm",
)
FAMILY = PostNormFamily(
    "mpnet",
    HeadNames("classifier.dense", "classifier.out_proj", "tanh"),
    LAYER,
    token_types=TOKEN_TYPES,
    positions_after_pad=True,
    relative_bias="encoder.relative_attention_bias.weight",
    relative_buckets=32,
    relative_distance=128,
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` says what reads the hidden states; None: a classifier."""
    for key, value in FIXED.items():
        if config.get(key) != value:
            raise UnsupportedModelError(
                f"{key} {show(config.get(key))} of an MPNet is not supported, since transformers computes with {value} "
                f"whatever it says; supported: {value}"
            )
    return build_post_norm(FAMILY, config, weights, pooling)
