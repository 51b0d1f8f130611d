"""From a Hugging Face checkpoint to a spec with float32 tensors and a tokenizer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from approxrt.artifact.spec import INPUTS, ModelSpec
from approxrt.artifact.validate import spec_faults
from approxrt.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from approxrt.models import bert, distilbert, electra, roberta
from approxrt.models.base import Config, Pooling, Weights
from approxrt.models.sentence import max_seq_length, read_pooling
from approxrt.models.tokenizer import read_tokenizer
from approxrt.models.weights import read_json, read_weights

FAMILIES: dict[str, ModuleType] = {
    model_type: family for family in (bert, distilbert, roberta, electra) for model_type in family.MODEL_TYPES
}
SUPPORTED_HEADS = "...ForSequenceClassification, ...Model (plain encoder), sentence-transformers folders"

# What a hub checkpoint is made of; nothing else is downloaded.
HUB_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "sentencepiece*",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the artifact's terms: all linears f32, tensors under the artifact's names.

    `tensors` may be views into the checkpoint's file. `source` holds plain facts
    for the card: name, model_type, architecture, finetuning_task, bytes of
    weights, number of parameters. `unused` names tensors that the task does not need.
    """

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: bytes
    source: dict[str, Any]
    unused: tuple[str, ...] = ()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a local folder, or a hub id where a hub can be reached.

    Raises UnsupportedModelError naming what is not implemented and what is, and
    CheckpointError naming the file or tensor at fault.
    """
    folder = find_folder(path)
    raw, family, config = read_config(folder)
    architecture = _architecture(raw)
    pooling = _pooling(folder, architecture)
    tensors = read_weights(folder)
    weights = Weights(tensors, family.PREFIX)
    build: Callable[..., tuple[ModelSpec, dict[str, np.ndarray]]] = family.build
    spec, taken = build(config, weights, pooling)
    spec = dataclasses.replace(spec, inputs=_inputs(raw), max_length=_max_length(folder, spec))
    faults = spec_faults(spec)
    if faults:
        raise CheckpointError(f"checkpoint {str(folder)!r} describes no sound model: " + "; ".join(faults))
    source = {
        "name": Path(os.path.abspath(path)).name if Path(path).is_dir() else str(path),
        "model_type": raw["model_type"],
        "architecture": architecture,
        "finetuning_task": raw.get("finetuning_task"),
        "weight_bytes": sum(tensors[name].data.nbytes for name in tensors if name in weights.taken),
        "parameters": int(sum(array.size for array in taken.values())),
    }
    unused = tuple(sorted(name for name in weights.tensors if name not in weights.taken))
    return Checkpoint(spec, taken, read_tokenizer(folder), source, unused)


def read_config(folder: Path) -> tuple[dict[str, Any], ModuleType, Config]:
    """(config.json, family, config with the family's defaults) of an encoder that is supported, head apart.

    Raises UnsupportedModelError naming the model type, activation or option that is not.
    """
    raw = read_json(folder / "config.json")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[model_type]
    config = Config(raw, family.DEFAULTS)
    config.refuse_unsupported()
    config.activation(family.ACTIVATION_KEY)
    return raw, family, config


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded to huggingface_hub's cache first."""
    text = os.fspath(path)
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise CheckpointError(f"checkpoint {text!r} has no config.json; a folder saved by transformers has one")
        return folder
    if folder.exists():
        raise UnsupportedModelError(
            f"{text!r} is a file; supported: folders saved by save_pretrained, hub ids, and .gguf files for convert"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip("/"):
        raise CheckpointError(f"checkpoint {text!r} does not exist; check the path")
    return _download(text)


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub", "compress", f"{hub_id!r} is not a local folder; as a hub id it"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:
        # network, authorisation, unknown id, offline mode: many classes, one thing to say
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{hub_id!r} is not a folder here, and as a hub id it cannot be downloaded: {reason}. "
            "Check the path, or download the checkpoint elsewhere and give its folder"
        ) from error


def _architecture(raw: Mapping[str, Any]) -> str | None:
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _pooling(folder: Path, architecture: str | None) -> Pooling | None:
    """None for a classifier, else how its hidden states are pooled.

    sentence-transformers loads the encoder alone, so its modules.json outweighs
    the class that the config names. A bare encoder is pooled by mean, which is
    that library's own default.
    """
    pooling = read_pooling(folder)
    if pooling is not None:
        return pooling
    if architecture is None or architecture.endswith("ForSequenceClassification"):
        return None
    if architecture.endswith("Model"):
        return Pooling("mean", False)
    raise UnsupportedModelError(f"head {architecture!r} is not supported; supported: {SUPPORTED_HEADS}")


def _inputs(raw: Mapping[str, Any]) -> str:
    """`single` or `pair` where the checkpoint says so: `approxrt_inputs`, or the GLUE task it was tuned on."""
    given = raw.get("approxrt_inputs")
    if given is not None:
        if not isinstance(given, str) or given not in INPUTS:
            raise CheckpointError(f"config.json: approxrt_inputs is {given!r}; one of {', '.join(INPUTS)} is needed")
        return str(given)
    task = str(raw.get("finetuning_task") or "").lower().replace("-", "").replace("_", "")
    if task in ("sst2", "cola"):
        return "single"
    if task in ("mrpc", "rte", "stsb", "qnli", "wnli", "qqp", "mnli"):
        return "pair"
    return "any"


def _max_length(folder: Path, spec: ModelSpec) -> int:
    lengths = [spec.max_positions]
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.exists():
        length = read_json(tokenizer_config).get("model_max_length")
        # transformers writes 1e30 for "no limit"
        if isinstance(length, int | float) and not isinstance(length, bool) and 1 <= length < 1 << 20:
            lengths.append(int(length))
    sentence = max_seq_length(folder)
    if sentence is not None:
        lengths.append(sentence)
    return min(lengths)
