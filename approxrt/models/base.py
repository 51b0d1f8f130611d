"""Share what all families need: typed access to config.json, checked access to weights, layers, heads.

A family's file says how its names and conventions map to a `ModelSpec` (all
linears f32) and the artifact's tensor names. Faults in weights are collected
and raised together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import (
    MAX_LABELS,
    MAX_LAYERS,
    MAX_VOCAB,
    QA_OUTPUTS,
    HeadSpec,
    LayerSpec,
    TaskType,
)
from approxrt.artifact.spec.faults import show
from approxrt.artifact.tensorfile import Tensor
from approxrt.errors import CheckpointError, UnsupportedModelError

# transformers' names of activations -> ours. gelu_new, gelu_pytorch_tanh: the tanh approximation.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}

# Of epsilons and the like: what is larger, is infinite, or is an integer that no float holds, is a mistake.
MAX_NUMBER = 1e30


class Config:
    """config.json with a family's defaults beneath it; every access checks the type."""

    def __init__(self, data: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.data = {**defaults, **{key: value for key, value in data.items() if value is not None}}

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)

    def size(self, key: str, minimum: int = 1, maximum: int = MAX_VOCAB) -> int:
        value = self.data.get(key)
        if type(value) is not int or not minimum <= value <= maximum:
            raise CheckpointError(
                f"config.json: {key} is {show(value)}; an integer between {minimum} and {maximum} is needed"
            )
        return value

    def layers(self, key: str) -> int:
        return self.size(key, maximum=MAX_LAYERS)

    def number(self, key: str) -> float:
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            raise CheckpointError(f"config.json: {key} is {show(value)}; a number of at most {MAX_NUMBER:g} is needed")
        return float(value)

    def activation(self, key: str, names: Mapping[str, str] = ACTIVATION_NAMES) -> str:
        """Return our name of an activation; `names`: transformers' of those that the family may have -> ours."""
        name = self.data.get(key)
        if not isinstance(name, str) or name not in names:
            raise UnsupportedModelError(
                f"activation {show(name)} ({key} in config.json) is not supported; supported: " + ", ".join(names)
            )
        return names[name]

    def refuse_unsupported(self) -> None:
        """Raise for the options of these families that change what a layer computes."""
        position = self.data.get("position_embedding_type", "absolute")
        if position != "absolute":
            raise UnsupportedModelError(
                f"position_embedding_type {show(position)} is not supported; supported: absolute (learned or "
                "sinusoidal)"
            )
        labels = self.data.get("num_labels", 1)
        if type(labels) is not int or not 1 <= labels <= MAX_LABELS:
            raise CheckpointError(f"config.json: num_labels is {show(labels)}; 1 to {MAX_LABELS} are needed")
        for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if self.data.get(key):
                raise UnsupportedModelError(f"{key}=true is not supported; supported: encoders only")

    def heads(self, hidden_key: str, heads_key: str) -> tuple[int, int]:
        """Return (num_heads, head_dim)."""
        hidden, heads = self.size(hidden_key), self.size(heads_key)
        if hidden % heads:
            raise CheckpointError(f"config.json: {hidden_key} {hidden} is not a multiple of {heads_key} {heads}")
        return heads, hidden // heads


class Weights:
    """The checkpoint's tensors, taken one at a time under the artifact's names, as float32.

    A missing or misshapen tensor is noted, not raised, so that `finish` can name all of them. `prefix` is that of the
    task checkpoint's encoder (or decoder), if any tensor there begins with `anchor`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, anchor: str = "embeddings.") -> None:
        # Checkpoints converted from TensorFlow call the layer norm's parameters gamma and beta.
        self.tensors = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in tensors.items()
        }
        self.prefix = prefix if any(name.startswith(f"{prefix}{anchor}") for name in self.tensors) else ""
        self.out: dict[str, np.ndarray] = {}
        self.taken: set[str] = set()
        self.faults: list[str] = []

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else tuple(tensor.data.shape)

    def take(self, target: str, source: str, shape: tuple[int, ...], encoder: bool = True) -> np.ndarray:
        """Put the checkpoint's `source` (under the encoder's prefix, or at the top) into the artifact's `target`."""
        name = self.prefix + source if encoder else source
        tensor = self.tensors.get(name)
        value = np.zeros(0, np.float32)
        if tensor is None:
            self.faults.append(f"tensor {name!r} is missing")
        elif tensor.data.shape != shape:
            self.faults.append(
                f"tensor {name!r} has shape {list(tensor.data.shape)}; config.json asks for {list(shape)}"
            )
        else:
            self.taken.add(name)
            try:
                value = tensor.to_float32()
            except TypeError as error:
                self.faults.append(f"tensor {name!r}: {error}")
            else:
                bad = value.size - int(np.count_nonzero(np.isfinite(value)))
                if bad:
                    self.faults.append(f"tensor {name!r} has {bad} values that are NaN or infinite")
        self.out[target] = value
        return value

    def linear(self, target: str, source: str, n: int, k: int, encoder: bool = True) -> None:
        self.take(f"{target}.weight", f"{source}.weight", (n, k), encoder)
        self.take(f"{target}.bias", f"{source}.bias", (n,), encoder)

    def norm(self, target: str, source: str, size: int) -> None:
        self.take(f"{target}.weight", f"{source}.weight", (size,))
        self.take(f"{target}.bias", f"{source}.bias", (size,))

    def finish(self) -> dict[str, np.ndarray]:
        """The artifact's tensors. Raises CheckpointError with every fault found on the way."""
        if self.faults:
            more = len(self.faults) - 10
            shown = "; ".join(self.faults[:10]) + (f"; and {more} more" if more > 0 else "")
            raise CheckpointError(f"the checkpoint's weights do not fit: {shown}")
        return self.out


@dataclass(frozen=True)
class LayerNames:
    """Name where a family keeps the parts of layer `{i}`, or of layer `{inner}` of group `{group}`."""

    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_up: str
    ffn_down: str
    ffn_norm: str


# BERT, RoBERTa and ELECTRA name them alike.
BERT_LAYER = LayerNames(
    query="encoder.layer.{i}.attention.self.query",
    key="encoder.layer.{i}.attention.self.key",
    value="encoder.layer.{i}.attention.self.value",
    attention_output="encoder.layer.{i}.attention.output.dense",
    attention_norm="encoder.layer.{i}.attention.output.LayerNorm",
    ffn_up="encoder.layer.{i}.intermediate.dense",
    ffn_down="encoder.layer.{i}.output.dense",
    ffn_norm="encoder.layer.{i}.output.LayerNorm",
)


def take_layers(
    weights: Weights, names: LayerNames, hidden: int, layer: LayerSpec, count: int, inner: int = 1
) -> tuple[LayerSpec, ...]:
    """Take `count` layers, all of the sizes of `layer` and `inner` of them a group, and return their specs."""
    ffn = layer.intermediate_size
    for i in range(count):
        at, place = f"layers.{i}", {"i": i, "group": i // inner, "inner": i % inner}
        for part in ("query", "key", "value"):
            weights.linear(f"{at}.attention.{part}", getattr(names, part).format(**place), hidden, hidden)
        weights.linear(f"{at}.attention.output", names.attention_output.format(**place), hidden, hidden)
        weights.norm(f"{at}.attention.norm", names.attention_norm.format(**place), hidden)
        weights.linear(f"{at}.ffn.up", names.ffn_up.format(**place), ffn, hidden)
        weights.linear(f"{at}.ffn.down", names.ffn_down.format(**place), hidden, ffn)
        weights.norm(f"{at}.ffn.norm", names.ffn_norm.format(**place), hidden)
    return (layer,) * count


@dataclass(frozen=True)
class Pooling:
    """Say how a plain encoder's hidden states become one vector (sentence-transformers' modules)."""

    mode: str = "mean"
    normalize: bool = False


@dataclass(frozen=True)
class TokenHead:
    """A head that reads every token: one linear, which the checkpoint has outside of the encoder as `linear`."""

    task_type: TaskType
    linear: str


TOKEN_CLASSIFIER = TokenHead("token_classification", "classifier")
QUESTION_ANSWERER = TokenHead("question_answering", "qa_outputs")

# What becomes of the hidden states. None: a classifier's head reads the first token.
Readout = Pooling | TokenHead | None


@dataclass(frozen=True)
class Task:
    """Hold what a checkpoint answers: its head, labels and kind of task."""

    task_type: TaskType
    labels: tuple[str, ...]
    head: HeadSpec


@dataclass(frozen=True)
class HeadNames:
    """A classifier's head `out(activation(dense(first token)))`; `pooled`: its dense layer is the encoder's pooler."""

    dense: str
    out: str
    activation: str
    pooled: bool = False


def take_task(config: Config, weights: Weights, hidden: int, names: HeadNames, readout: Readout) -> Task:
    """Take the head that `readout` asks for; `names` is where a classifier has its own."""
    if isinstance(readout, TokenHead):
        return token_task(config, weights, hidden, readout)
    return encoder_task(readout) if readout else classifier_task(config, weights, hidden, names)


def token_task(config: Config, weights: Weights, hidden: int, head: TokenHead) -> Task:
    """Take a head that reads every token. As an encoder the model is pooled by mean."""
    rows = weights.shape(f"{head.linear}.weight")
    answers = head.task_type == "question_answering"
    labels = QA_OUTPUTS if answers else read_labels(config, rows[0] if rows else None)
    weights.linear("head.out", head.linear, len(labels), hidden, encoder=False)
    return Task(head.task_type, labels, HeadSpec("mean"))


def classifier_task(config: Config, weights: Weights, hidden: int, names: HeadNames) -> Task:
    """Take a classifier's head."""
    weights.linear("head.dense", names.dense, hidden, hidden, encoder=names.pooled)
    rows = weights.shape(f"{names.out}.weight")
    labels = read_labels(config, rows[0] if rows else None)
    weights.linear("head.out", names.out, len(labels), hidden, encoder=False)
    return Task(task_type(config, len(labels)), labels, HeadSpec("cls", hidden, names.activation))


def encoder_task(pooling: Pooling) -> Task:
    """A plain encoder: embeddings, no labels."""
    return Task("embedding", (), HeadSpec(pooling=pooling.mode, normalize=pooling.normalize))


def read_labels(config: Config, rows: int | None) -> tuple[str, ...]:
    """Labels in the order of the logits, from id2label; LABEL_0 ... where the config has none."""
    id2label = config.get("id2label")
    if id2label is None:
        # Without rows the head is missing, which is reported where it is taken.
        count = rows if rows is not None else 2
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        by_id = {int(key): str(value) for key, value in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError("config.json: id2label is not an object from numbers to names") from None
    if len(by_id) > MAX_LABELS:
        raise CheckpointError(f"config.json: id2label has {len(by_id)} names; the limit is {MAX_LABELS}")
    if sorted(by_id) != list(range(len(by_id))) or not by_id:
        ids = ", ".join(map(show, sorted(by_id)[:8])) + (", ..." if len(by_id) > 8 else "")
        raise CheckpointError(f"config.json: the ids of id2label are {ids or 'none'}; 0, 1, 2, ... are needed")
    labels = tuple(by_id[i] for i in range(len(by_id)))
    if len(set(labels)) != len(labels):
        raise CheckpointError(f"config.json: id2label gives two ids the same name: {', '.join(map(show, labels[:8]))}")
    return labels


def task_type(config: Config, num_labels: int) -> TaskType:
    """Return the task type as transformers decides it: problem_type, else one output means regression."""
    problem = config.get("problem_type")
    known: dict[Any, TaskType] = {
        None: "regression" if num_labels == 1 else "classification",
        "regression": "regression",
        "single_label_classification": "classification",
        "multi_label_classification": "multi_label",
    }
    if not isinstance(problem, str | None) or problem not in known:
        raise UnsupportedModelError(
            f"problem_type {show(problem)} is not supported; supported: {', '.join(key for key in known if key)}"
        )
    return known[problem]
