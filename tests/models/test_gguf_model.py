"""A .gguf file's keys and tensors: transformers' logits of the same weights, or a refusal that names what is wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from gguf_files import model_logits, random_model, write_gguf  # noqa: E402

import approxrt  # noqa: E402
from approxrt.errors import CheckpointError, UnsupportedModelError  # noqa: E402
from approxrt.models.decoder import load_decoder  # noqa: E402
from approxrt.runtime.reference.decoder import DecoderReference  # noqa: E402

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}


def rope_freqs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the factors by which llama.cpp divides the frequencies of `LLAMA3`, for heads of 16."""
    from approxrt.artifact.spec.decoder import RopeSpec

    plain = RopeSpec(500.0).frequencies(16)
    scaled = RopeSpec(500.0, "llama3", 4.0, 1.0, 4.0, 32).frequencies(16)
    return {**tensors, "rope_freqs.weight": (plain / scaled).astype(np.float32)}


GOOD: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[..., Any]]] = {
    "llama": ("llama", {}, {}, dict),
    "qwen2": ("qwen2", {}, {}, dict),
    "gpt2": ("gpt2", {}, {}, dict),
    "gpt2-own-head": ("gpt2", {"tie_word_embeddings": False, "inner": 100}, {}, dict),
    "tied": ("llama", {"tie_word_embeddings": True}, {}, dict),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}, dict),
    "one-kv": ("llama", {"num_key_value_heads": 1}, {}, dict),
    "no-kv-count": ("llama", {"num_key_value_heads": 4}, {"attention.head_count_kv": None}, dict),
    "kv-by-layer": ("llama", {}, {"attention.head_count_kv": [2, 2], "feed_forward_length": [96, 96]}, dict),
    "wide-heads": ("llama", {"head_dim": 24}, {"attention.key_length": 24, "attention.value_length": 24}, dict),
    "eps": ("llama", {"rms_norm_eps": 1e-2}, {}, dict),
    "linear": (
        "llama", {"rope_parameters": LINEAR}, {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}, dict,
    ),
    "old-linear": ("llama", {"rope_parameters": LINEAR}, {"rope.scale_linear": 3.0}, dict),
    "no-scaling": ("llama", {}, {"rope.scaling.type": "none", "rope.scaling.factor": 3.0}, dict),
    "llama3": ("llama", {"rope_parameters": LLAMA3}, {}, rope_freqs),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    family, options, keys, tensors = GOOD[name]
    model = random_model(family, **options)
    path = write_gguf(tmp_path / "model.gguf", model, family, keys, tensors)
    checkpoint = load_decoder(path, None)
    ids = np.random.default_rng(0).integers(0, checkpoint.spec.vocab_size, 60).tolist()
    found = DecoderReference(checkpoint.spec, checkpoint.tensors).next_logits(ids)[-1]
    expected = model_logits(model, ids)
    # float64 against float32 over two layers, and 60 radians rounded to float32; logits are of the order of 10
    np.testing.assert_allclose(found, expected, atol=2e-3 if family != "gpt2" else 1e-4)
    artifact = approxrt.load(approxrt.convert(path, tmp_path / "a", bits=32), threads=1)
    np.testing.assert_allclose(artifact.forward([ids])[0], expected, atol=2e-3)


def test_a_linear_factor_stretches_the_context(tmp_path: Path) -> None:
    model = random_model("llama")
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}
    path = write_gguf(tmp_path / "m.gguf", model, "llama", keys)
    assert load_decoder(path, None).spec.max_positions == 3 * 128
    path = write_gguf(tmp_path / "m.gguf", model, "llama", keys | {"rope.scaling.original_context_length": 43})
    assert load_decoder(path, None).spec.max_positions == 128


def without(*names: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda tensors: {name: array for name, array in tensors.items() if name not in names}


def also(name: str, *shape: int) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda tensors: {**tensors, name: np.ones(shape, np.float32)}


def spoiled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    array = tensors["blk.1.ffn_up.weight"].copy()
    array[3, 5] = np.nan
    return {**tensors, "blk.1.ffn_up.weight": array}


BAD: dict[str, tuple[str, dict[str, Any], Callable[..., Any], str]] = {
    "no-block-count": ("llama", {"block_count": None}, dict, "llama.block_count is missing"),
    "many-blocks": ("llama", {"block_count": 2**31}, dict, "llama.block_count is 2147483648"),
    "no-eps": ("llama", {"attention.layer_norm_rms_epsilon": None}, dict, "layer_norm_rms_epsilon is missing"),
    "two-keys": ("llama", {"context_length": None, "embedding_length": None}, dict, "embedding_length.*context_l"),
    "gpt2-no-eps": ("gpt2", {"attention.layer_norm_epsilon": None}, dict, "gpt2.attention.layer_norm_epsilon is mis"),
    "fewer-blocks": ("llama", {"block_count": 1}, dict, "does not have: .*blk.1.attn_norm.weight"),
    "more-blocks": ("llama", {"block_count": 3}, dict, "blk.2.attn_norm.weight is missing.*blk.2.ffn_down.weight"),
    "missing": ("llama", {}, without("blk.0.attn_v.weight"), "tensor blk.0.attn_v.weight is missing"),
    "no-words": ("llama", {}, without("token_embd.weight"), "tensor token_embd.weight is missing"),
    "qwen2-bias": ("qwen2", {}, without("blk.1.attn_k.bias"), "tensor blk.1.attn_k.bias is missing"),
    "gpt2-bias": ("gpt2", {}, without("blk.1.attn_qkv.bias"), "tensor blk.1.attn_qkv.bias is missing"),
    "left-over": ("llama", {}, also("blk.0.attn_q_norm.weight", 16), "does not have: blk.0.attn_q_norm.weight"),
    "qwen2-extra-bias": ("qwen2", {}, also("blk.0.ffn_up.bias", 96), "does not have: blk.0.ffn_up.bias"),
    "rows": ("llama", {}, also("token_embd.weight", 500, 64), r"token_embd.weight has shape \[500, 64\]"),
    "narrow": ("llama", {"feed_forward_length": 64}, dict, r"ffn_gate.weight has shape \[96, 64\]; .*\[64, 64\]"),
    "nan": ("llama", {}, spoiled, "'blk.1.ffn_up.weight' has 1 values that are NaN"),
    "experts": ("llama", {"expert_count": 8, "expert_used_count": 2}, dict, "mixture of experts.*expert_count is 8"),
    "expert-tensors": ("llama", {}, also("blk.0.ffn_gate_inp.weight", 4, 64), "mixture of experts.*ffn_gate_inp"),
    "yarn": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, dict, "'yarn'; supported: none"),
    "longrope": ("qwen2", {"rope.scaling.type": "longrope"}, dict, "'longrope'"),
    "attn-factor": ("llama", {"rope.scaling.attn_factor": 0.5}, dict, "attn_factor"),
    "partial": ("llama", {"rope.dimension_count": 8}, dict, "rope.dimension_count is 8 and heads are 16"),
    "values": ("llama", {"attention.value_length": 8}, dict, "value_length is 8"),
    "window": ("llama", {"attention.sliding_window": 16}, dict, "sliding_window is 16"),
    "scale": ("llama", {"attention.scale": 0.5}, dict, "attention.scale is 0.5"),
    "not-causal": ("qwen2", {"attention.causal": False}, dict, "attention.causal is False"),
    "pooling": ("qwen2", {"pooling_type": 3}, dict, "pooling_type is 3"),
    "unknown-key": ("llama", {"attention.sinks": 4}, dict, "not implemented: llama.attention.sinks"),
    "heads": ("llama", {"attention.head_count_kv": 3}, dict, "4 attention heads of layer 0 are no multiple of 3"),
    "heads-by-layer": ("llama", {"attention.head_count": [4, 4, 4]}, dict, "head_count has 3 entries for 2 layers"),
    "text-size": ("llama", {"embedding_length": "64"}, dict, "embedding_length is '64'"),
    "factor": ("llama", {"rope.scaling.factor": -2.0}, dict, "rope.scaling.factor is -2.0"),
    "freqs": ("llama", {}, also("rope_freqs.weight", 5), r"rope_freqs.weight has shape \[5\]"),
    "qwen2-freqs": ("qwen2", {}, also("rope_freqs.weight", 8), "does not have: rope_freqs.weight"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: random_model(family) for family in ("llama", "qwen2", "gpt2")}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str, models: dict[str, Any], tmp_path: Path) -> None:
    family, keys, tensors, named = BAD[name]
    path = write_gguf(tmp_path / "model.gguf", models[family], family, keys, tensors)
    with pytest.raises(CheckpointError, match=named):
        approxrt.convert(path, tmp_path / "a", bits=4)
    assert not (tmp_path / "a").exists()


def test_an_adapter_is_no_model(models: dict[str, Any], tmp_path: Path) -> None:
    def vocabulary(writer: Any) -> None:
        from gguf_files import byte_level_keys

        byte_level_keys(writer)
        writer.add_type("adapter")

    path = write_gguf(tmp_path / "m.gguf", models["llama"], "llama", vocabulary=vocabulary)
    with pytest.raises(UnsupportedModelError, match=r"general\.type is 'adapter'"):
        load_decoder(path, None)


def test_weights_are_floats_one_by_one(tmp_path: Path) -> None:
    """Reading and rounding never hold a float32 copy of the weights."""
    model = random_model("llama", hidden=256, inner=1024, layers=6)
    floats = 4 * sum(value.numel() for value in model.state_dict().values())

    def halved(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.astype(np.float16) if array.ndim == 2 else array for name, array in tensors.items()}

    path = write_gguf(tmp_path / "m.gguf", model, "llama", tensors=halved)
    del model
    tracemalloc.start()
    checkpoint = load_decoder(path, None)
    # The tokenizer is checked on a vocabulary of 395, which is all that is held.
    assert tracemalloc.get_traced_memory()[1] < floats / 8
    tracemalloc.reset_peak()
    approxrt.convert(path, tmp_path / "a", bits=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Five bits and some a weight, held and written, and the largest matrix in float32 with what rounding it takes.
    assert peak < 0.75 * floats
    name = "layers.0.ffn.up.weight"
    assert checkpoint.tensors[name] is not checkpoint.tensors[name]
