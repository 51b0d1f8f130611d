"""Randomly initialised decoder checkpoints, as transformers saves them, and small specs with random tensors.

The tokenizer is a real byte-level BPE over the sentences of `families.py`: any text goes in and comes out again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from families import build_tokenizer, randomize
from tokenizers import Tokenizer, processors

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec, RopeSpec

DECODERS = ("gpt2", "llama", "qwen2")
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def decoder_tokenizer() -> Tokenizer:
    """RoBERTa's byte-level BPE without its template: nothing is put around a prompt."""
    tokenizer = build_tokenizer("roberta")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def build_decoder_config(family: str, vocab: int, **options: Any) -> Any:
    """A transformers config; more options go to it as they are."""
    import transformers

    hidden, heads, layers, inner, positions = (
        options.pop(key, value)
        for key, value in (("hidden", 64), ("heads", 4), ("layers", 2), ("inner", 96), ("positions", 128))
    )
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab, n_embd=hidden, n_head=heads, n_layer=layers, n_inner=inner, n_positions=positions,
            bos_token_id=0, eos_token_id=2, **options,
        )  # fmt: skip
    cls = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family]
    return cls(
        vocab_size=vocab, hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers,
        intermediate_size=inner, max_position_embeddings=positions,
        **{"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2, **options},
    )  # fmt: skip


def build_decoder(family: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Save a random checkpoint with its tokenizer and chat template, and return `folder`."""
    import transformers

    tokenizer = decoder_tokenizer()
    config = build_decoder_config(family, tokenizer.get_vocab_size(), **options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "</s>",
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def small_decoder_spec(kind: str = "s8", hidden: int = 40, count: int = 2, **changes: Any) -> DecoderSpec:
    """Sizes that are no multiples of the tile; 4 query heads for 2 key-value heads."""
    layer = DecoderLayerSpec(4, 2, 10, 51, *[kind] * 7)
    fields: dict[str, Any] = {
        "architecture": "llama",
        "vocab_size": 70,
        "hidden_size": hidden,
        "max_positions": 64,
        "norm": "rms",
        "norm_eps": 1e-5,
        "activation": "silu",
        "gated": True,
        "positions": "rope",
        "rope": RopeSpec(),
        "layers": (layer,) * count,
        "embedding_kind": {"f32": "f32", "s4": "s4", "bsr_s4": "s4", "g4": "g4", "g6": "g6", "g8": "g8"}.get(
            kind, "s8"
        ),
    }
    return DecoderSpec(**{**fields, **changes})
