"""Read a decoder's checkpoint (a folder, or a .gguf file) into a spec with float32 tensors and a tokenizer."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.decoder_schema import decoder_faults
from approxrt.artifact.spec.faults import show
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models import gpt2, llama
from approxrt.models.base import Config, Weights
from approxrt.models.checkpoint import find_folder
from approxrt.models.gguf_file import GgufFile, has_gguf_magic, open_gguf
from approxrt.models.gguf_groups import grouped_tensors
from approxrt.models.gguf_model import ARCHITECTURES, build_gguf
from approxrt.models.gguf_tokenizer import read_gguf_tokenizer
from approxrt.models.quantized import refuse_quantized
from approxrt.models.tokenizer import load_tokenizer
from approxrt.models.weights import read_json, read_json_if_there, read_text, read_weights

FAMILIES: dict[str, ModuleType] = {model_type: family for family in (gpt2, llama) for model_type in family.MODEL_TYPES}
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_HEADS = ("ForCausalLM", "LMHeadModel")
_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Tensors of older checkpoints that are no weights: masks and the frequencies of rotary positions.
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_SHOWN = 10


@dataclass(frozen=True)
class DecoderCheckpoint:
    """A checkpoint in the artifact's terms: all linears f32; `source` holds plain facts for the card.

    Those of a .gguf file are turned to floats whenever one is taken from `tensors`: a copy of all of them may be
    several times as large as the file.
    `grouped`: matrices of a .gguf file that have kind g4 or g8 there (`approxrt.models.gguf_groups`), which `tensors`
    holds as floats, too.
    `folder`: where the checkpoint's files are, unless it is a .gguf file.
    """

    spec: DecoderSpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: bytes
    source: dict[str, Any]
    grouped: Mapping[str, dict[str, np.ndarray]] = field(default_factory=dict)
    folder: Path | None = None


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a .gguf file, by its name or by its first bytes (a cache's files have no suffix)."""
    file = Path(path)
    return (file.suffix.lower() == ".gguf" and not file.is_dir()) or has_gguf_magic(file)


def is_decoder_config(config: Mapping[str, Any]) -> bool:
    """Tell whether config.json is that of a decoder with its language-model head, of a family that is supported."""
    return str(config.get("model_type")) in FAMILIES and _head(config).endswith(_HEADS)


def names_a_decoder(config: Mapping[str, Any]) -> bool:
    """Return whether config.json describes a decoder with a language-model head, supported or not."""
    return is_decoder_config(config) or (bool(config.get("architectures")) and _head(config).endswith(_HEADS))


def _head(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else _HEADS[0]


def load_decoder(path: str | os.PathLike[str], folder: Path | None, grouped: bool = False) -> DecoderCheckpoint:
    """Read `folder` (a checkpoint with a language-model head), or the .gguf file `path`, if asked with `grouped`.

    Raises UnsupportedModelError and CheckpointError as `approxrt.models.checkpoint.load_checkpoint` does.
    """
    if folder is None:
        return _from_gguf(Path(path), grouped)
    return _from_folder(folder, os.fspath(path))


def load_any_decoder(path: str | os.PathLike[str], grouped: bool = False) -> DecoderCheckpoint:
    """A folder, a hub id or a .gguf file. Raises UnsupportedModelError for what is no decoder."""
    if is_gguf(path):
        return load_decoder(path, None, grouped)
    folder = find_folder(path)
    config = read_json(folder / "config.json")
    if not names_a_decoder(config):
        raise UnsupportedModelError(
            f"{os.fspath(path)!r} is no decoder with a language-model head (model_type {config.get('model_type')!r}); "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    return load_decoder(path, folder)


def _from_folder(folder: Path, path: str) -> DecoderCheckpoint:
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"checkpoint {path!r} is a decoder of model_type {show(model_type)} ({_head(config)[:100]}), which is not "
            f"supported; supported decoders: {', '.join(sorted(FAMILIES))}"
        )
    refuse_quantized(folder, config)
    family = FAMILIES[model_type]
    defaults = {**family.DEFAULTS, **(llama.QWEN2_DEFAULTS if model_type == "qwen2" else {})}
    weights = Weights(read_weights(folder), family.PREFIX, family.ANCHOR)
    spec, taken = family.build(Config(config, defaults), weights)
    _refuse_left_over(path, weights)
    tokenizer_config = read_json_if_there(folder / "tokenizer_config.json")
    tokenizer = load_tokenizer(folder, typed=False)
    tokenizer.check_rows(spec.vocab_size)
    tokenizer_json = tokenizer.json
    ids = {token: i for token, i in token_ids(tokenizer_json).items() if i < spec.vocab_size}
    specials = _special_tokens(tokenizer_config)
    generation = read_json_if_there(folder / "generation_config.json")
    ends = generation.get("eos_token_id") if generation.get("eos_token_id") is not None else config.get("eos_token_id")
    spec = dataclasses.replace(
        spec,
        eos_token_ids=_ends(ends, ids.get(specials.get("eos_token", ""))),
        chat_template=_chat_template(folder, tokenizer_config),
        special_tokens=specials,
    )
    source = {
        "name": Path(os.path.abspath(path)).name if Path(path).is_dir() else path,
        "model_type": model_type,
        "architecture": _head(config) if config.get("architectures") else None,
        "finetuning_task": None,
        "weight_bytes": sum(tensor.data.nbytes for tensor in weights.tensors.values()),
    }
    return _checked(path, DecoderCheckpoint(spec, taken, tokenizer_json, source, folder=folder))


def _from_gguf(path: Path, grouped: bool) -> DecoderCheckpoint:
    file = open_gguf(path, ARCHITECTURES)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    spec, tensors = build_gguf(file, len(tokens) if isinstance(tokens, list) else _rows(file))
    tokenizer = read_gguf_tokenizer(file)
    spec = dataclasses.replace(
        spec, eos_token_ids=tokenizer.eos_token_ids, chat_template=tokenizer.template, special_tokens=tokenizer.specials
    )
    source = {
        "name": path.name,
        "model_type": spec.architecture,
        "architecture": _CLASSES[spec.architecture],
        "finetuning_task": None,
        "weight_bytes": file.bytes,
    }
    parts = grouped_tensors(file, spec) if grouped else {}
    return _checked(os.fspath(path), DecoderCheckpoint(spec, tensors, tokenizer.json, source, parts))


def _rows(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    return table.shape[0] if table is not None else 1


def _checked(path: str, checkpoint: DecoderCheckpoint) -> DecoderCheckpoint:
    faults = decoder_faults(checkpoint.spec)
    if faults:
        raise CheckpointError(f"checkpoint {path!r} describes no sound model: " + "; ".join(faults))
    checkpoint.source["parameters"] = sum(math.prod(shape) for _, _, shape in checkpoint.spec.dense_tensors())
    return checkpoint


def _refuse_left_over(path: str, weights: Weights) -> None:
    """Refuse tensors that the model would not use: it may have been trained with them (biases, norms, adapters)."""
    left = [name for name in weights.tensors if name not in weights.taken and not name.endswith(_BUFFERS)]
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise CheckpointError(
            f"checkpoint {path!r} has tensors that the model of its config.json does not use: "
            f"{', '.join(sorted(left)[:_SHOWN])}{more}; set attention_bias or mlp_bias if these are biases, or "
            "remove them"
        )


def token_ids(tokenizer_json: bytes) -> dict[str, int]:
    """Every token of a `tokenizers` file, added ones too, with its id."""
    from tokenizers import Tokenizer

    ids: dict[str, int] = Tokenizer.from_str(tokenizer_json.decode("utf-8")).get_vocab(with_added_tokens=True)
    return ids


def _ends(value: Any, also: int | None) -> tuple[int, ...]:
    values = [*(value if isinstance(value, list) else [value]), also]
    return tuple(dict.fromkeys(v for v in values if type(v) is int))


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """chat_template.jinja, chat_template.json, or tokenizer_config.json's; of several by name the default one."""
    template = read_json_if_there(folder / "chat_template.json").get("chat_template")
    template = tokenizer_config.get("chat_template") if template is None else template
    if (folder / "chat_template.jinja").exists():
        template = read_text(folder / "chat_template.jinja")
    if isinstance(template, list):
        template = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts by name; transformers writes a string, or an object with `content`."""
    texts = {}
    for name in _SPECIALS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts
