"""ALBERT (Lan et al. 2019, arXiv 1909.11942): BERT with small embeddings and layers that are shared.

A group has one layer, or `inner_group_num` of them, and the model's depth is divided among its groups, whose layers run
again and again. They are stored once; `ModelSpec.layer_order` says when each runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import MAX_LAYERS, ModelSpec
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import Config, HeadNames, LayerNames, Readout, Weights
from approxrt.models.post_norm import ConfigKeys, PostNormFamily, build_post_norm

MODEL_TYPES = ("albert",)
PREFIX = "albert."
ACTIVATION_KEY = "hidden_act"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_AT = "encoder.albert_layer_groups.{group}.albert_layers.{inner}"
LAYER = LayerNames(
    query=f"{_AT}.attention.query",
    key=f"{_AT}.attention.key",
    value=f"{_AT}.attention.value",
    attention_output=f"{_AT}.attention.dense",
    attention_norm=f"{_AT}.attention.LayerNorm",
    ffn_up=f"{_AT}.ffn",
    ffn_down=f"{_AT}.ffn_output",
    ffn_norm=f"{_AT}.full_layer_layer_norm",
)
FAMILY = PostNormFamily(
    "albert",
    HeadNames("pooler", "classifier", "tanh", pooled=True),
    LAYER,
    ConfigKeys(embedding_size="embedding_size"),
    projection="encoder.embedding_hidden_mapping_in",
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` says what reads the hidden states; None: a classifier."""
    hidden = config.size("hidden_size")
    if config.size("embedding_size") == hidden:
        raise UnsupportedModelError(
            f"embedding_size {hidden} of an ALBERT is not supported, since it is projected to a hidden_size that is "
            "the same; supported: another embedding_size than hidden_size"
        )
    depth, inner = config.layers("num_hidden_layers"), config.layers("inner_group_num")
    groups = config.size("num_hidden_groups", maximum=MAX_LAYERS)
    if groups > depth:
        raise CheckpointError(
            f"config.json: num_hidden_groups is {groups}; it must be at most num_hidden_layers, {depth}"
        )
    return build_post_norm(FAMILY, config, weights, pooling, layer_order(depth, groups, inner), inner)


def layer_order(depth: int, groups: int, inner: int) -> tuple[int, ...]:
    """Return the layer of each step, by transformers' own division of the depth among the groups."""
    return tuple(int(i / (depth / groups)) * inner + k for i in range(depth) for k in range(inner))
