"""From a decoder's checkpoint (a folder, or a .gguf file) to a spec with float32 tensors and a tokenizer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.decoder_validate import decoder_faults
from approxrt.artifact.tensorfile import Tensor
from approxrt.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from approxrt.models import gpt2, llama
from approxrt.models.base import Config, Weights
from approxrt.models.gguf_groups import grouped_tensors
from approxrt.models.tokenizer import read_tokenizer
from approxrt.models.weights import read_json, read_json_if_there, read_weights

FAMILIES: dict[str, ModuleType] = {model_type: family for family in (gpt2, llama) for model_type in family.MODEL_TYPES}
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class DecoderCheckpoint:
    """A checkpoint in the artifact's terms: all linears f32; `source` holds plain facts for the card.

    `grouped`: matrices of a .gguf file that have kind g4 or g8 there (`approxrt.models.gguf_groups`), which `tensors`
    holds as floats, too.
    """

    spec: DecoderSpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: bytes
    source: dict[str, Any]
    grouped: Mapping[str, dict[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raw:
    """What was read, before a family has looked at it."""

    name: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer_json: bytes
    chat_template: str
    special_tokens: dict[str, str]
    eos: Any
    weight_bytes: int


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a .gguf file that is there."""
    return os.fspath(path).endswith(".gguf") and Path(path).is_file()


def is_decoder_config(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of a decoder with its language-model head, of a family that is supported."""
    names = config.get("architectures")
    head = str(names[0]) if isinstance(names, list) and names else "ForCausalLM"
    return config.get("model_type") in FAMILIES and head.endswith(("ForCausalLM", "LMHeadModel"))


def load_decoder(path: str | os.PathLike[str], folder: Path | None, grouped: bool = False) -> DecoderCheckpoint:
    """Read `folder` (a checkpoint that `is_decoder_config`), or the .gguf file `path`, if asked with `grouped`.

    Raises UnsupportedModelError and CheckpointError as `approxrt.models.checkpoint.load_checkpoint` does.
    """
    raw = _read_gguf(Path(path)) if folder is None else _read_folder(folder, os.fspath(path))
    model_type = raw.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported; supported decoders: {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[model_type]
    defaults = {**family.DEFAULTS, **(llama.QWEN2_DEFAULTS if model_type == "qwen2" else {})}
    weights = Weights(raw.tensors, family.PREFIX, family.ANCHOR)
    spec, taken = family.build(Config(raw.config, defaults), weights)
    spec = dataclasses.replace(
        spec, eos_token_ids=_ends(raw.eos), chat_template=raw.chat_template, special_tokens=raw.special_tokens
    )
    faults = decoder_faults(spec)
    if faults:
        raise CheckpointError(f"checkpoint {os.fspath(path)!r} describes no sound model: " + "; ".join(faults))
    architecture = raw.config.get("architectures")
    source = {
        "name": raw.name,
        "model_type": model_type,
        "architecture": str(architecture[0]) if isinstance(architecture, list) and architecture else None,
        "finetuning_task": None,
        "weight_bytes": raw.weight_bytes,
        "parameters": int(sum(array.size for array in taken.values())),
    }
    parts = grouped_tensors(Path(path), spec, taken) if grouped and folder is None else {}
    return DecoderCheckpoint(spec, taken, raw.tokenizer_json, source, parts)


def load_any_decoder(path: str | os.PathLike[str]) -> DecoderCheckpoint:
    """A folder, a hub id or a .gguf file. Raises UnsupportedModelError for what is no decoder."""
    from approxrt.models.checkpoint import find_folder

    if is_gguf(path):
        return load_decoder(path, None)
    folder = find_folder(path)
    config = read_json(folder / "config.json")
    if not is_decoder_config(config):
        raise UnsupportedModelError(
            f"{os.fspath(path)!r} is no decoder with a language-model head (model_type {config.get('model_type')!r}); "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    return load_decoder(path, folder)


def _ends(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(v for v in values if type(v) is int))


def _read_folder(folder: Path, path: str) -> _Raw:
    config = read_json(folder / "config.json")
    tensors = read_weights(folder)
    tokenizer_config = read_json_if_there(folder / "tokenizer_config.json")
    generation = read_json_if_there(folder / "generation_config.json")
    template = tokenizer_config.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, list):  # several, by name
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return _Raw(
        name=Path(os.path.abspath(path)).name if Path(path).is_dir() else path,
        config=config,
        tensors=tensors,
        tokenizer_json=read_tokenizer(folder),
        chat_template=template if isinstance(template, str) else "",
        special_tokens=_special_tokens(tokenizer_config),
        eos=generation.get("eos_token_id", config.get("eos_token_id")),
        weight_bytes=sum(tensor.data.nbytes for tensor in tensors.values()),
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts by name; transformers writes a string, or an object with `content`."""
    texts = {}
    for name in _SPECIALS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _read_gguf(path: Path) -> _Raw:
    """Through transformers, which turns the file's tensors back to float32 and its tokenizer to one of `tokenizers`."""
    try:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "gguf", f"reading {path.name}") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        tokenizer_json = tokenizer.backend_tokenizer.to_str().encode("utf-8")
    except Exception as error:
        # ValueError, KeyError, OSError ...: whatever a damaged or unknown file leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{str(path)!r} cannot be read as a GGUF model: {reason}") from error
    template = tokenizer.chat_template
    eos = model.config.eos_token_id if model.config.eos_token_id is not None else tokenizer.eos_token_id
    return _Raw(
        name=path.name,
        config={**model.config.to_dict(), "architectures": [type(model).__name__]},
        tensors={name: Tensor("F32", value.detach().numpy()) for name, value in model.state_dict().items()},
        tokenizer_json=tokenizer_json,
        chat_template=template if isinstance(template, str) else "",
        special_tokens={
            name: str(getattr(tokenizer, name)) for name in _SPECIALS if getattr(tokenizer, name, None) is not None
        },
        eos=eos,
        weight_bytes=path.stat().st_size,
    )
