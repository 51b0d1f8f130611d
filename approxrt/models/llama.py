"""Llama (Touvron et al. 2023, arXiv 2302.13971) with grouped queries, and what has its shape: SmolLM, Qwen2.

RMS norms, rotary positions in halves, SwiGLU. Qwen2 has biases at query, key and value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec, RopeSpec
from approxrt.artifact.spec.decoder_schema import MAX_CONTEXT
from approxrt.artifact.spec.faults import show
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import Config, Weights
from approxrt.models.tied import take_words

MODEL_TYPES = ("llama", "qwen2")
PREFIX = "model."
ANCHOR = "layers."
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
    """Return (all-f32 spec, tensors)."""
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
    tied = take_words(weights, "embed_tokens.weight", vocab, hidden, bool(config.get("tie_word_embeddings")))

    def linear(target: str, source: str, n: int, k: int, bias: bool) -> None:
        matrix = weights.take(f"{target}.weight", f"{source}.weight", (n, k))
        if bias:
            weights.take(f"{target}.bias", f"{source}.bias", (n,))
        else:
            # No larger than what is there: n is config.json's word.
            weights.out[f"{target}.bias"] = np.zeros(len(matrix), np.float32)

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
    activation = config.get("hidden_act")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {activation!r} (hidden_act in config.json) is not supported; supported: "
            + ", ".join(ACTIVATIONS)
        )
    rope = read_rope(config)
    spec = DecoderSpec(
        architecture=str(config.get("model_type")),
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=read_context(config, rope),
        norm="rms",
        norm_eps=config.number("rms_norm_eps"),
        activation=ACTIVATIONS[activation],
        gated=True,
        positions="rope",
        rope=rope,
        layers=tuple(DecoderLayerSpec(heads, kv_heads, head_dim, inner) for _ in range(layers)),
        tied_embeddings=tied,
    )
    return spec, weights.finish()


def read_context(config: Config, rope: RopeSpec) -> int:
    """Positions that a text may have. A linear factor stretches the context that the model was trained for first.

    max_position_embeddings is of before the scaling for some (Vicuna 16k) and of after it for others; transformers runs
    texts of any length. So it is taken as of before, unless original_max_position_embeddings says what that was.
    """
    positions = config.size("max_position_embeddings")
    if rope.scaling != "linear" or rope.factor <= 1:
        return positions
    options = _rope_options(config)
    original = options.get("original_max_position_embeddings")
    given = type(original) is int and original > 0
    before = _rope_number(options, "original_max_position_embeddings") if given else positions
    stretched = int(before * rope.factor)
    return min(MAX_CONTEXT, max(positions, stretched))


def _rope_options(config: Config) -> dict[str, Any]:
    """`rope_scaling` where there is one, else `rope_parameters` (transformers 5): so does transformers."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"config.json: {key} is {show(value)}; an object is needed")
        if value:
            if any(isinstance(option, dict) for option in value.values()):
                raise UnsupportedModelError(
                    f"{key} has rotary positions by kind of layer ({', '.join(map(str, value))[:200]}); "
                    "supported: one for all"
                )
            return dict(value)
    return {}


def read_rope(config: Config) -> RopeSpec:
    """Read `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

    Raises UnsupportedModelError for scalings that depend on the text's length (dynamic, longrope) or change attention
    (yarn), naming those that are supported; CheckpointError for a number that the scaling needs and that is missing.
    """
    given = _rope_options(config)
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise UnsupportedModelError(f"RoPE scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    for options in (given, config.data):
        if options.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise UnsupportedModelError(
                f"partial_rotary_factor {options['partial_rotary_factor']!r} is not supported; supported: 1"
            )
    spec = RopeSpec(theta=_rope_number(given, "rope_theta", config.get("rope_theta")), scaling=ROPE_TYPES[kind])
    if kind == "default":
        return spec
    spec = dataclasses.replace(spec, factor=_rope_number(given, "factor"))
    if kind == "linear":
        return spec
    # As transformers: the config's own number wins, and without any it is the context of now.
    original = config.get("original_max_position_embeddings", given.get("original_max_position_embeddings"))
    if original is None:
        original = config.get("max_position_embeddings")
    return dataclasses.replace(
        spec,
        low_freq_factor=_rope_number(given, "low_freq_factor"),
        high_freq_factor=_rope_number(given, "high_freq_factor"),
        original_positions=int(
            _rope_number({"original_max_position_embeddings": original}, "original_max_position_embeddings")
        ),
    )


def _rope_number(options: Mapping[str, Any], key: str, usual: Any = None) -> float:
    value = options.get(key, usual)
    value = usual if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e12:
        what = "is missing" if value is None else f"is {show(value)}"
        raise CheckpointError(f"config.json: {key} of the rotary positions {what}; a number over 0 is needed")
    return float(value)
