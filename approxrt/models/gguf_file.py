"""The header and the tensors of .gguf files (llama.cpp's container), read strictly.

The file is mapped, and its header is walked once with every length checked against the file's end. That takes a
fraction of a second for a vocabulary of a hundred thousand tokens, needs no package, and finds what is wrong before
anything is computed. Tensors stay views into the map: `GgufTensor.floats` turns one of them to float32 when it is
asked for, by `gguf.quants`.

Layout (docs/gguf.md of ggml), little-endian: "GGUF", u32 version, u64 tensors, u64 keys; keys as (string, u32 type,
value); tensors as (string, u32 dimensions, u64 each, u32 type, u64 offset); then, aligned, the data. A string is a u64
length and UTF-8. Dimensions are written innermost first.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.files import open_large, open_regular
from approxrt.artifact.layout import unreadable
from approxrt.errors import CheckpointError, MissingDependencyError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
# What a header may ask for before anything of it is believed. The largest that are read have some 50 keys, 5,000
# tensors, 800,000 strings (256,000 tokens, 512,000 merges) and 15 MB.
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_STRINGS = 1 << 20
MAX_HEADER_BYTES = 32 << 20
MAX_NAME = 1000  # of keys and tensors, in characters
# Elements that are turned to floats in one go: the package's temporaries are several times as large.
_BLOCK = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
_SPLIT_NAME = re.compile(
    r"(?P<prefix>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)?", re.IGNORECASE | re.DOTALL
)
# What a file that should be a .gguf may begin with instead.
_OTHER_MAGICS = {
    b"lmgg": "a ggml file of before August 2023",
    b"fmgg": "a ggml file of before August 2023",
    b"tjgg": "a ggml file of before August 2023",
    b"algg": "a LoRA adapter of before August 2023",
    b"vers": "a Git LFS pointer, not the file itself",
    b"PK\x03\x04": "a zip archive or a PyTorch checkpoint",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` outermost first, `kind` the name of ggml's type, `raw` u8[bytes] a view into the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    raw: np.ndarray

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> np.ndarray:
        """u8[rows, bytes a row]."""
        return self.raw.reshape(math.prod(self.shape[:-1]), -1)

    def floats(self) -> np.ndarray:
        """f32 of `shape`. Raises CheckpointError for values that are no numbers."""
        out = np.empty((math.prod(self.shape[:-1]), self.shape[-1]), np.float32)
        step = max(1, _BLOCK // max(1, self.shape[-1]))
        bad = 0
        for start in range(0, len(out), step):
            rows = self.rows[start : start + step]
            # Blocks do not care about rows, and the package takes few rows at a time.
            part = _to_floats(rows.reshape(1, -1), self.kind, self.name)
            out[start : start + step] = part.reshape(len(rows), -1)
            bad += part.size - int(np.count_nonzero(np.isfinite(part)))
        if bad:
            raise CheckpointError(f"tensor {self.name!r} has {bad} values that are NaN or infinite")
        return out.reshape(self.shape)


def _to_floats(rows: np.ndarray, kind: str, name: str) -> np.ndarray:
    if kind in ("F32", "F16", "F64"):
        with np.errstate(over="ignore"):
            return rows.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).astype(np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):  # what is not finite is counted
            floats: np.ndarray = dequantize(rows, GGMLQuantizationType[kind])
            return floats
    except NotImplementedError:
        raise UnsupportedModelError(
            f"tensor {name!r} is of type {kind}, which the package gguf cannot turn to floats; supported: F32, F16, "
            "BF16 and the usual quantised types (Q4_0 to Q8_0, Q2_K to Q6_K, IQ1_S to IQ4_XS)"
        ) from None


@dataclass
class GgufFile:
    """A model's file, or all parts of one that was split.

    metadata  values by key: int, float, bool, str, a list of str, or a numpy array
    tensors   by name
    bytes     of all parts
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor] = field(default_factory=dict)
    bytes: int = 0

    @property
    def architecture(self) -> str:
        return text(self.metadata, "general.architecture", self.path)


def text(metadata: Mapping[str, Any], key: str, path: Path) -> str:
    """A required string. Raises CheckpointError naming the key."""
    value = metadata.get(key)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"is {value!r:.60}"
        raise CheckpointError(f"{str(path)!r}: the key {key} {what}; a string is needed")
    return value


def has_gguf_magic(path: Path) -> bool:
    """Return whether `path` is a regular file that begins as a .gguf file does."""
    try:
        with open_regular(path) as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def open_gguf(path: Path, supported: tuple[str, ...]) -> GgufFile:
    """Read the header of `path` and, of a split model, those of all its parts.

    Raises UnsupportedModelError for an architecture that is none of `supported`, before anything else is looked at;
    CheckpointError for a damaged, truncated or big-endian file and for parts that are missing, naming them.
    """
    first = _Header(path)
    no, count = _split(first)
    if count > 1:
        paths = _parts(path, no, count)
        headers = [first if i == no else _Header(part) for i, part in enumerate(paths)]
        first = headers[0]
    else:
        headers = [first]
    file = GgufFile(path, first.metadata, bytes=sum(len(header.data) for header in headers))
    if file.architecture not in supported:
        raise UnsupportedModelError(
            f"{str(path)!r}: architecture {file.architecture!r} is not supported; supported .gguf files: "
            f"{', '.join(supported)}"
        )
    for i, header in enumerate(headers):
        if count > 1:
            _check_part(header, first, i, count)
        for name, tensor in header.tensors().items():
            if name in file.tensors:
                raise CheckpointError(f"{str(path)!r}: tensor {name!r} is in two parts of the file")
            file.tensors[name] = tensor
    expected = first.metadata.get("split.tensors.count")
    if count > 1 and expected is not None and expected != len(file.tensors):
        raise CheckpointError(f"{str(path)!r}: the {count} parts hold {len(file.tensors)} of {expected} tensors")
    return file


def _split(header: _Header) -> tuple[int, int]:
    """Return (number of this part from 0, number of parts)."""
    no, count = (header.metadata.get(f"split.{key}", usual) for key, usual in (("no", 0), ("count", 1)))
    if type(no) is not int or type(count) is not int or not (0 <= no < max(count, 1) and count <= 99_999):
        raise CheckpointError(f"{str(header.path)!r}: split.no is {no!r} and split.count {count!r}")
    return no, max(count, 1)


def _parts(path: Path, no: int, count: int) -> list[Path]:
    """All parts, found by the name that gguf-split gives them."""
    found = _SPLIT_NAME.fullmatch(path.name)
    if found is None or int(found["no"]) != no + 1 or int(found["count"]) != count:
        raise CheckpointError(
            f"{str(path)!r} is part {no + 1} of {count} of a split model, and parts are found by name: call it "
            f"NAME-{no + 1:05}-of-{count:05}.gguf and put the others beside it, or merge them with llama-gguf-split"
        )
    names = [f"{found['prefix']}-{i + 1:05}-of-{count:05}{found['suffix'] or ''}" for i in range(count)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CheckpointError(
            f"{str(path)!r} is part {no + 1} of {count} of a split model; missing beside it: "
            f"{', '.join(missing[:5])}{more}"
        )
    return [path.parent / name for name in names]


def _check_part(header: _Header, first: _Header, no: int, count: int) -> None:
    if _split(header) != (no, count):
        raise CheckpointError(
            f"{str(header.path)!r} says that it is part {_split(header)[0] + 1} of {_split(header)[1]}; its name says "
            f"{no + 1} of {count}"
        )
    for key, value in header.metadata.items():
        known = first.metadata.get(key)
        if not key.startswith("split.") and (known is None or not np.array_equal(value, known)):
            raise CheckpointError(f"{str(header.path)!r}: the key {key} is not that of the model's first part")
    if header.metadata.get("split.tensors.count") != first.metadata.get("split.tensors.count"):
        raise CheckpointError(f"{str(header.path)!r} is a part of another model than {first.path.name}")


class _Header:
    """A walk over one file's header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map(path)
        self.at = 0
        self.metadata: dict[str, Any] = {}
        self._strings_read = 0
        self._check_start()
        tensors, keys = self._numbers("<QQ")
        self._check_count("tensors", tensors, MAX_TENSORS)
        self._check_count("keys", keys, MAX_KEYS)
        for _ in range(keys):
            key = self._name("a key")
            (kind,) = self._numbers("<I")
            if key in self.metadata:
                raise self._damaged(f"the key {key} is there twice")
            self.metadata[key] = self._value(kind, key)
        self._entries = [self._entry() for _ in range(tensors)]

    def tensors(self) -> dict[str, GgufTensor]:
        """Return the tensors by name; raises CheckpointError for any that lies outside the file or on another one."""
        sizes = _type_sizes(self.path.name)
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}; a power of two is needed")
        start = -(-self.at // alignment) * alignment
        view = np.frombuffer(self.data, np.uint8)
        found: dict[str, GgufTensor] = {}
        extents: list[tuple[int, int, str]] = []
        cut: list[tuple[int, str]] = []
        for name, shape, code, offset in self._entries:
            if name in found:
                raise self._damaged(f"tensor {name!r} is there twice")
            if code not in sizes:
                raise UnsupportedModelError(
                    f"{str(self.path)!r}: tensor {name!r} has type {code}, which is none that the installed package "
                    "gguf knows; a newer one may"
                )
            kind, (block, block_bytes) = sizes[code]
            if shape[-1] % block:
                raise self._damaged(f"tensor {name!r} has rows of {shape[-1]} weights; {kind} has blocks of {block}")
            size = math.prod(shape) // block * block_bytes
            begin, end = start + offset, start + offset + size
            if end > len(view):
                cut.append((end, name))
                continue
            extents.append((begin, end, name))
            found[name] = GgufTensor(name, shape, kind, view[begin:end])
        if cut:
            end, name = min(cut)
            more = f" and so do {len(cut) - 1} more" if len(cut) > 1 else ""
            raise CheckpointError(
                f"{str(self.path)!r} is truncated: tensor {name!r} ends at byte {end}{more}, the file has {len(view)}; "
                "download or copy it again"
            )
        extents.sort()
        for (_, end, name), (begin, _, other) in pairwise(extents):
            if begin < end:
                raise self._damaged(f"tensor {other!r} lies on tensor {name!r}")
        return found

    def _check_start(self) -> None:
        begin = bytes(self.data[:4])
        if begin != MAGIC:
            what = _OTHER_MAGICS.get(begin)
            what = (
                f": it is {what}"
                if what
                else f": it begins with {begin!r}, not {MAGIC!r}"
                if begin
                else ": it is empty"
            )
            raise CheckpointError(f"{str(self.path)!r} is no GGUF file{what}")
        self.at = 4
        (version,) = self._numbers("<I")
        if version & 0xFFFF == 0:
            raise CheckpointError(
                f"{str(self.path)!r} is big-endian (GGUF version {version >> 24}, of a machine of the other byte "
                "order); convert it with gguf-convert-endian or download a little-endian file"
            )
        if version not in VERSIONS:
            raise CheckpointError(
                f"{str(self.path)!r} is of GGUF version {version}; supported: {', '.join(map(str, VERSIONS))}"
            )

    def _check_count(self, what: str, count: int, most: int) -> None:
        if count > most:
            raise self._damaged(f"its header says {count} {what}; the limit is {most}")

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor's name")
        (count,) = self._numbers("<I")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {count} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        shape = self._numbers(f"<{count}Q")[::-1]
        if 0 in shape or math.prod(shape) >= 1 << 48:
            raise self._damaged(f"tensor {name!r} has shape {list(shape)}")
        code, offset = self._numbers("<IQ")
        return name, shape, code, offset

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            value = self._array(kind, 1, key)[0].item()
            return bool(value) if kind == _BOOL else value
        kind, count = self._numbers("<IQ")
        if kind == _STRING:
            return self._strings(count, key)
        if kind == _ARRAY:
            raise self._damaged(f"the key {key} is an array of arrays")
        return self._array(kind, count, key)

    def _strings(self, count: int, key: str) -> list[str]:
        """Many strings: the walk that a vocabulary's size makes long, so it is spelled out."""
        self._strings_read += count
        self._check_count("strings", self._strings_read, MAX_STRINGS)
        data, at, out, unpack = self.data, self.at, [], struct.Struct("<Q").unpack_from
        size = min(len(data), MAX_HEADER_BYTES)
        try:
            for _ in range(count):
                (length,) = unpack(data, at)
                end = at + 8 + length
                if end > size:
                    self._check_end(end, key)
                out.append(data[at + 8 : end].decode("utf-8"))
                at = end
        except struct.error:
            raise self._truncated(key) from None
        except UnicodeDecodeError as error:
            raise self._damaged(f"entry {len(out)} of {key} is not UTF-8: {error}") from None
        self.at = at
        return out

    def _array(self, kind: int, count: int, key: str) -> np.ndarray:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self._damaged(f"the key {key} has type {kind}, which GGUF does not have")
        self._check_end(self.at + count * dtype.itemsize, key)
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def _string(self, what: str) -> str:
        (length,) = self._numbers("<Q")
        self._check_end(self.at + length, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8: {error}") from None

    def _name(self, what: str) -> str:
        """A string that messages will quote."""
        name = self._string(what)
        if len(name) > MAX_NAME:
            raise self._damaged(f"{what} has {len(name)} characters; the limit is {MAX_NAME}")
        return name

    def _numbers(self, layout: str) -> tuple[int, ...]:
        try:
            values = struct.unpack_from(layout, self.data, self.at)
        except struct.error:
            raise self._truncated("its header") from None
        self.at += struct.calcsize(layout)
        return values

    def _truncated(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{str(self.path)!r} is truncated or damaged: the file's {len(self.data)} bytes end within {what}; "
            "download or copy it again"
        )

    def _check_end(self, end: int, what: str) -> None:
        """Raise for something in the header that ends behind the file, or where no header does."""
        if end > len(self.data):
            raise self._truncated(what)
        if end > MAX_HEADER_BYTES:
            raise self._damaged(f"its header goes on after {MAX_HEADER_BYTES} bytes, within {what[:200]}")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{str(self.path)!r} is damaged: {what}")


def _map(path: Path) -> mmap.mmap | bytes:
    try:
        with open_large(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(unreadable(repr(str(path)), error)) from None


def _type_sizes(name: str) -> dict[int, tuple[str, tuple[int, int]]]:
    """Return, by ggml's number of a type, its name and (weights, bytes) of a block."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "gguf", f"reading {name}") from None
    return {int(kind): (kind.name, sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
