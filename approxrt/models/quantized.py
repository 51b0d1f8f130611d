"""Checkpoint folders whose weights somebody has quantised already: named and refused, before they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from approxrt.artifact.files import open_large, parse_json
from approxrt.artifact.header import MAX_HEADER_VALUES, header_length
from approxrt.errors import UnsupportedModelError

# Parts of tensors' names that only such checkpoints have.
_PARTS = {
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".quant_state": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "compressed-tensors or fp8",
    "_blocks": "mxfp4",
}
_TYPES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F8_E8M0": "mxfp", "F4": "fp4", "F6_E2M3": "fp6", "F6_E3M2": "fp6"}


def refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError if `config` or the names and types of the tensors say that weights are quantised."""
    given = config.get("quantization_config", config.get("compression_config"))
    found: str | None = None
    if given is not None:
        method = given.get("quant_method") if isinstance(given, Mapping) else None
        found = f"{method or 'an unnamed method'} (quantization_config in config.json)"
    else:
        found = _in_tensors(folder)
    if found is not None:
        raise UnsupportedModelError(
            f"checkpoint {str(folder)!r} is quantised already: {found}; supported: weights in float32, float16 "
            "or bfloat16. Take the checkpoint that it was made from, or a .gguf file of it"
        )


def _in_tensors(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            dtype = entry.get("dtype") if isinstance(entry, dict) else None
            if dtype in _TYPES:
                return f"{_TYPES[dtype]} (tensor {name!r} is of type {dtype})"
            for part, method in _PARTS.items():
                if name.endswith(part) or f"{part}." in name:
                    return f"{method} (tensor {name!r})"
    return None


def _header(path: Path) -> dict[str, Any]:
    """The file's JSON header; nothing of one that cannot be read, which is told where weights are."""
    try:
        with open_large(path) as file:
            length = header_length(path.name, file.read(8), os.fstat(file.fileno()).st_size)
            header = parse_json(file.read(length), MAX_HEADER_VALUES)
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}
