"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types; its head's dense layer is a ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import Config, HeadNames, LayerNames, Readout, Weights
from approxrt.models.post_norm import ConfigKeys, PostNormFamily, build_post_norm

MODEL_TYPES = ("distilbert",)
PREFIX = "distilbert."
ACTIVATION_KEY = "activation"
TOKEN_TYPES = False  # transformers drops those that a tokenizer gives
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
LAYER = LayerNames(
    query="transformer.layer.{i}.attention.q_lin",
    key="transformer.layer.{i}.attention.k_lin",
    value="transformer.layer.{i}.attention.v_lin",
    attention_output="transformer.layer.{i}.attention.out_lin",
    attention_norm="transformer.layer.{i}.sa_layer_norm",
    ffn_up="transformer.layer.{i}.ffn.lin1",
    ffn_down="transformer.layer.{i}.ffn.lin2",
    ffn_norm="transformer.layer.{i}.output_layer_norm",
)

# Sinusoidal positions are a table in the checkpoint like learned ones.
FAMILY = PostNormFamily(
    "distilbert",
    HeadNames("pre_classifier", "classifier", "relu"),
    LAYER,
    ConfigKeys("dim", "n_layers", "n_heads", "hidden_dim", embedding_size="dim", activation=ACTIVATION_KEY),
    layer_norm_eps=1e-12,  # a constant in transformers, not in the config
    token_types=TOKEN_TYPES,
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` is None for a classifier."""
    return build_post_norm(FAMILY, config, weights, pooling)
