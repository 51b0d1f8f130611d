"""Read a safetensors file as numpy views into a memory map.

Format (huggingface/safetensors): 8 bytes little-endian header length n, n bytes
of JSON `{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the data
that the offsets refer to. The safetensors library copies each tensor when it
hands out numpy arrays, and has no numpy type for bfloat16; this reader does
neither: a view costs nothing until it is touched, and pages are shared between
processes that map the same file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# bfloat16 has no numpy type: its bits are handed out as uint16, `to_float32` widens them.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

# The limit that the safetensors library itself sets on a header.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """A view into the map: `data` is read-only; `dtype` is the safetensors name."""

    dtype: str
    data: np.ndarray

    def to_float32(self) -> np.ndarray:
        """The values as float32 (a view when they are float32 already). Raises TypeError for non-floats."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.dtype in ("F32", "F16", "F64"):
            # A value over float32's range becomes inf, which the caller reports with the tensor's name.
            with np.errstate(over="ignore", invalid="ignore"):
                return self.data.astype(np.float32, copy=False)
        raise TypeError(f"dtype {self.dtype} holds no floating-point weights")


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file: the tensors that could be read, the map, and what is wrong with the rest."""

    tensors: dict[str, Tensor]
    buffer: mmap.mmap | bytes
    faults: list[str]


def reject_constant(token: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON, as `parse_constant` of json.loads."""
    raise ValueError(f"{token} is not JSON")


def parse_json(raw: bytes) -> Any:
    """Strict JSON from bytes; every failure, deep nesting included, is a ValueError."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=reject_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def open_tensor_file(path: Path) -> TensorFile:
    """Map `path` and check its header in full. Only OSError is raised; all else is listed in `faults`."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return tensors_of(path.name, b"")
        return tensors_of(path.name, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def tensors_of(name: str, buffer: mmap.mmap | bytes) -> TensorFile:
    """The tensors of a safetensors file that is mapped already; `name` is for messages."""
    size = len(buffer)
    if size < 8:
        return TensorFile({}, buffer, [f"{name} has {size} bytes; a safetensors file has at least 8"])
    length = int.from_bytes(buffer[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        fault = f"{name} says its header has {length} bytes, but the file has {size}: truncated or damaged"
        return TensorFile({}, buffer, [fault])
    try:
        header = parse_json(buffer[8 : 8 + length])
    except ValueError as error:
        return TensorFile({}, buffer, [f"the header of {name} is not valid JSON: {error}"])
    if not isinstance(header, dict):
        return TensorFile({}, buffer, [f"the header of {name} is not a JSON object"])
    header.pop("__metadata__", None)
    return _views(name, header, buffer, 8 + length)


def _views(file_name: str, header: dict[str, Any], buffer: mmap.mmap | bytes, start: int) -> TensorFile:
    """Check each entry against the data's extent, and the extents against each other; then build the views."""
    available = len(buffer) - start
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    extents: list[tuple[int, int, str]] = []
    cut: list[tuple[int, str]] = []
    for name, entry in header.items():
        parsed = _parse_entry(entry)
        if isinstance(parsed, str):
            faults.append(f"tensor {name!r} in {file_name}: {parsed}")
            continue
        dtype, shape, begin, end = parsed
        if end > available:
            cut.append((end, name))
            continue
        extents.append((begin, end, name))
        count = math.prod(shape)
        kind = NUMPY_DTYPES[dtype]
        data: np.ndarray = np.frombuffer(buffer, kind, count, start + begin) if count else np.empty(0, kind)
        data = data.reshape(shape)
        data.flags.writeable = False
        tensors[name] = Tensor(dtype, data)
    if cut:
        # One cause, one fault: naming every tensor behind the cut would bury the others.
        end, name = min(cut)
        more = f" and so do {len(cut) - 1} more" if len(cut) > 1 else ""
        faults.append(
            f"tensor {name!r} ends at byte {end} of the data{more}, but {file_name} holds {available}: truncated"
        )
    extents.sort()
    position = 0
    for begin, end, name in extents:
        if begin != position and not faults:
            what = "overlaps another tensor" if begin < position else "leaves a hole before it"
            faults.append(f"tensor {name!r} in {file_name} {what} (starts at {begin}, expected {position})")
        position = max(position, end)
    if position != available and not faults:
        faults.append(f"{file_name} holds {available} bytes of data, its header accounts for {position}")
    return TensorFile(tensors, buffer, faults)


def _parse_entry(entry: Any) -> tuple[str, tuple[int, ...], int, int] | str:
    """Return (dtype, shape, begin, end), or what is wrong."""
    if not isinstance(entry, dict):
        return "its entry is not an object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        return f"unknown dtype {str(dtype)[:20]!r}"
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(d) is int and d >= 0 for d in shape):
        return "its shape is not a list of at most 8 sizes"
    if math.prod(d for d in shape if d) >= 1 << 48:
        return "its shape is absurdly large"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        return "its data_offsets are not two offsets"
    begin, end = offsets
    need = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if end - begin != need:
        return f"{dtype}{shape} needs {need} bytes, its offsets give {end - begin}"
    return dtype, tuple(shape), begin, end
