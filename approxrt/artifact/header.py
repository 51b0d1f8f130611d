"""The header of a safetensors file, read strictly and without numpy.

Format (huggingface/safetensors): 8 bytes little-endian header length n, n bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the data that the offsets refer to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from approxrt.artifact.files import parse_json

# Bytes of an element.
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip

# A tensor has some 130 bytes, and 13 values: 120,000 tensors. The largest models that anybody has in one file
# (mixtures of 256 experts) have 91,000, an artifact of 256 layers 20,000.
MAX_HEADER_BYTES = 16 << 20
MAX_HEADER_VALUES = 1_600_000
MAX_NAME = 1000  # characters; those of real models have some 100
_MAX_OFFSET = 1 << 62


class Entry(NamedTuple):
    """A tensor as the header has it; `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors that the header describes soundly, where the data start, and what is wrong with the rest."""

    entries: list[Entry]
    start: int
    faults: list[str]


def header_length(name: str, start: bytes, size: int) -> int:
    """Return the length of the header of a file of `size` bytes that begins with `start`. Raises ValueError."""
    if size < 8 or len(start) < 8:
        raise ValueError(f"{name} has {size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(start[:8], "little")
    if 8 + length > size:
        raise ValueError(f"{name} says its header has {length} bytes, but the file has {size}: truncated or damaged")
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"{name} says its header has {length} bytes; the limit is {MAX_HEADER_BYTES}: damaged, or its tensors are "
            "to be in several files"
        )
    return length


def parse_header(name: str, raw: bytes, size: int) -> Header:
    """Check the header `raw` (without its length) of a file of `size` bytes: each entry, and all of them together.

    The entries are sorted by place. Without faults they cover the data without a hole. Raises ValueError for what is no
    JSON object.
    """
    try:
        data = parse_json(raw, MAX_HEADER_VALUES)
    except ValueError as error:
        raise ValueError(f"the header of {name} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"the header of {name} is not a JSON object")
    data.pop("__metadata__", None)
    start = 8 + len(raw)
    entries: list[Entry] = []
    faults: list[str] = []
    for tensor, value in data.items():
        entry = _parse_entry(tensor, value)
        if isinstance(entry, str):
            faults.append(f"tensor {tensor[:200]!r} in {name}: {entry}")
        else:
            entries.append(entry)
    return Header(*_within(name, entries, size - start, start, faults))


def _within(
    name: str, entries: list[Entry], available: int, start: int, faults: list[str]
) -> tuple[list[Entry], int, list[str]]:
    """Check the entries' extents against the data's, and against each other."""
    cut = [entry for entry in entries if entry.end > available]
    kept = sorted((entry for entry in entries if entry.end <= available), key=lambda e: (e.begin, e.end, e.name))
    if cut:
        # One cause, one fault: naming every tensor behind the cut would bury the others.
        first = min(cut, key=lambda entry: (entry.end, entry.name))
        more = f" and so do {len(cut) - 1} more" if len(cut) > 1 else ""
        faults.append(
            f"tensor {first.name!r} ends at byte {first.end} of the data{more}, but {name} holds {available}: truncated"
        )
    position = 0
    for entry in kept:
        if entry.begin != position and not faults:
            what = "overlaps another tensor" if entry.begin < position else "leaves a hole before it"
            faults.append(f"tensor {entry.name!r} in {name} {what} (starts at {entry.begin}, expected {position})")
        position = max(position, entry.end)
    if position != available and not faults:
        faults.append(f"{name} holds {available} bytes of data, its header accounts for {position}")
    return kept, start, faults


def _parse_entry(name: str, entry: Any) -> Entry | str:
    """Return the entry, or what is wrong with it."""
    if len(name) > MAX_NAME:
        return f"its name has {len(name)} characters; the limit is {MAX_NAME}"
    if not isinstance(entry, dict):
        return "its entry is not an object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        return f"unknown dtype {str(dtype)[:20]!r}" if isinstance(dtype, str) else "its dtype is no string"
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(d) is int and d >= 0 for d in shape):
        return "its shape is not a list of at most 8 sizes"
    # Each size by itself first: a product of numbers of thousands of digits is slow, and cannot be printed.
    if any(d >= 1 << 48 for d in shape) or math.prod(d for d in shape if d) >= 1 << 48:
        return "its shape is absurdly large"
    if not isinstance(offsets, list) or len(offsets) != 2:
        return "its data_offsets are not two offsets"
    if not all(type(o) is int and 0 <= o <= _MAX_OFFSET for o in offsets):
        return f"its data_offsets are not two offsets from 0 to {_MAX_OFFSET}"
    begin, end = offsets
    need = math.prod(shape) * SIZES[dtype]
    if end - begin != need:
        return f"{dtype}{shape} needs {need} bytes, its offsets give {end - begin}"
    return Entry(name, dtype, tuple(shape), begin, end)
