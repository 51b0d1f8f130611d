"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and the models that share its code: CamemBERT, XLM-RoBERTa.

Two conventions differ from BERT. Positions count from padding_idx + 1, so the
first rows of the table are never read: they are cut off, and position 0 is the
first token. And there is one token type, whose row is the same for every token:
it is added to the position table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.errors import CheckpointError
from approxrt.models.base import (
    BERT_LAYER,
    Config,
    Pooling,
    Weights,
    classifier_task,
    encoder_task,
    take_layers,
)

MODEL_TYPES = ("roberta", "camembert", "xlm-roberta")
PREFIX = "roberta."
ACTIVATION_KEY = "hidden_act"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}


def build(config: Config, weights: Weights, pooling: Pooling | None) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `max_positions` is the rows of the table less padding_idx + 1."""
    hidden, vocab = config.size("hidden_size"), config.size("vocab_size")
    rows, types = config.size("max_position_embeddings"), config.size("type_vocab_size", 0)
    padding = config.size("pad_token_id", 0)
    first = padding + 1
    if rows <= first:
        raise CheckpointError(
            f"config.json: max_position_embeddings is {rows}; RoBERTa's positions start at pad_token_id + 1 = {first}"
        )
    weights.take("embeddings.word.weight", "embeddings.word_embeddings.weight", (vocab, hidden))
    table = weights.take("embeddings.position.weight", "embeddings.position_embeddings.weight", (rows, hidden))
    type_row = None
    if types:
        type_row = weights.take(
            "embeddings.token_type.weight", "embeddings.token_type_embeddings.weight", (types, hidden)
        )
    if table.size:
        table = table[first:]
        if type_row is not None and types == 1 and type_row.size:
            table = table + type_row[0]
        weights.out["embeddings.position.weight"] = np.ascontiguousarray(table)
    if types == 1:
        del weights.out["embeddings.token_type.weight"]
        types = 0
    weights.norm("embeddings.norm", "embeddings.LayerNorm", hidden)
    heads = config.heads("hidden_size", "num_attention_heads")
    layers = take_layers(
        weights, BERT_LAYER, config.layers("num_hidden_layers"), hidden, heads, config.size("intermediate_size")
    )
    if pooling is None:
        task = classifier_task(config, weights, "classifier.dense", "classifier.out_proj", "tanh")
    else:
        task = encoder_task(pooling)
    spec = ModelSpec(
        architecture="roberta",
        task_type=task.task_type,
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        max_positions=rows - first,
        type_vocab_size=types,
        layer_norm_eps=config.number("layer_norm_eps"),
        activation=config.activation(ACTIVATION_KEY),
        layers=layers,
        head=task.head,
        labels=task.labels,
        max_length=rows - first,
        pad_token_id=padding,
    )
    return spec, weights.finish()
