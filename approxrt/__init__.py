"""approxrt: fine-tuned transformers, much faster and smaller, executed for real.

    import approxrt

    approxrt.convert("path/to/checkpoint", "model.artifact", bits=8)
    m = approxrt.load("model.artifact")
    m.classify(["a gripping film", "two hours I will not get back"])

Importing the package loads neither torch nor transformers; `convert` needs the
extra `compress` only for checkpoints that are not safetensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from approxrt.version import __version__

__all__ = ["Model", "Prediction", "__version__", "compress", "convert", "errors", "load"]

if TYPE_CHECKING:
    from approxrt import errors
    from approxrt.compression.api import compress
    from approxrt.conversion import convert
    from approxrt.runtime.loading import load
    from approxrt.runtime.model import Model, Prediction

_LAZY = {
    "load": "approxrt.runtime.loading",
    "Model": "approxrt.runtime.model",
    "Prediction": "approxrt.runtime.model",
    "compress": "approxrt.compression.api",
    "convert": "approxrt.conversion",
    "errors": "approxrt.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'approxrt' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    value = module if name == "errors" else getattr(module, name)
    globals()[name] = value
    return value
