"""A device for tests that have no GPU: tensors on it compute on the CPU, but may not meet the CPU's.

Within `one_device()`, tensors that are made on, or sent to, `DEVICE` are of a class of their own. An operation that has
some of them and some of the CPU's fails as it would with a GPU, and so does one that a GPU would allow but slowly: an
index that lies on the CPU. As on a GPU, single numbers of the CPU may take part, and `numpy()` needs a copy first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# No data is ever there, so torch itself refuses what nobody here has thought of.
DEVICE = torch.device("meta")
COPIES = ("aten.copy_.default", "aten._to_copy.default")


class MixedDevices(AssertionError):
    """An operation met tensors of two devices."""


class There(torch.Tensor):
    """A tensor on `DEVICE`; `values` has its numbers."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> There:
        found = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        found.values = values
        return found

    def __repr__(self, **_: Any) -> str:
        return f"There({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in flat if isinstance(value, There)]
    kwargs = dict(kwargs)
    target = kwargs.get("device")
    on_device = bool(there) if target is None else torch.device(target) == DEVICE
    if there and str(function) not in COPIES:
        here = [value for value in flat if not isinstance(value, There) and value.ndim]
        if here:
            shapes = [(tuple(value.shape), str(value.dtype)) for value in here]
            raise MixedDevices(f"{function} meets tensors of the CPU: {shapes}")
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    known = {id(value.values): value for value in there}

    def unwrap(value: Any) -> Any:
        return value.values if isinstance(value, There) else value

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # What an operation in place returns is the tensor that it was given.
        return known[id(value)] if id(value) in known else There(value)

    args, kwargs = tree_map(unwrap, (args, kwargs))
    out = function(*args, **kwargs)
    if str(function) == "aten.copy_.default":
        return known.get(id(out), out)
    return tree_map(wrap, out) if on_device else out


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def one_device() -> Iterator[torch.device]:
    """Give the device; within it the rules of the module's text hold."""
    # Tensors of a class of one's own cannot be made in inference mode, which differs in speed alone.
    with patch.object(torch, "inference_mode", torch.no_grad), _Mode():
        yield DEVICE
