"""Shared parts of objects that stand in for a library's own: keywords, obeyed or refused by name, and devices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from approxrt.errors import InputError, MissingDependencyError
from approxrt.runtime.loading import load
from approxrt.runtime.model import Model


def open_model(artifact: str | os.PathLike[str] | Model | None, device: Any, threads: int | None) -> Model:
    """The artifact on a device in torch's words, or the loaded model, which must be on it.

    Raises InputError for a device that an artifact cannot run on, and what `approxrt.load` raises.
    """
    if artifact is None:
        raise InputError("no artifact is given: give the folder that approxrt.convert or compress has written")
    wanted = device_name(device)
    if not isinstance(artifact, Model):
        return load(artifact, device=wanted or "cpu", threads=threads)
    if wanted is not None and wanted != device_of(artifact):
        raise InputError(f"device is {device!r}; the model was loaded on {device_of(artifact)}: load it there")
    if threads is not None:
        raise InputError(f"threads is {threads!r}; the model is loaded already: give them to approxrt.load")
    return artifact


def device_name(device: Any) -> str | None:
    """ "cpu" or "cuda" for what torch and transformers call a device; None for None. Raises InputError."""
    if device is None:
        return None
    name = str(device).lower()
    if name in ("cpu", "cpu:0", "-1"):
        return "cpu"
    if name in ("cuda", "cuda:0", "0"):
        return "cuda"
    raise InputError(f"device is {device!r}; an artifact runs on 'cpu' or on the first GPU, 'cuda'")


def device_of(model: Model) -> str:
    """Name the device of a loaded model's engine."""
    return str(model.info["device"])


def check_device(device: Any, model: Model) -> None:
    """Raise InputError for another device than the model's, for one call."""
    if isinstance(device, list | tuple):
        raise InputError(f"device is {device!r}; an artifact runs in one process: give one device, or leave it out")
    if device is not None and device_name(device) != device_of(model):
        raise InputError(f"device is {device!r}; the model is on {device_of(model)}: load it on the other one")


def refuse(given: Mapping[str, Any], meaningless: frozenset[str] = frozenset(), **neutral: tuple[Any, ...]) -> None:
    """Raise InputError naming the first keyword that an artifact cannot obey.

    Those in `meaningless` change nothing whatever their value; those in `neutral` may have one of the given values;
    any may be None or an empty collection.
    """
    for name, value in given.items():
        if value is None or name in meaningless or (isinstance(value, list | tuple | dict) and not value):
            continue
        allowed = neutral.get(name, ())
        if any(type(value) is type(other) and value == other for other in allowed):
            continue
        instead = f"; it may be {' or '.join(map(repr, allowed))}" if allowed else ""
        raise InputError(f"{name}={value!r:.80} is not supported by an artifact: leave it out{instead}")


def check_count(name: str, value: Any) -> None:
    """Raise InputError unless it is None or an integer of at least 1."""
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{name} is {value!r}; it must be an integer of at least 1")


def require_torch(what: str) -> Any:
    """The module torch. Raises MissingDependencyError."""
    try:
        import torch
    except ImportError:
        raise MissingDependencyError("torch", "compress", what) from None
    return torch


def as_list(inputs: Any, name: str = "inputs") -> list[Any]:
    """A batch that came as an array, a column of a table or any other sequence, as a list. Raises InputError."""
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    if isinstance(inputs, list):
        return inputs
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        raise InputError(f"{name} are {inputs!r:.80}; texts are needed: a str, or a list or another sequence of them")
    return list(inputs)


def renamed(value: Any, options: dict[str, Any], older: str) -> Any:
    """The argument, or what was given under its older name."""
    given = options.pop(older, None)
    return given if value is None else value


def pairs(inputs: Any) -> tuple[bool, list[Any]]:
    """Return (whether it is one pair or text, its items), as the original tells them apart."""
    if isinstance(inputs, str):
        return True, [inputs]
    if inputs is None:
        raise InputError("inputs is None: give a pair of texts or a list of pairs")
    items = as_list(inputs)
    if items and not isinstance(items[0], list | tuple):
        if len(items) != 2:
            raise InputError(
                f"inputs is a flat list of {len(items)} texts; a flat list is one pair: give a list of pairs "
                "[(text, text), ...]"
            )
        return True, [tuple(items)]
    return False, [tuple(item) if isinstance(item, list) else item for item in items]


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def converted(rows: np.ndarray, single: bool, to_numpy: bool, to_tensor: bool) -> Any:
    """An array; a tensor if that is asked for, or else, without `to_numpy`, a list of tensors."""
    if to_tensor or not to_numpy:
        torch = require_torch("convert_to_tensor, or convert_to_numpy=False,")
        tensor = torch.from_numpy(np.ascontiguousarray(rows))
        if single:
            return tensor[0]
        return tensor if to_tensor else list(tensor)
    return rows[0] if single else rows
