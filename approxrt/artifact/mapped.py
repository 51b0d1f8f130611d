"""A file that is mapped at once and hashed by a thread of its own while others work.

Imports neither numpy nor anything that does: `approxrt.load` starts here, so that the hash is ready
when numpy has been imported.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path


class MappedFile:
    """A read-only map of `path` and its SHA-256. Raises OSError when the file cannot be opened or mapped."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with open(path, "rb") as file:
            self._status = os.fstat(file.fileno())
            self.size = self._status.st_size
            # An empty file has no map.
            self.buffer: mmap.mmap | bytes = b""
            if self.size:
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._digest = ""
        self._thread = threading.Thread(target=self._hash, name="approxrt-sha256", daemon=True)
        self._thread.start()

    def _hash(self) -> None:
        import hashlib

        # hashlib lets go of the GIL.
        self._digest = hashlib.sha256(self.buffer).hexdigest()

    def sha256(self) -> str:
        """The hexadecimal digest; waits for the thread. Empty if hashing failed, which matches no digest."""
        self._thread.join()
        return self._digest

    def is_still(self, path: Path) -> bool:
        """Tell whether `path` names the file that is mapped here, and not one that was put in its place since."""
        try:
            return os.path.samestat(os.stat(path), self._status)
        except OSError:
            return False

    def release_pages(self) -> None:
        """Give the map's pages back to the page cache, from where they return when they are touched again.

        They stop counting as this process's memory. For files whose content has been copied elsewhere.
        """
        if isinstance(self.buffer, mmap.mmap) and hasattr(self.buffer, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)
