"""The bytes of an artifact's weights in memory of this process, where nobody else can write.

The file is read once, by the thread that hashes it: what was hashed is what is checked, packed and answered with,
whatever becomes of the file. An engine packs the linears into memory of its own and goes on reading only the embedding
tables; so these lie in memory apart, and the rest is freed with the last view into it. Imports no numpy.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

from approxrt.artifact.files import UnsuitableFile
from approxrt.artifact.header import Header, header_length, parse_header
from approxrt.artifact.mapped import Bytes, WeightsFile

# Tensors that engines read for as long as they live (csrc/bindings/packed_engine.h).
TABLES = "embeddings."
# Pieces in memory; a file whose tables lie in more places is kept in one.
_MOST_PIECES = 64
# Read in one call, which may be short of more than 2 GB.
_STEP = 16 << 20
# A damaged file up to this size is read all the same, so that all that is wrong with it is told at once.
_LOOKED_AT = 64 << 20
_HUGE_FROM = 4 << 20
# Of pieces' addresses: views must be aligned as they are in the file.
_ALIGNMENT = 64


class Pieces:
    """A file's bytes in several pieces of memory. A slice of them lies in one piece, and is read-only."""

    def __init__(self, cuts: Sequence[int]) -> None:
        """`cuts` are the offsets where pieces begin, ascending from 0, and the file's size."""
        self._starts, self._size = list(cuts[:-1]), cuts[-1]
        self.writable: list[memoryview] = []
        for begin, end in pairwise(cuts):
            pad = begin % _ALIGNMENT
            length = max(1, pad + end - begin)  # there is no map of nothing
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if length >= _HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
                # Half the time to fill it, a tenth to free it. A kernel without huge pages refuses.
                with suppress(OSError):
                    memory.madvise(mmap.MADV_HUGEPAGE)
            self.writable.append(memoryview(memory)[pad : pad + end - begin])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> memoryview:
        begin, end, _ = part.indices(self._size)
        if begin >= end:
            return memoryview(b"")
        piece = bisect_right(self._starts, begin) - 1
        start = self._starts[piece]
        found = self.writable[piece][begin - start : end - start].toreadonly()
        if len(found) != end - begin:
            raise ValueError(f"bytes {begin} to {end} lie in several pieces")
        return found


class CopiedFile(WeightsFile):
    """The file's bytes, read once by the thread that hashes them.

    Raises OSError as WeightsFile does, and for lack of memory.
    """

    def _open(self, handle: int) -> None:
        free = available_memory()
        if free is not None and self.size > free:
            raise UnsuitableFile(
                f"has {self.size} bytes, and {free} bytes of memory are left: free some, or load it with mmap=True"
            )
        self._handle = os.dup(handle)
        self._read = threading.Event()
        self._bytes: Pieces | None = None
        self._error: OSError | None = None

    @property
    def buffer(self) -> Bytes:
        self._read.wait()
        if self._bytes is None:
            raise self._error or OSError("could not be read")
        return self._bytes

    def _pieces(self) -> Iterator[memoryview]:
        try:
            pieces = self._copy()
        except OSError as error:
            self._error = error
            raise
        else:
            self._bytes = pieces
        finally:
            os.close(self._handle)
            self._read.set()
        yield from pieces.writable

    def _run(self) -> None:
        with suppress(OSError):  # `buffer` raises it for whoever asks
            super()._run()

    def _copy(self) -> Pieces:
        head, cuts = self._head()
        pieces = Pieces(cuts)
        at = 0
        for piece in pieces.writable:
            if at == 0:
                piece[: len(head)] = head
                at = len(head)
                piece = piece[at:]
            for begin in range(0, len(piece), _STEP):
                part = piece[begin : begin + _STEP]
                # preadv lets go of the GIL.
                if os.preadv(self._handle, [part], at) != len(part):
                    raise UnsuitableFile("is cut while it is read: wait until it is written, and try again")
                at += len(part)
        return pieces

    def _head(self) -> tuple[bytes, list[int]]:
        """Return the file's first bytes, its header among them, and the offsets where pieces of memory begin.

        These depend on the very header that is copied, so that each tensor lies in one piece.
        """
        start = os.pread(self._handle, min(8, self.size), 0)
        whole = [0, self.size]
        try:
            length = header_length(self.name, start, self.size)
            raw = os.pread(self._handle, length, 8)
            header = parse_header(self.name, raw, self.size)
        except ValueError as error:
            faults = [str(error)]
        else:
            start += raw
            faults = header.faults
            if not faults and len(raw) == length:
                self.header = header
                return start, _cuts(header, self.size)
        if self.size > _LOOKED_AT:
            raise UnsuitableFile("is no sound safetensors file: " + "; ".join(faults[:5]))
        return start, whole  # whoever looks at it says the same, among other faults


def _cuts(header: Header, size: int) -> list[int]:
    """Return the header's end and where runs of tables begin and end, from 0 to `size`."""
    cuts, inside = [0], None
    for entry in header.entries:
        if entry.begin == entry.end:
            continue
        table = entry.name.startswith(TABLES)
        if table != inside:
            cuts.append(header.start + entry.begin)
            inside = table
    cuts.append(size)
    if len(cuts) > _MOST_PIECES:
        return [0, header.start, size] if header.start < size else [0, size]
    return list(dict.fromkeys(cuts))


def available_memory() -> int | None:
    """Bytes that this machine can give to a process without swapping; None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
