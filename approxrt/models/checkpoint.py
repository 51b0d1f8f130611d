"""Read a Hugging Face checkpoint into a spec with float32 tensors and a tokenizer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from approxrt.artifact.files import MAX_JSON_BYTES, open_large
from approxrt.artifact.layout import unreadable
from approxrt.artifact.spec.encoder import INPUTS, PER_TOKEN, ModelSpec, TextSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults
from approxrt.artifact.spec.faults import show
from approxrt.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from approxrt.models import albert, bert, distilbert, electra, mpnet, nomic_bert, roberta
from approxrt.models.base import (
    ACTIVATION_NAMES,
    QUESTION_ANSWERER,
    TOKEN_CLASSIFIER,
    Config,
    Pooling,
    Readout,
    Weights,
)
from approxrt.models.sentence import (
    LENGTH_FILES,
    SentenceFolder,
    classifier_activation,
    encoder_folder,
    read_sentence_folder,
)
from approxrt.models.tokenizer import CheckpointTokenizer, load_tokenizer
from approxrt.models.weights import read_json, read_weights, unwrap

FAMILIES: dict[str, ModuleType] = {
    model_type: family
    for family in (bert, distilbert, roberta, electra, mpnet, albert, nomic_bert)
    for model_type in family.MODEL_TYPES
}
# Heads that a language model was trained with: what is of use without one is the encoder.
PRETRAINING_HEADS = ("ForMaskedLM", "ForPreTraining")
SUPPORTED_HEADS = (
    "...ForSequenceClassification, ...ForTokenClassification, ...ForQuestionAnswering, ...Model, ...ForMaskedLM and "
    "...ForPreTraining (the encoder alone), "
    "sentence-transformers folders"
)

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
    *LENGTH_FILES,
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "*_Dense/pytorch_model.bin",
    "0_Transformer/*",
    "generation_config.json",
    "chat_template.jinja",
)

_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the artifact's terms: all linears f32, tensors under the artifact's names.

    `tensors` may be views into the checkpoint's file. `source` holds plain facts
    for the card: name, model_type, architecture, finetuning_task, bytes of
    weights, number of parameters. `unused` names tensors that the task does not need.
    `folder` holds the encoder's own files, and `wrapper` is what stands before every tensor's name in them that
    transformers does not know (module., _orig_mod., model.). `assumed_pooling`: no file says how hidden states become
    one vector, and they are pooled by mean.
    """

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: bytes
    source: dict[str, Any]
    unused: tuple[str, ...] = ()
    folder: Path = Path()
    wrapper: str = ""
    assumed_pooling: bool = False


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a local folder, or a hub id where a hub can be reached.

    Raises UnsupportedModelError naming what is not implemented and what is, and
    CheckpointError naming the file or tensor at fault.
    """
    root = find_folder(path)
    sentence = read_sentence_folder(root)
    folder = root if sentence is None else sentence.encoder
    raw, family, config = read_config(folder)
    tensors, wrapper = unwrap(read_weights(folder), family.PREFIX)
    architecture = _architecture(raw)
    pooling = sentence.pooling if sentence is not None else _pooling(raw, architecture, tensors)
    weights = Weights(tensors, family.PREFIX)
    build: Callable[..., tuple[ModelSpec, dict[str, np.ndarray]]] = family.build
    spec, taken = build(config, weights, pooling)
    spec = dataclasses.replace(spec, inputs=PER_TOKEN.get(spec.task_type, spec.inputs))
    if sentence is not None:
        spec, taken = _with_modules(spec, taken, sentence)
    faults = encoder_faults(spec)
    if faults:
        raise CheckpointError(f"checkpoint {str(root)!r} describes no sound model: " + "; ".join(faults))
    # After the config's sizes were found sound: transformers reads it, too, and would believe anything.
    lower_case = sentence is not None and sentence.lower_case
    tokenizer = load_tokenizer(folder, lower_case, getattr(family, "TOKEN_TYPES", True))
    spec = _with_surroundings(spec, raw, sentence, tokenizer)
    faults = encoder_faults(spec)
    if faults:
        raise CheckpointError(f"checkpoint {str(root)!r} describes no sound model: " + "; ".join(faults))
    tokenizer.check_rows(spec.vocab_size)
    source = {
        "name": Path(os.path.abspath(path)).name if Path(path).is_dir() else str(path),
        "model_type": raw["model_type"],
        "architecture": architecture,
        "finetuning_task": raw.get("finetuning_task"),
        "weight_bytes": sum(weights.tensors[name].data.nbytes for name in weights.taken),
        "parameters": int(sum(array.size for array in taken.values())),
    }
    unused = tuple(sorted(name for name in weights.tensors if name not in weights.taken))
    assumed = sentence is None and pooling is not None
    return Checkpoint(spec, taken, tokenizer.json, source, unused, folder, wrapper, assumed)


def _with_modules(
    spec: ModelSpec, tensors: dict[str, np.ndarray], sentence: SentenceFolder
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) with what a pooled vector goes through."""
    tensors, width = dict(tensors), spec.hidden_size * len(spec.head.poolings)
    for i, dense in enumerate(sentence.dense):
        if dense.weight.shape[1] != width:
            raise CheckpointError(f"Dense module {i} reads {dense.weight.shape[1]} elements; its input has {width}")
        width = dense.spec.features
        tensors |= {f"head.projections.{i}.weight": dense.weight, f"head.projections.{i}.bias": dense.bias}
    head = dataclasses.replace(
        spec.head,
        projections=tuple(dense.spec for dense in sentence.dense),
        truncate_dim=min(sentence.truncate_dim, width),
    )
    return dataclasses.replace(spec, head=head), tensors


def _with_surroundings(
    spec: ModelSpec, raw: dict[str, Any], sentence: SentenceFolder | None, tokenizer: CheckpointTokenizer
) -> ModelSpec:
    """Return the spec with what other files than the weights decide: inputs, longest text, prompts, activations."""
    length = sentence.max_length if sentence is not None and sentence.max_length else tokenizer.max_length
    head = spec.head
    if spec.labels:
        named = (sentence.activation if sentence is not None else "") or classifier_activation(raw)
        named = "" if spec.per_token else named  # a CrossEncoder's, which has no such head
        head = dataclasses.replace(head, activation_fn=named, function_to_apply=_pipeline_function(spec, raw))
    return dataclasses.replace(
        spec,
        head=head,
        inputs=_inputs_of(raw, spec, tokenizer),
        max_length=min(length or spec.max_positions, spec.max_positions),
        text=sentence.text if sentence is not None else TextSpec(),
    )


def _inputs_of(raw: Mapping[str, Any], spec: ModelSpec, tokenizer: CheckpointTokenizer) -> str:
    """Return what the checkpoint says, but no pairs where they get a token type that the model does not have."""
    inputs = _inputs(raw)
    if spec.per_token:
        wanted = PER_TOKEN[spec.task_type]
        if raw.get("approxrt_inputs") not in (None, wanted):
            raise CheckpointError(
                f"config.json: approxrt_inputs is {inputs!r}; a head for {spec.task_type} takes {wanted!r}: leave it "
                "out"
            )
        inputs = wanted
    highest = tokenizer.highest_pair_type()
    if highest == 0 or highest < spec.type_vocab_size:
        return inputs
    if inputs == "pair":
        raise CheckpointError(
            f"the tokenizer gives pairs token types up to {highest}, and the model has {max(spec.type_vocab_size, 1)} "
            "(type_vocab_size): leave token_type_ids out of model_input_names in tokenizer_config.json"
        )
    return "single"


def _pipeline_function(spec: ModelSpec, raw: Mapping[str, Any]) -> str:
    """Name what transformers' pipeline applies to the logits."""
    problem = None if spec.per_token else raw.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or (len(spec.labels) == 1 and not spec.per_token):
        return "sigmoid"
    return "softmax"


def read_config(folder: Path) -> tuple[dict[str, Any], ModuleType, Config]:
    """Return (config.json, family, config with the family's defaults) of an encoder that is supported, head apart.

    Raises UnsupportedModelError naming the model type, activation or option that is not.
    """
    raw = read_json(folder / "config.json")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {show(model_type)} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[model_type]
    config = Config(raw, family.DEFAULTS)
    config.refuse_unsupported()
    config.activation(family.ACTIVATION_KEY, getattr(family, "ACTIVATIONS", ACTIVATION_NAMES))
    return raw, family, config


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded to huggingface_hub's cache first."""
    text = os.fspath(path)
    folder = Path(text)
    if folder.is_dir():
        encoder = encoder_folder(folder)
        if not (encoder / "config.json").exists():
            raise CheckpointError(f"checkpoint {text!r} has no config.json; a folder saved by transformers has one")
        for part in {folder, encoder}:
            _check_files(part)
        return folder
    if folder.exists():
        raise UnsupportedModelError(
            f"{text!r} is a file; supported: folders saved by save_pretrained, hub ids, and .gguf files for convert"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip("/"):
        raise CheckpointError(f"checkpoint {text!r} does not exist; check the path")
    return _download(text)


def _check_files(folder: Path) -> None:
    """Refuse what would make libraries wait or read for ever, which open the folder's files by themselves.

    Raises CheckpointError for a FIFO, a device or a socket in the place of one, and for texts of absurd sizes.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not any(fnmatch(path.name, pattern) for pattern in HUB_FILES):
            continue
        try:
            with open_large(path) as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise CheckpointError(unreadable(str(path), error)) from error
        if size > MAX_JSON_BYTES and not path.name.endswith(_WEIGHTS):
            raise CheckpointError(f"{path} has {size} bytes; the limit is {MAX_JSON_BYTES}")


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


def _pooling(raw: Mapping[str, Any], architecture: str | None, tensors: Mapping[str, Any]) -> Readout:
    """None for a classifier, a head that reads every token, or how hidden states are pooled.

    A bare encoder, or one with the head it was pre-trained with, is pooled by mean, which is sentence-transformers' own
    default. A config that names no class belongs to a classifier if the weights have its head.
    """
    if architecture is None:
        if f"{QUESTION_ANSWERER.linear}.weight" in tensors:
            return QUESTION_ANSWERER
        headed = any(name in tensors for name in ("classifier.weight", "classifier.out_proj.weight"))
        return None if headed else Pooling("mean", False)
    if architecture.endswith("ForSequenceClassification"):
        return None
    if architecture.endswith("ForTokenClassification"):
        return TOKEN_CLASSIFIER
    if architecture.endswith("ForQuestionAnswering"):
        return QUESTION_ANSWERER
    if architecture.endswith(("Model", *PRETRAINING_HEADS)):
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
