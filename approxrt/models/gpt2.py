"""GPT-2 (Radford et al. 2019): learned positions, layer norms before each block, one matrix for query, key and value.

Its linears are stored as [inputs, outputs]; they are turned here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec
from approxrt.errors import UnsupportedModelError
from approxrt.models.base import Config, Weights
from approxrt.models.tied import take_words

MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."
ANCHOR = "h."
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def build(config: Config, weights: Weights) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors)."""
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if config.get(key, usual) != usual:
            raise UnsupportedModelError(f"{key}={config.get(key)!r} is not supported; supported: {usual}")
    hidden, vocab = config.size("n_embd"), config.size("vocab_size")
    positions = config.size("n_positions")
    inner = config.size("n_inner") if config.get("n_inner") is not None else 4 * hidden
    heads, head_dim = config.heads("n_embd", "n_head")
    tied = take_words(weights, "wte.weight", vocab, hidden, bool(config.get("tie_word_embeddings")))
    weights.take("embeddings.position.weight", "wpe.weight", (positions, hidden))

    def linear(targets: tuple[str, ...], source: str, n: int, k: int) -> None:
        """One stored matrix for `targets` of n outputs each."""
        both = weights.take("", f"{source}.weight", (k, len(targets) * n))
        bias = weights.take("", f"{source}.bias", (len(targets) * n,))
        del weights.out[""]
        for i, target in enumerate(targets):
            part = slice(i * n, (i + 1) * n)
            weights.out[f"{target}.weight"] = np.ascontiguousarray(both[:, part].T) if both.size else both
            weights.out[f"{target}.bias"] = np.ascontiguousarray(bias[part]) if bias.size else bias

    layers = config.layers("n_layer")
    for i in range(layers):
        at, there = f"layers.{i}", f"h.{i}"
        weights.norm(f"{at}.attention.norm", f"{there}.ln_1", hidden)
        parts = tuple(f"{at}.attention.{part}" for part in ("query", "key", "value"))
        linear(parts, f"{there}.attn.c_attn", hidden, hidden)
        linear((f"{at}.attention.output",), f"{there}.attn.c_proj", hidden, hidden)
        weights.norm(f"{at}.ffn.norm", f"{there}.ln_2", hidden)
        linear((f"{at}.ffn.up",), f"{there}.mlp.c_fc", inner, hidden)
        linear((f"{at}.ffn.down",), f"{there}.mlp.c_proj", hidden, inner)
    weights.norm("head.norm", "ln_f", hidden)
    spec = DecoderSpec(
        architecture="gpt2",
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=positions,
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon"),
        activation=config.activation("activation_function"),
        gated=False,
        positions="learned",
        layers=tuple(DecoderLayerSpec(heads, heads, head_dim, inner) for _ in range(layers)),
        tied_embeddings=tied,
    )
    return spec, weights.finish()
