"""Keep measurements between runs. Every use is optional: what cannot be kept is measured again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_file(name: str) -> Path | None:
    """$APPROXRT_CACHE/NAME, else approxrt/NAME in $XDG_CACHE_HOME or ~/.cache; None for a user without a home."""
    own, root = os.environ.get("APPROXRT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser() / name
        if root and os.path.isabs(root):  # a relative one is to be ignored, says the XDG specification
            return Path(root) / "approxrt" / name
        home = Path.home()
    except (RuntimeError, KeyError):  # no HOME, and no entry among the users
        return None
    return home / ".cache" / "approxrt" / name


def read_cached(path: Path | None) -> str | None:
    """The text that was kept; None where there is none or it may not be read."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def write_cached(path: Path | None, text: str) -> None:
    """Keep a text, atomically; a cache that cannot be written is no reason to stop."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        pass
