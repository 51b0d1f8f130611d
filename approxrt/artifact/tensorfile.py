"""Read a safetensors file as numpy views into memory, or into a memory map.

The safetensors library copies each tensor when it hands out numpy arrays, and has no numpy type for bfloat16; this
reader does neither: a view costs nothing until it is touched. The format is that of `approxrt.artifact.header`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.files import open_large
from approxrt.artifact.header import Entry, Header, header_length, parse_header
from approxrt.artifact.mapped import Bytes

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
    """An open safetensors file: its tensors by name, and what is wrong with it. One with faults has no tensors."""

    tensors: dict[str, Tensor]
    faults: list[str]


def open_tensor_file(path: Path) -> TensorFile:
    """Map `path` and check its header in full. Only OSError is raised; all else is listed in `faults`."""
    with open_large(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return tensors_of(path.name, memoryview(b""))
        return tensors_of(path.name, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def release_pages(arrays: Iterable[np.ndarray]) -> None:
    """Give the pages of mapped files that lie under arrays back to the page cache, from where they return when read.

    They stop counting as this process's memory.
    """
    maps = {id(found): found for found in map(_map_under, arrays) if found is not None}
    for found in maps.values():
        if hasattr(mmap, "MADV_DONTNEED"):
            found.madvise(mmap.MADV_DONTNEED)


def _map_under(array: Any) -> mmap.mmap | None:
    """The map of a file that an array is a view into."""
    while isinstance(array, np.ndarray):
        array = array.base
    under = array.obj if isinstance(array, memoryview) else array
    return under if isinstance(under, mmap.mmap) else None


def tensors_of(name: str, buffer: Bytes, header: Header | None = None) -> TensorFile:
    """The tensors of a safetensors file that is in memory already; `name` is for messages.

    `header` is what these very bytes begin with, if somebody has parsed it.
    """
    size = len(buffer)
    try:
        if header is None:
            length = header_length(name, bytes(buffer[:8]), size)
            header = parse_header(name, bytes(buffer[8 : 8 + length]), size)
    except ValueError as error:
        return TensorFile({}, [str(error)])
    if header.faults:
        return TensorFile({}, header.faults)
    return TensorFile({entry.name: _view(entry, header.start, buffer) for entry in header.entries}, [])


def _view(entry: Entry, start: int, buffer: Bytes) -> Tensor:
    kind = NUMPY_DTYPES[entry.dtype]
    data: np.ndarray = np.empty(0, kind)
    if entry.begin < entry.end:
        data = np.frombuffer(buffer[start + entry.begin : start + entry.end], kind)
    data = data.reshape(entry.shape)
    data.flags.writeable = False
    return Tensor(entry.dtype, data)
