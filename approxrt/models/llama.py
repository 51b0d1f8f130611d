"""Llama (Touvron et al. 2023, arXiv 2302.13971) with grouped queries, and what has its shape: SmolLM, Qwen2.

RMS norms, rotary positions in halves, SwiGLU. Qwen2 has biases at query, key and value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.decoder_spec import DecoderLayerSpec, DecoderSpec, RopeSpec
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import Config, Weights

MODEL_TYPES = ("llama", "qwen2")
PREFIX = "model."
ANCHOR = "embed_tokens."
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
}
QWEN2_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3"}


def build(config: Config, weights: Weights) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """(all-f32 spec, tensors)."""
    qwen2 = config.get("model_type") == "qwen2"
    if config.get("use_sliding_window"):
        raise UnsupportedModelError("use_sliding_window=true is not supported; supported: attention over all tokens")
    hidden, vocab, inner = (config.size(key) for key in ("hidden_size", "vocab_size", "intermediate_size"))
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    if heads % kv_heads:
        raise CheckpointError(f"config.json: {heads} attention heads are no multiple of {kv_heads} key-value heads")
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"config.json: hidden_size {hidden} is not a multiple of {heads} heads")
    head_dim = config.size("head_dim") if config.get("head_dim") is not None else hidden // heads
    attention_bias, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    weights.take("embeddings.word.weight", "embed_tokens.weight", (vocab, hidden))

    def linear(target: str, source: str, n: int, k: int, bias: bool) -> None:
        weights.take(f"{target}.weight", f"{source}.weight", (n, k))
        if bias:
            weights.take(f"{target}.bias", f"{source}.bias", (n,))
        else:
            weights.out[f"{target}.bias"] = np.zeros(n, np.float32)

    layers = config.layers("num_hidden_layers")
    for i in range(layers):
        at, there = f"layers.{i}", f"layers.{i}"
        weights.take(f"{at}.attention.norm.weight", f"{there}.input_layernorm.weight", (hidden,))
        for part, source, width in (("query", "q", heads), ("key", "k", kv_heads), ("value", "v", kv_heads)):
            name = f"{there}.self_attn.{source}_proj"
            linear(f"{at}.attention.{part}", name, width * head_dim, hidden, attention_bias or qwen2)
        linear(f"{at}.attention.output", f"{there}.self_attn.o_proj", hidden, heads * head_dim, attention_bias)
        weights.take(f"{at}.ffn.norm.weight", f"{there}.post_attention_layernorm.weight", (hidden,))
        linear(f"{at}.ffn.gate", f"{there}.mlp.gate_proj", inner, hidden, mlp_bias)
        linear(f"{at}.ffn.up", f"{there}.mlp.up_proj", inner, hidden, mlp_bias)
        linear(f"{at}.ffn.down", f"{there}.mlp.down_proj", hidden, inner, mlp_bias)
    weights.take("head.norm.weight", "norm.weight", (hidden,))
    tied = bool(config.get("tie_word_embeddings"))
    if not tied:
        weights.take("head.out.weight", "lm_head.weight", (vocab, hidden), encoder=False)
        weights.out["head.out.bias"] = np.zeros(vocab, np.float32)
    activation = config.get("hidden_act")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {activation!r} (hidden_act in config.json) is not supported; supported: "
            + ", ".join(ACTIVATIONS)
        )
    spec = DecoderSpec(
        architecture=str(config.get("model_type")),
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=config.size("max_position_embeddings"),
        norm="rms",
        norm_eps=config.number("rms_norm_eps"),
        activation=ACTIVATIONS[activation],
        gated=True,
        positions="rope",
        rope=read_rope(config),
        layers=tuple(DecoderLayerSpec(heads, kv_heads, head_dim, inner) for _ in range(layers)),
        tied_embeddings=tied,
    )
    return spec, weights.finish()


def read_rope(config: Config) -> RopeSpec:
    """From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

    Raises UnsupportedModelError for scalings that depend on the text's length (dynamic, longrope) or change attention
    (yarn), naming those that are supported.
    """
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"config.json: {key} is {value!r}; an object is needed")
        given |= value or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModelError(f"RoPE scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    for options in (given, config.data):
        if options.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise UnsupportedModelError(
                f"partial_rotary_factor {options['partial_rotary_factor']!r} is not supported; supported: 1"
            )
    values = {"rope_theta": config.get("rope_theta"), "original_max_position_embeddings": 8192, **given}
    numbers = {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **values}
    for key in ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        value = numbers[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"config.json: {key} of the rotary positions is {value!r}; a number over 0 is needed")
    return RopeSpec(
        theta=float(numbers["rope_theta"]),
        scaling=ROPE_TYPES[kind],
        factor=float(numbers["factor"]),
        low_freq_factor=float(numbers["low_freq_factor"]),
        high_freq_factor=float(numbers["high_freq_factor"]),
        original_positions=int(numbers["original_max_position_embeddings"]),
    )
