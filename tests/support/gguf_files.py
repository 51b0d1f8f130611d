"""Small random .gguf files, written by the package `gguf`, with the transformers models that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from decoders import build_decoder_config, decoder_tokenizer
from families import randomize

NAMES = {
    "llama": {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "model.layers": "blk",
    },
    "gpt2": {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
        "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "transformer.h": "blk",
    },
}  # fmt: skip
NAMES["qwen2"] = NAMES["llama"]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes the rows of query and key: i and i + head_dim / 2 become neighbours."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def byte_level_keys(writer: Any, pre: str | None = "gpt-2") -> list[str]:
    """Write the vocabulary of `decoder_tokenizer`; returns its tokens."""
    data = json.loads(decoder_tokenizer().to_str())
    vocab: dict[str, int] = data["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    return tokens


def random_model(family: str, seed: int = 0, **options: Any) -> Any:
    """A random transformers model for the vocabulary of `decoder_tokenizer`."""
    import transformers

    config = build_decoder_config(family, decoder_tokenizer().get_vocab_size(), **options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    return model.eval()


def stored_tensors(model: Any, family: str) -> dict[str, np.ndarray]:
    """The model's tensors as llama.cpp's converter stores them."""
    config, out = model.config, {}
    tied = bool(config.tie_word_embeddings)
    for name, value in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        array = value.float().numpy()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = interleaved(array, heads)
        if family == "gpt2" and ("c_" in name and name.endswith("weight")):
            array = array.T
        for old, new in NAMES[family].items():
            name = name.replace(old, new)
        out[name] = np.ascontiguousarray(array)
    return out


def write_gguf(
    path: Path,
    model: Any,
    family: str,
    keys: Mapping[str, Any] | None = None,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
    vocabulary: Callable[[Any], Any] = byte_level_keys,
    **options: Any,
) -> Path:
    """Write `model`. `keys` are set over those that a converter writes (None: left out), `tensors` changes tensors.

    `options` go to GGUFWriter.
    """
    config = model.config
    if family == "gpt2":
        sizes = {
            "context_length": config.n_positions, "embedding_length": config.n_embd, "block_count": config.n_layer,
            "feed_forward_length": config.n_inner, "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        }  # fmt: skip
    else:
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = {
            "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.freq_base": float(config.rope_parameters["rope_theta"]), "rope.dimension_count": dim,
        }  # fmt: skip
    writer = gguf.GGUFWriter(str(path), family, **options)
    for key, value in {**sizes, **(keys or {})}.items():
        if value is None:
            continue
        name = f"{family}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    vocabulary(writer)
    for name, array in tensors(stored_tensors(model, family)).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_logits(model: Any, ids: list[int]) -> np.ndarray:
    """f32[vocab] of the token after `ids`, by transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()
