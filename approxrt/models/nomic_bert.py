"""NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613): BERT with rotary positions and a gated feed-forward, no biases.

Checkpoints come in two namings, that of the authors' own code (Wqkv, fc11, fc12) and that of transformers, which reads
both. Linears have no biases: the artifact's are zeros.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.spec.faults import show
from approxrt.artifact.tensorfile import Tensor
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import (
    ACTIVATION_NAMES,
    MAX_NUMBER,
    Config,
    HeadNames,
    Readout,
    Weights,
    take_task,
)

MODEL_TYPES = ("nomic_bert",)
PREFIX = "nomic_bert."
ACTIVATION_KEY = "hidden_act"
ACTIVATIONS = ACTIVATION_NAMES | {"silu": "silu", "swish": "silu"}
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "rope_theta": 1000.0,
}
HEAD = HeadNames("pooler.dense", "classifier", "tanh", pooled=True)
PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
# The authors' names -> transformers', by its own conversion (conversion_mapping.py, "nomic_bert").
_NAMES = (
    (r"\bencoder\.layers\b", "layers"),
    (r"\bemb_ln\b", "embeddings.LayerNorm"),
    (r"\battn\.out_proj\b", "self_attn.o_proj"),
    (r"\bfc11\b", "up_proj"),
    (r"\bfc12\b", "gate_proj"),
    (r"\bfc2\b", "down_proj"),
    (r"\bnorm1\b", "post_attention_layernorm"),
    (r"\bnorm2\b", "post_mlp_layernorm"),
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` says what reads the hidden states; None: a classifier."""
    weights.tensors = renamed(weights.tensors)
    vocab, hidden, ffn = (config.size(key) for key in ("vocab_size", "hidden_size", "intermediate_size"))
    types, positions = config.size("type_vocab_size", 0), config.size("max_position_embeddings")
    heads = config.size("num_attention_heads")
    head_dim = (
        config.size("head_dim")
        if config.get("head_dim") is not None
        else config.heads("hidden_size", "num_attention_heads")[1]
    )
    layer, count = LayerSpec(heads, head_dim, ffn), config.layers("num_hidden_layers")
    weights.take("embeddings.word.weight", "embeddings.word_embeddings.weight", (vocab, hidden))
    if types:
        weights.take("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight", (types, hidden))
    weights.norm("embeddings.norm", "embeddings.LayerNorm", hidden)
    inner = heads * head_dim
    shapes = {"attention.output": (hidden, inner), "ffn.gate": (ffn, hidden), "ffn.up": (ffn, hidden),
              "ffn.down": (hidden, ffn)}  # fmt: skip
    for i in range(count):
        for part, source in PARTS.items():
            shape = shapes.get(part, (inner, hidden))
            weights.take(f"layers.{i}.{part}.weight", f"layers.{i}.{source}.weight", shape)
            weights.out[f"layers.{i}.{part}.bias"] = np.zeros(shape[0], np.float32)
        weights.norm(f"layers.{i}.attention.norm", f"layers.{i}.post_attention_layernorm", hidden)
        weights.norm(f"layers.{i}.ffn.norm", f"layers.{i}.post_mlp_layernorm", hidden)
    task = take_task(config, weights, hidden, HEAD, pooling)
    spec = ModelSpec(
        architecture="nomic_bert",
        task_type=task.task_type,
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        max_positions=positions,
        type_vocab_size=types,
        layer_norm_eps=config.number("layer_norm_eps"),
        activation=config.activation(ACTIVATION_KEY, ACTIVATIONS),
        layers=(layer,) * count,
        head=task.head,
        labels=task.labels,
        max_length=positions,
        pad_token_id=config.size("pad_token_id", 0),
        gated=True,
        rope_theta=_theta(config),
    )
    return spec, weights.finish()


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by transformers' names, Wqkv in its three parts."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        if ".attn.Wqkv." not in name:
            out[name] = tensor
            continue
        third = len(tensor.data) // 3
        for k, part in enumerate("qkv"):
            rows = tensor.data[k * third : (k + 1) * third] if k < 2 else tensor.data[2 * third :]
            out[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = Tensor(tensor.dtype, rows)
    return out


def _theta(config: Config) -> float:
    options = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(options, dict):
        raise CheckpointError(f"config.json: rope_parameters is {show(options)}; an object is needed")
    kind = options.get("rope_type", options.get("type", "default"))
    if kind != "default":
        raise UnsupportedModelError(f"rope_type {show(kind)} of a NomicBERT is not supported; supported: default")
    theta = options.get("rope_theta", config.get("rope_theta"))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta <= MAX_NUMBER:
        raise CheckpointError(f"config.json: rope_theta is {show(theta)}; a number over 1 is needed")
    return float(theta)
