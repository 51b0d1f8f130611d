"""ELECTRA (Clark et al. 2020, arXiv 2003.10555), the discriminator.

Small variants embed in fewer dimensions and project to the hidden size. The
head's activation is GELU whatever `hidden_act` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import (
    BERT_LAYER,
    Config,
    Pooling,
    Weights,
    classifier_task,
    encoder_task,
    take_layers,
)

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


def build(config: Config, weights: Weights, pooling: Pooling | None) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors)."""
    hidden, embedding, vocab = config.size("hidden_size"), config.size("embedding_size"), config.size("vocab_size")
    positions, types = config.size("max_position_embeddings"), config.size("type_vocab_size", 0)
    weights.take("embeddings.word.weight", "embeddings.word_embeddings.weight", (vocab, embedding))
    weights.take("embeddings.position.weight", "embeddings.position_embeddings.weight", (positions, embedding))
    if types:
        weights.take("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight", (types, embedding))
    weights.norm("embeddings.norm", "embeddings.LayerNorm", embedding)
    if embedding != hidden:
        weights.linear("embeddings.projection", "embeddings_project", hidden, embedding)
    heads = config.heads("hidden_size", "num_attention_heads")
    layers = take_layers(
        weights, BERT_LAYER, config.layers("num_hidden_layers"), hidden, heads, config.size("intermediate_size")
    )
    if pooling is None:
        task = classifier_task(config, weights, "classifier.dense", "classifier.out_proj", "gelu")
    else:
        task = encoder_task(pooling)
    spec = ModelSpec(
        architecture="electra",
        task_type=task.task_type,
        vocab_size=vocab,
        embedding_size=embedding,
        hidden_size=hidden,
        max_positions=positions,
        type_vocab_size=types,
        layer_norm_eps=config.number("layer_norm_eps"),
        activation=config.activation(ACTIVATION_KEY),
        layers=layers,
        head=task.head,
        labels=task.labels,
        max_length=positions,
        pad_token_id=config.size("pad_token_id", 0),
    )
    return spec, weights.finish()
