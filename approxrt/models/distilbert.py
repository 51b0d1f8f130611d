"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types; its head's dense layer is a ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import Config, LayerNames, Pooling, Weights, classifier_task, encoder_task, take_layers

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
# transformers has it as a constant, not in the config
LAYER_NORM_EPS = 1e-12

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


def build(config: Config, weights: Weights, pooling: Pooling | None) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). Sinusoidal positions are a table in the checkpoint like learned ones."""
    config.data["hidden_size"] = hidden = config.size("dim")
    vocab, positions = config.size("vocab_size"), config.size("max_position_embeddings")
    weights.take("embeddings.word.weight", "embeddings.word_embeddings.weight", (vocab, hidden))
    weights.take("embeddings.position.weight", "embeddings.position_embeddings.weight", (positions, hidden))
    weights.norm("embeddings.norm", "embeddings.LayerNorm", hidden)
    heads = config.heads("dim", "n_heads")
    layers = take_layers(weights, LAYER, config.layers("n_layers"), hidden, heads, config.size("hidden_dim"))
    if pooling is None:
        task = classifier_task(config, weights, "pre_classifier", "classifier", "relu")
    else:
        task = encoder_task(pooling)
    spec = ModelSpec(
        architecture="distilbert",
        task_type=task.task_type,
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        max_positions=positions,
        type_vocab_size=0,
        layer_norm_eps=LAYER_NORM_EPS,
        activation=config.activation(ACTIVATION_KEY),
        layers=layers,
        head=task.head,
        labels=task.labels,
        max_length=positions,
        pad_token_id=config.size("pad_token_id", 0),
    )
    return spec, weights.finish()
