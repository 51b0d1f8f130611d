"""Models of random weights that the GPU's benchmarks run; speed depends on sizes and not on values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec, RopeSpec
from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec, ModelSpec
from approxrt.pruning.magnitude import prune_tiles
from approxrt.quantization.rtn import quantize_model
from approxrt.runtime.cuda.layout import PRUNE_BLOCK

POSITIONS = 512


@dataclass
class Subject:
    """Hold what an engine is built from."""

    spec: ModelSpec
    tensors: dict[str, np.ndarray]


def random_encoder(
    hidden: int, ffn: int, layers: int, heads: int, density: float = 1.0, vocab: int = 1000, seed: int = 0
) -> Subject:
    """A BERT classifier in int8, pruned by the blocks of the target cuda."""
    spec = ModelSpec(
        architecture="bert",
        task_type="classification",
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        max_positions=POSITIONS,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        activation="gelu",
        layers=tuple(LayerSpec(heads, hidden // heads, ffn) for _ in range(layers)),
        head=HeadSpec(dense_features=hidden),
        labels=("no", "yes"),
    )
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, _, shape in spec.dense_tensors():
        value = rng.standard_normal(shape, np.float32)
        if len(shape) == 2 and not name.startswith("embeddings"):
            value *= np.float32(shape[1] ** -0.5)
        else:
            value = value * np.float32(0.05) + np.float32(name.endswith("norm.weight"))
        tensors[name] = value
    masks = prune_tiles(spec, tensors, density, block=PRUNE_BLOCK) if density < 1 else {}
    return Subject(*quantize_model(spec, tensors, "s8", masks))


def hugging_face(subject: Subject, dtype: object) -> object:
    """transformers' BERT of the same sizes with SDPA, in `dtype` on the GPU; its weights are its own."""
    import transformers

    spec = subject.spec
    config = transformers.BertConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=spec.layers[0].num_heads,
        intermediate_size=spec.layers[0].intermediate_size,
        max_position_embeddings=spec.max_positions,
        num_labels=len(spec.labels),
        attn_implementation="sdpa",
    )
    return transformers.BertForSequenceClassification(config).to("cuda", dtype).eval()


@dataclass
class DecoderSubject:
    """Hold what a decoder's engine is built from."""

    decoder_spec: DecoderSpec
    tensors: dict[str, np.ndarray]


def random_decoder(bits: int, small: bool = False, seed: int = 0) -> DecoderSubject:
    """SmolLM2-135M's sizes (or tiny ones) with random weights of 8 or 4 bits, whose scales keep values near 1."""
    kind: Any = {8: "s8", 4: "s4"}[bits]
    count, hidden, ffn, vocab = (1, 64, 64, 64) if small else (30, 576, 1536, 49152)
    layer = DecoderLayerSpec(hidden // 64, hidden // 64 if small else 3, 64, ffn, *[kind] * 7)
    spec = DecoderSpec(
        architecture="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=2048,
        norm="rms",
        norm_eps=1e-5,
        activation="silu",
        gated=True,
        positions="rope",
        rope=RopeSpec(theta=100000.0),
        layers=(layer,) * count,
        embedding_kind=kind,
    )
    rng = np.random.default_rng(seed)
    inputs = {name: linear.in_features for name, linear in spec.linears()}
    tensors = {}
    for name, dtype, shape in spec.dense_tensors():
        if dtype == "I8":
            tensors[name] = rng.integers(-127, 128, shape, dtype=np.int8)
        elif name.endswith(".q4"):
            tensors[name] = rng.integers(1, 16, shape, dtype=np.uint8) | rng.integers(1, 16, shape, dtype=np.uint8) << 4
        elif dtype == "U8":
            tensors[name] = rng.integers(9, 19, shape, dtype=np.uint8)
        elif name.endswith(".scale"):
            width = inputs.get(name.removesuffix(".scale"), hidden)
            tensors[name] = np.full(shape, 1 / (70 * width**0.5), np.float32)
        else:
            tensors[name] = np.full(shape, float(name.endswith("norm.weight")), np.float32)
    return DecoderSubject(spec, tensors)


def decoder_peer(subject: DecoderSubject) -> Any:
    """transformers' Llama of the same sizes in bf16 with SDPA on the GPU; its weights are its own."""
    import torch
    import transformers

    spec = subject.decoder_spec
    layer = spec.layers[0]
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=layer.intermediate_size,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=layer.num_heads,
        num_key_value_heads=layer.num_kv_heads,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
