"""Open files that a stranger may have put there: regular ones only, of a bounded size, and without waiting for anybody.

A FIFO, a device or a socket in the place of a file would make its reader wait, or read for ever; a sparse file of
200 GB costs its author nothing. Every reader of artifacts, checkpoints and data opens its files here. Imports neither
numpy nor anything that does (see `approxrt.artifact.mapped`).
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, BinaryIO

# Larger JSON is not parsed. The largest tokenizer.json in use (262,000 tokens, 514,000 merges) has 33 MB.
MAX_JSON_BYTES = 64 << 20
# Values of a JSON document: what Python makes of one takes up to 70 bytes, where "[]," has three. That tokenizer.json
# has two million.
MAX_JSON_VALUES = 3_000_000
MAX_JSON_DEPTH = 64
# The same of config.json and files like it: one of 256 layers has 100 KB, labels and prompts may add some MB.
MAX_CONFIG_BYTES = 16 << 20
MAX_CONFIG_VALUES = 500_000

# Data are read whole: more than this is no data of a task.
MAX_DATA_BYTES = 16 << 30

# Files below this are read whatever they consist of; above, at least one byte in so many must be on disk.
_SPARSE_FROM = 256 << 20
_SPARSE_SHARE = 8
_MOST_EXTENTS = 4096

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnsuitableFile(OSError):
    """A file that is no regular one, or larger than what reads it takes. The message says what to do."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read it. Raises OSError; UnsuitableFile for a FIFO, a device, a socket or a folder.

    Links are followed: hubs' caches consist of them.
    """
    # Before it is opened, as opening a device may do something, and after, as it may be another file by then.
    _check_kind(os.stat(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_kind(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_large(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file that may be large. Raises OSError; UnsuitableFile for one that is nearly all holes, too."""
    file = open_regular(path)
    try:
        _check_holes(file.fileno())
    except BaseException:
        file.close()
        raise
    return file


def read_bounded(path: str | os.PathLike[str], limit: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of a regular file. Raises OSError; UnsuitableFile for one of more than `limit` bytes."""
    with open_large(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnsuitableFile(f"has {size} bytes; the limit is {limit}")
        data = file.read(size + 1)
    if len(data) != size:
        raise UnsuitableFile("changes while it is read: wait until it is written, and try again")
    return data


def read_text(path: str | os.PathLike[str], limit: int = MAX_JSON_BYTES) -> str:
    """Return the text of a UTF-8 file, its lines ended by line feeds. Raises OSError, UnicodeDecodeError."""
    return read_bounded(path, limit).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def parse_json(raw: bytes, most_values: int = MAX_JSON_VALUES) -> Any:
    """Strict JSON from bytes of at most so many values; every failure, deep nesting included, is a ValueError.

    What comes out can be printed and written again: Python's own limit depends on how deep the caller is.
    """
    values = sum(map(raw.count, (b",", b":", b"[", b"{")))
    if values > most_values:
        raise ValueError(f"has about {values} values; the limit is {most_values}")
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    inner = [data]
    for _ in range(MAX_JSON_DEPTH):
        inner = [
            value
            for outer in inner
            if isinstance(outer, dict | list)
            for value in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(value, dict | list)
        ]
        if not inner:
            return data
    raise ValueError(f"nested too deeply: the limit is {MAX_JSON_DEPTH} levels")


def read_config(path: str | os.PathLike[str]) -> Any:
    """Return the JSON of a file of config.json's kind. Raises OSError, and ValueError for what is no strict JSON."""
    return parse_json(read_bounded(path, MAX_CONFIG_BYTES), MAX_CONFIG_VALUES)


def _reject_constant(token: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON, as `parse_constant` of json.loads."""
    raise ValueError(f"{token} is not JSON")


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnsuitableFile(f"is {kind}, not a regular file; put the file itself there")


def _check_holes(handle: int) -> None:
    """Refuse a large file of which nearly nothing is on disk: it holds zeros, and reading them takes for ever."""
    status = os.fstat(handle)
    least = status.st_size // _SPARSE_SHARE
    # Blocks are counted late on some file systems, so that few of them are only a reason to look.
    if status.st_size < _SPARSE_FROM or status.st_blocks * 512 >= least or not hasattr(os, "SEEK_DATA"):
        return
    found = at = 0
    try:
        for _ in range(_MOST_EXTENTS):
            begin = os.lseek(handle, at, os.SEEK_DATA)
            at = os.lseek(handle, begin, os.SEEK_HOLE)
            found += at - begin
            if found >= least:
                break
    except OSError:  # ENXIO: no data behind `at`
        pass
    os.lseek(handle, 0, os.SEEK_SET)
    if found < least:
        raise UnsuitableFile(f"is sparse: it has {status.st_size} bytes, of which {found} are on disk; copy it again")
