"""A file of weights that is opened at once and hashed by a thread of its own while others work.

`CopiedFile` (approxrt.artifact.copied) has the file's bytes in memory of this process; `MappedFile`, here, reads them
where they lie. Imports neither numpy nor anything that does: `approxrt.load` starts here, so that the hash is ready
when numpy has been imported.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from approxrt.artifact.files import open_large
from approxrt.artifact.header import Header


class Bytes(Protocol):
    """Bytes of a file: a slice of them is no copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview: ...


class WeightsFile(ABC):
    """A file's bytes and their SHA-256. Raises OSError when the file cannot be opened, or is none of weights."""

    # What the bytes begin with, where it was parsed on the way: known once `buffer` is.
    header: Header | None = None

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with open_large(path) as file:
            self._status = os.fstat(file.fileno())
            self.size = self._status.st_size
            self._open(file.fileno())
        self._digest = ""
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="approxrt-sha256", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread: it is done now
            self._thread = None
            self._run()

    @property
    @abstractmethod
    def buffer(self) -> Bytes:
        """The bytes. Raises OSError when they could not be read."""

    @abstractmethod
    def _open(self, handle: int) -> None:
        """Take what is needed of the open file."""

    @abstractmethod
    def _pieces(self) -> Iterator[memoryview]:
        """Yield the bytes in order."""

    def _run(self) -> None:
        import hashlib

        digest = hashlib.sha256()
        # hashlib lets go of the GIL.
        for piece in self._pieces():
            digest.update(piece)
        self._digest = digest.hexdigest()

    def sha256(self) -> str:
        """The hexadecimal digest; waits for the thread. Empty if hashing failed, which matches no digest."""
        if self._thread is not None:
            self._thread.join()
        return self._digest

    def is_still(self, path: Path) -> bool:
        """Tell whether `path` names the file that was opened, neither replaced nor written to since."""
        try:
            now = os.stat(path)
        except OSError:
            return False
        same = os.path.samestat(now, self._status)
        return same and (now.st_size, now.st_mtime_ns) == (self.size, self._status.st_mtime_ns)

    def release_pages(self) -> None:  # noqa: B027 (there is nothing to let go of in a copy)
        """Let go of memory that can be had again. For files whose content has been copied elsewhere."""


class MappedFile(WeightsFile):
    """A read-only map of the file: what others write to it is read here, and what they cut off kills the process."""

    def _open(self, handle: int) -> None:
        # An empty file has no map.
        self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if self.size else None

    @property
    def buffer(self) -> Bytes:
        return memoryview(self._map if self._map is not None else b"")

    def _pieces(self) -> Iterator[memoryview]:
        yield memoryview(self._map if self._map is not None else b"")

    def release_pages(self) -> None:
        """Give the map's pages back to the page cache, from where they return when they are touched again.

        They stop counting as this process's memory.
        """
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
