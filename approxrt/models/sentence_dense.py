"""Read the Dense modules of a sentence-transformers folder: linears that a pooled vector goes through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import MAX_DIM, ProjectionSpec
from approxrt.artifact.spec.faults import show
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.weights import read_json, read_weights

# torch.nn's classes -> ours.
ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class Dense:
    """Hold one Dense module: weight f32[features, inputs], bias f32[features]."""

    spec: ProjectionSpec
    weight: np.ndarray
    bias: np.ndarray


def read_dense(folder: Path, normalize: bool) -> Dense:
    """Read the module in `folder`, whose input is scaled to length 1 first if `normalize`.

    Raises UnsupportedModelError for what would change its answer and is not computed, CheckpointError for a file or
    tensor that does not fit.
    """
    path = folder / "config.json"
    config = read_json(path)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, SENTENCE):
            raise UnsupportedModelError(
                f"{path}: Dense with {key} {show(config[key])} is not supported; supported: {SENTENCE}"
            )
    if config.get("use_residual"):
        raise UnsupportedModelError(f"{path}: Dense with use_residual is not supported; supported: without")
    inputs, features = (_size(path, config, key) for key in ("in_features", "out_features"))
    tensors = read_weights(folder)
    wanted = {"linear.weight": (features, inputs)} | ({"linear.bias": (features,)} if config.get("bias", True) else {})
    if set(tensors) != set(wanted):
        raise CheckpointError(
            f"{folder}: the tensors of a Dense are {', '.join(wanted)}; there are {', '.join(tensors)}"
        )
    found = {}
    for name, shape in wanted.items():
        if tensors[name].data.shape != shape:
            given = list(tensors[name].data.shape)
            raise CheckpointError(f"{folder}: tensor {name!r} has shape {given}; config.json asks for {list(shape)}")
        try:
            found[name] = np.ascontiguousarray(tensors[name].to_float32())
        except TypeError as error:
            raise CheckpointError(f"{folder}: tensor {name!r}: {error}") from error
        if not np.isfinite(found[name]).all():
            raise CheckpointError(f"{folder}: tensor {name!r} has values that are NaN or infinite")
    bias = found.get("linear.bias", np.zeros(features, np.float32))
    return Dense(ProjectionSpec(features, _activation(path, config), normalize), found["linear.weight"], bias)


def _size(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= MAX_DIM:
        raise CheckpointError(f"{path}: {key} is {show(value)}; an integer between 1 and {MAX_DIM} is needed")
    return value


def _activation(path: Path, config: dict[str, Any]) -> str:
    """Without one it is Tanh, as in the original."""
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    last = name.rsplit(".", 1)[-1] if isinstance(name, str) and name.startswith("torch.nn.") else None
    if last not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{path}: activation_function {show(name)} is not supported; supported: torch.nn's {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[last]
